"""Reading the small files of /sys and /proc as the drivers behind them want to be read."""

from __future__ import annotations

import errno
import math
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from edge_tprune.telemetry.source import NoReading

_LARGEST = 1 << 20  #: a sensor's file has one line; /proc/stat of many cores has thousands
_BLOCK = 1 << 14
_WAIT_S = 10.0  #: for the writer of a pipe; drivers answer within milliseconds


def read_text(file: Path | str, *, wait: bool = False) -> str:
    """The text of a small file without the blanks and NULs around it.

    Unbuffered and binary: a power-gated sensor fails with EAGAIN, which Python's buffered readers do not handle. Drivers ignore
    O_NONBLOCK; where the file is a pipe (a test, the simulator), only `wait` waits for a writer, for ten seconds.

    Raises:
        NoReading: the file is absent, refuses, is empty or is not text.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            waits, data = wait and stat.S_ISFIFO(os.fstat(handle).st_mode), b""
            deadline_s = time.monotonic() + _WAIT_S
            while len(data) < _LARGEST:
                if waits and not _has_come(handle, deadline_s):
                    raise NoReading(f"no answer from {_short_name(file)} within {_WAIT_S:g} s")
                if not (block := os.read(handle, _BLOCK)):
                    break
                data += block
        finally:
            os.close(handle)
    except OSError as error:
        raise NoReading(_refusal(file, error)) from None
    try:
        text = data.decode().strip("\0 \t\r\n")
    except UnicodeDecodeError:
        raise NoReading(f"{_short_name(file)} is not text") from None
    if not text:
        raise NoReading(f"{_short_name(file)} is empty")
    return text


def _has_come(pipe: int, deadline_s: float) -> bool:
    """Waits until something can be read from a pipe, its end included; False where the deadline passes first."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(max(0.0, 1e3 * (deadline_s - time.monotonic()))))


def read_number(file: Path | str, *, wait: bool = False) -> float:
    """The one number in a small file.

    Raises:
        NoReading: as `read_text`, or it is not a finite number.
    """
    text = read_text(file, wait=wait)
    try:
        number = float(text)
    except ValueError:
        raise NoReading(f"no number in {_short_name(file)}: {text[:40]!r}") from None
    if not math.isfinite(number):
        raise NoReading(f"no number in {_short_name(file)}: {text[:40]!r}")
    return number


def text_or_none(file: Path | str) -> str | None:
    """`read_text`, or None where there is nothing to read."""
    try:
        return read_text(file)
    except NoReading:
        return None


def number_or_none(file: Path | str) -> float | None:
    """`read_number`, or None where there is nothing to read."""
    try:
        return read_number(file)
    except NoReading:
        return None


def is_there(path: Path) -> bool:
    """Whether there is such a file, as far as this user may see."""
    try:
        return path.exists()
    except (OSError, RuntimeError):  # no access to a directory above it, or links that lead in a circle
        return False


def directories(parent: Path, pattern: str) -> Iterator[Path]:
    """The directories (or links to some) in `parent` by pattern, numbers in their names in counting order."""
    try:
        found = [path for path in parent.glob(pattern) if path.is_dir()]
    except (OSError, RuntimeError):
        return
    yield from sorted(found, key=lambda path: (len(path.name), path.name))


def _refusal(file: Path | str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR):
        return f"{_short_name(file)} is gone"
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return f"{name} from {_short_name(file)}"


def _short_name(file: Path | str) -> str:
    """The last two parts: enough to find it, short enough to be recorded with every reading."""
    return "/".join(Path(file).parts[-2:])
