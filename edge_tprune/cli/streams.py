"""stdin, stdout and stderr: closed, full, without a reader, or fit for ASCII alone."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def prepare_streams() -> bool:
    """Makes stdout and stderr fit to write to. Returns whether there is a stdout at all.

    A file descriptor from 0 to 2 that is closed would be given to the next file that is opened, which messages would then be written into.
    What cannot be encoded (a terminal that knows only ASCII) is written as an escape instead of ending the command.
    """
    has_stdout = sys.stdout is not None
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(handle)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # stays open until the process ends
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return has_stdout


def silence_stdout() -> None:
    """Sends what is still in stdout's buffer nowhere, or the interpreter complains again while it exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush_stdout() -> OSError | None:
    """Writes out what is in stdout's buffer; the error where that is refused (a full disk, a reader that went away)."""
    try:
        sys.stdout.flush()
    except OSError as error:
        silence_stdout()
        return error
    return None
