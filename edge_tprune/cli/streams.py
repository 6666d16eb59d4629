"""stdin, stdout and stderr: closed, full, without a reader, or fit for ASCII alone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from select import select
from typing import Any, TextIO

_answers: list[TextIO] = []  #: stdout as it was when the command began
_given: list[TextIO] = []  #: likewise, once it was asked for


class _Kept(io.TextIOWrapper):
    """A stream that a plugin cannot close: what it is of is needed until the process ends."""

    replaced: io.TextIOWrapper  #: the stream in whose place it stands, which would close the descriptor with its end

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self.flush()


class _Output(io.FileIO):
    """A stream's descriptor, which writes all that it is given: what calls it without a buffer does not look at the count. Its errors say
    which stream they are of. Those of stderr end nothing, and nothing waits for its reader: a measurement of hours does not stop because
    the log with its progress is full, or nobody reads it any more."""

    label = ""  #: "stdout"

    def write(self, data: Any, /) -> Any:
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left:
                written = super().write(left)
                if written is None:  # the descriptor was made not to wait, and its reader is slow
                    if self.label == "stderr":
                        return size
                    select([], [self.fileno()], [])
                left = left[written or 0 :]
        except OSError as error:
            if self.label == "stderr":
                return size
            raise type(error)(error.errno, error.strerror, self.label) from None
        return size


def prepare_streams() -> bool:
    """Makes stdout and stderr fit to write to. Returns whether there is a stdout at all.

    A file descriptor from 0 to 2 that is closed would be given to the next file that is opened, which messages would then be written into.
    What cannot be encoded (a terminal that knows only ASCII) is written as an escape instead of ending the command. Code of others that
    runs here (`--plugin`) cannot close the streams.
    """
    has_stdout = sys.stdout is not None
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(handle)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # stays open until the process ends
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            kept = _keep(stream, name)
            setattr(sys, name, kept)
            setattr(sys, f"__{name}__", kept)
    return has_stdout


def _keep(stream: io.TextIOWrapper, name: str) -> _Kept:
    """The same stream, not closable."""
    unbuffered = isinstance(stream.buffer, io.RawIOBase)  # PYTHONUNBUFFERED
    output = _Output(stream.fileno(), "wb", closefd=False)
    output.label = name
    kept = _Kept(
        output if unbuffered else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    kept.replaced = stream
    return kept


@contextmanager
def keep_for_answers() -> Iterator[None]:
    """Keeps stdout for the answer: what code of others prints meanwhile (a plugin, a library) goes to stderr."""
    _answers.append(sys.stdout)
    _given.clear()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _answers.pop()


def answer_stream() -> TextIO:
    """Where answers go."""
    stream = _answers[-1] if _answers else sys.stdout
    _given.append(stream)
    return stream


def has_answered() -> bool:
    """Whether the command wrote some of its answer."""
    return bool(_given)


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
