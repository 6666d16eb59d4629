"""What can be wrong with the files of a simulated board. What a reader meets is real:

    vanish    the file is deleted
    eio       the kernel's own EIO: the file is a link to /proc/self/mem, whose first byte nobody may read
    eagain    the kernel's own EAGAIN: the file is a pipe that is open and empty, for readers that do not wait (zones, GPU,
              counters). A rail's reader waits for its chip: to it, this is a stall
    stall     a read takes until the fault is over: the file is a pipe nobody writes to before. Rails only, for the same reason
    empty     the file has no bytes
    set       the file says `value`, whatever it is: rubbish, another power mode, a lower clock
    jump      the number in the file is `value` higher
    renumber  the chip gets another hwmon number, once

`Tree` finds the files that a fault is meant for, and holds what they said before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_tprune.errors import UserError

KINDS = ("vanish", "eio", "eagain", "stall", "empty", "set", "jump", "renumber")
REFUSES_EIO = "/proc/self/mem"


@dataclass(frozen=True)
class FileFault:
    """Something wrong with the files that match a pattern."""

    kind: str
    file: str  #: pattern over the path below the directory: "*/1-0040/*/curr1_input"
    seconds: float | None = None  #: None: until it is taken out of faults.json
    value: str | None = None  #: of "set" (a text) and "jump" (a number)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"no fault is called {self.kind!r}; there are: {', '.join(KINDS)}")
        if not isinstance(self.file, str) or not isinstance(self.value, str | None):
            raise UserError("the file and the value of a fault must be texts")
        try:
            os.fsencode(f"{self.file}{self.value}")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the file or the value of a fault stands for no bytes: {self.file!r:.40}, {self.value!r:.40}"
            ) from error
        if not isinstance(self.seconds, int | float | None) or (self.seconds is not None and not 0 <= self.seconds < 1e9):
            raise UserError(f"the seconds of a fault must be a number from 0, not {self.seconds!r}")
        if self.kind in ("set", "jump") and self.value is None:
            raise UserError(f"the fault {self.kind} needs a value")
        if self.kind == "jump":
            try:
                float(self.value or "")
            except ValueError:
                raise UserError(f"the value of a jump must be a number, not {self.value!r}") from None


class ActiveFault:
    """A fault and the files it holds."""

    def __init__(self, fault: FileFault, names: list[str], end_ns: int | None) -> None:
        self.fault = fault
        self.names = names
        self.end_ns = end_ns
        self._pipes: list[int] = []  # write ends: while one is open, an empty pipe says EAGAIN and not end of file

    def apply(self, path: Path, text: str, replace: Callable[[Path, Callable[[Path], Any]], None]) -> None:
        """Breaks a file that says `text`; `replace` puts something else in its place."""
        kind, value = self.fault.kind, self.fault.value or ""
        if kind == "vanish":
            path.unlink(missing_ok=True)
        elif kind == "eio":
            replace(path, lambda new: new.symlink_to(REFUSES_EIO))
        elif kind in ("eagain", "stall"):
            replace(path, lambda new: os.mkfifo(new))
            if kind == "eagain":
                self._pipes.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        elif kind == "jump":
            with suppress(ValueError):
                value = f"{float(text) + float(value):.0f}\n"
                replace(path, lambda new: new.write_text(value))
        else:
            content = b"" if kind == "empty" else os.fsencode(f"{value}\n")  # a sensor may say bytes that are no text
            replace(path, lambda new: new.write_bytes(content))

    def before_end(self, path: Path, text: str) -> None:
        """Answers a reader that waits for the pipe."""
        if self.fault.kind == "stall":
            with suppress(OSError):
                self._pipes.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
                os.write(self._pipes[-1], text.encode())

    def close(self) -> None:
        """Closes the pipes."""
        while self._pipes:
            os.close(self._pipes.pop())
