"""Append-only logs of JSON lines: written so that they survive kill -9, read so that any damage is one clear line."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import msgspec

from edge_tprune.documents import InvalidDocument, decode, escape_undecodable
from edge_tprune.errors import UserError
from edge_tprune.files import cut_last_line, open_log, open_regular

#: The clock of every `t_ns`, `start_ns` and `latency_ns`; on Linux the monotonic one, so other processes can stamp with it too.
clock_ns = time.perf_counter_ns

LINE_BYTES = 64_000_000  #: of the longest line that is read
REMEDY = "Copy the profile again"

T = TypeVar("T")
R = TypeVar("R")


class LogWriter:
    """The writing end of a log. One process at a time.

    Args:
        file: the log. What a dying process left of its last line is cut off.
        flags: for `os.open`, besides those for appending.
        wait: wait for another writer to end, instead of refusing.

    Raises:
        UserError: another process is writing the log.
        OSError: it cannot be opened.
    """

    def __init__(self, file: Path, flags: int = 0, *, wait: bool = False) -> None:
        self._handle = open_log(file, flags)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise UserError(f"{file.parent} is being written: wait until that run has ended, or stop it") from error
        cut_last_line(self._handle)

    def append(self, line: msgspec.Struct) -> None:
        """Adds one line. When this returns, the line survives the process, and after `sync` a power cut.

        Raises:
            ValueError: the line does not fit its own type.
            OSError: it could not be written; the lines before stay whole.
        """
        data = encode_line(line)
        size = os.fstat(self._handle).st_size
        try:
            while data:  # once, unless the disk is nearly full
                data = data[os.write(self._handle, data) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, size)
            raise

    def is_at(self, file: Path) -> bool:
        """Whether `file` is the log that is written: not removed, moved away or replaced meanwhile."""
        try:
            return os.path.samestat(os.fstat(self._handle), file.stat())
        except OSError:
            return False

    def sync(self) -> None:
        """Sends what was written to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Closes the log. A second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def is_being_written(file: Path) -> bool:
    """Whether another process has the log open for writing at this moment; False where that cannot be known."""
    try:
        with open_regular(file) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


class LogReader(Generic[T]):
    """Reads the lines of one log.

    Args:
        kinds: a union of the types of its lines. Lines of other kinds are skipped.
    """

    def __init__(self, kinds: Any) -> None:
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kinds)
        members = get_args(kinds) or (kinds,)
        self._types = {member.__struct_config__.tag: member for member in members}

    def read(self, file: Path, take: Callable[[T], R | None], warnings: list[str] | None = None) -> Iterator[R]:
        """What `take` makes of each line, where it makes something of it.

        A last line that is damaged is left out, as a run that was killed may leave one, and `warnings` gets a line that says so.

        Args:
            file: the log.
            take: may refuse a line by raising InvalidDocument.
            warnings: takes what a person should know.

        Raises:
            UserError: the log cannot be read, is no regular file, or a line before the last is damaged.
        """
        place = f"profile {file.parent}"
        damaged: InvalidDocument | None = None
        number = 0
        try:
            with open_regular(file) as stream:
                while text := stream.readline(LINE_BYTES + 1):
                    if damaged is not None:
                        raise UserError(f"{place}: line {number} of {file.name} is damaged: {damaged}. {REMEDY}") from damaged
                    number += 1
                    if len(text) > LINE_BYTES:
                        raise UserError(
                            f"{place}: line {number} of {file.name} has more than {LINE_BYTES / 1e6:.0f} MB. {REMEDY}"
                        )
                    if text.isspace():
                        continue
                    try:
                        line = self.decode(text)
                        found = None if line is None else take(line)
                    except InvalidDocument as error:
                        damaged = error
                        continue
                    if found is not None:
                        yield found
        except OSError as error:
            raise UserError(f"{place}: {file.name} cannot be read ({error.strerror}). {REMEDY}") from error
        if damaged is not None and warnings is not None:
            warnings.append(f"the last line of {file.name} was cut short and is left out")

    def decode(self, text: bytes) -> T | None:
        """One line; None where it is of a kind that is not known.

        Raises:
            InvalidDocument: what is wrong with it.
        """
        try:
            return self._decoder.decode(text)
        except (ValueError, RecursionError) as error:
            if nuls := text.count(b"\0"):
                raise InvalidDocument(f"it holds {nuls} NUL bytes, as a power cut leaves them") from error
            kind = _kind_of(text)
            if kind is not None and kind not in self._types:
                return None
            decode(text, _Kind if kind is None else self._types[kind])
            raise InvalidDocument(str(error)) from error


class _Kind(msgspec.Struct):
    kind: str


def _kind_of(text: bytes) -> str | None:
    try:
        return msgspec.json.decode(text, type=_Kind).kind
    except (ValueError, RecursionError):
        return None


def encode_line(line: msgspec.Struct) -> bytes:
    """One line of a log, its end included.

    Raises:
        ValueError: the line does not fit its own type, or a number that it needs is not finite.
    """
    try:
        data = msgspec.json.encode(line)
    except UnicodeEncodeError:  # a file's name in a message need not be text
        data = msgspec.json.encode(escape_undecodable(msgspec.to_builtins(line)))
    decode(data, type(line))
    return data + b"\n"
