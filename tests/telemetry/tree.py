"""Small trees of files for the readers."""

from __future__ import annotations

from pathlib import Path

from edge_tprune.telemetry.source import Reading, Source

REFUSES = Path("/proc/self/mem")  #: reading its first byte fails with the kernel's own EIO


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())


def refuse(root: Path, name: str) -> None:
    """Makes a file whose reading fails with EIO."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(REFUSES)


def covers(source: Source, reading: Reading) -> bool:
    """Every metric is a value or a gap with a reason, and none is both."""
    names = [metric.name for metric in source.metrics]
    return sorted(names) == sorted([*reading.values, *reading.gaps]) and all(reading.gaps.values())
