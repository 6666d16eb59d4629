"""What this process put in its final place: an interrupted command tells by it whether anything was written."""

from __future__ import annotations

from collections import deque
from pathlib import Path

_placings: deque[tuple[Path, tuple[int, int]]] = deque(maxlen=1000)  # final path, and what is to lie there (device, inode)


def note_placing(draft: Path, path: Path) -> None:
    """Remembers that `draft`, a file or directory, is about to be renamed to `path`."""
    found = draft.lstat()
    _placings.append((path, (found.st_dev, found.st_ino)))


def placed() -> list[Path]:
    """What was put in its place since `forget_placed` and is there still."""
    return list(dict.fromkeys(path for path, identity in _placings if _identity(path) == identity))


def forget_placed() -> None:
    """Begins a new list for `placed`."""
    _placings.clear()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
