"""Files that are either whole or absent: temporary name, fsync, rename. Used by every room that writes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from edge_tprune.errors import UserError
from edge_tprune.placings import note_placing
from edge_tprune.text import is_text

_CHUNK = 1 << 20
_RESERVE_BYTES = 1 << 20
_END_BYTES = 1 << 20  # looked at from either end of a file, to tell whose it is
_LONGEST_NAME = 241  # bytes, of the 255 that file systems take: a temporary file is called 14 longer
_STALE_S = 5.0  # after which whoever made a temporary file holds its lock, if it lives


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file for reading, if it is a regular one: a named pipe would wait for ever, a device has no end.

    Raises:
        OSError: it cannot be opened, or is a directory, pipe, socket or device; `strerror` says which.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(handle, path)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def check_own(file: Path, own: re.Pattern[bytes], kind: str) -> None:
    """Refuses to replace a file of a person's: one whose first and last megabyte `own` does not match, as those of every file of `kind`.

    An empty file is nobody's.

    Raises:
        UserError: naming the file.
    """
    try:
        with open_regular(file) as stream:
            content = stream.read(_END_BYTES)
            stream.seek(max(_END_BYTES, os.fstat(stream.fileno()).st_size - _END_BYTES))
            content += stream.read(_END_BYTES)
    except PermissionError as error:
        raise UserError(
            f"{file} cannot be read, so it may be yours, and would be lost: choose another name, or remove it"
        ) from error
    except OSError:  # it is not there, or no file: what writes there says so
        return
    if content and not own.match(content):
        raise UserError(f"{file} is not {kind} of edge-tprune's, and would be lost: choose another name, or remove it")


def files_below(directory: Path) -> list[str]:
    """The relative paths of all files, links and whatever else is no directory, sorted.

    Raises:
        UserError: a directory that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}. Move it away, or give access to it") from error

    found = []
    for folder, inside, names in os.walk(directory, onerror=refuse):
        links = [name for name in inside if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
        found += [Path(folder, name).relative_to(directory).as_posix() for name in (*names, *links)]
    return sorted(found)


def _check_regular(handle: int, path: Path) -> None:
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        what = next((name for is_one, name in _SPECIAL if is_one(mode)), "special file")
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"it is a {what}, not a file", str(path))


_SPECIAL = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: as `open_regular`, or the file holds more than `most_bytes`.
    """
    with open_regular(path) as stream:
        data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes / 1e6:.0f} MB", str(path))
    return data


def sha256_file(path: Path) -> str:
    """SHA-256 of a regular file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text (sorted keys, no spaces), hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write at `path` into one clear `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"no space left while writing {path}: free some space, or choose another place") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"cannot write {path}: {error.strerror}. Make it writable, or choose another place") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise UserError(f"cannot write {path}: {error.strerror} ({error.filename})") from error
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose bytes appear at `path` all together on success, or not at all.

    The temporary file lies in the same directory, so the final rename cannot cross file systems; file and directory are
    synced, so the rename survives a power cut.

    Raises:
        UserError: it cannot be written, or a device, pipe, socket or directory is there, which the rename would replace.
    """
    refuse_special(path)
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent, temporary_names(f".{path.name}.", ".tmp"))
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                mark_in_use(handle)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(_mode_of(path))
            note_placing(Path(name), path)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
        sync_directory(path.parent)


def _mode_of(path: Path) -> int:
    """Permissions of what is to be at `path`: those of the file there, which may be private, or those of a new one."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0o666 & ~_umask()


def mark_in_use(handle: int) -> None:
    """Locks a temporary file or directory by its handle, until that is closed or the process ends: `remove_stale` leaves it alone."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """`mark_in_use` of a temporary directory, for a while."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mark_in_use(handle)
        yield
    finally:
        os.close(handle)


def temporary_names(prefix: str, suffix: str = "") -> re.Pattern[str]:
    """What the names that `tempfile` makes between `prefix` and `suffix` look like: a person's draft is called otherwise."""
    return re.compile(rf"{re.escape(prefix)}[a-z0-9_]{{8}}{re.escape(suffix)}")


def remove_stale(directory: Path, names: re.Pattern[str], *, folders: bool = False) -> None:
    """Removes the temporary files in `directory` that processes which were killed left behind.

    Args:
        directory: whose entries are looked at.
        names: of those files.
        folders: remove directories that are called so, and no files.
    """
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if names.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False) is folders:
                with suppress(OSError):
                    _remove_unused(Path(entry.path))


def _remove_unused(path: Path) -> None:
    """Removes a file or directory that is some seconds old and that nobody uses.

    Raises:
        OSError: it is used, or cannot be removed.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if time.time() - found.st_ctime < _STALE_S:
            return
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(path)
        elif stat.S_ISREG(found.st_mode):
            path.unlink()
    finally:
        os.close(handle)


def refuse_special(path: Path) -> None:
    """Refuses to write where no file is, or a device, however it is reached.

    Raises:
        UserError: naming it.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UserError(f"cannot write {path}: its name has more than {_LONGEST_NAME} bytes. Choose a shorter one")
    with suppress(OSError):  # nothing is there, or a link to nothing
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or path.absolute().parent == Path("/dev"):  # /dev/stdout is a link, maybe to a file
            what = next((name for is_one, name in _SPECIAL if is_one(mode)), "device")
            raise UserError(f"cannot write {path}: it is a {what}, not a file. Choose another --out")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path` atomically."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` atomically as indented JSON. NaN and infinity are refused: missing is null."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def open_log(path: Path, flags: int = 0) -> int:
    """Opens a file to which lines are added, and returns its handle: a regular file, never what a link points to.

    Args:
        path: the file.
        flags: for `os.open`, besides those for appending.

    Raises:
        OSError: it cannot be opened, or is no regular file; `strerror` says which.
    """
    if path.is_symlink():
        raise OSError(errno.EINVAL, "it is a link, not a file", str(path))
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)
    try:
        _check_regular(handle, path)
    except OSError:
        os.close(handle)
        raise
    return handle


def cut_last_line(handle: int) -> None:
    """Cuts off what follows the last line end of a file that a dying process left, so that whole lines can follow."""
    size = os.fstat(handle).st_size
    keep, block = size, 1 << 16
    while keep > 0:
        start = max(0, keep - block)
        found = os.pread(handle, keep - start, start).rfind(b"\n")
        if found >= 0:
            keep = start + found + 1
            break
        keep = start
    if keep < size:
        os.ftruncate(handle, keep)


@contextmanager
def exclusive(path: Path, work: str, seconds: float = 0) -> Iterator[None]:
    """Keeps other processes that lock the same path out; the lock ends with the process, however that ends.

    Args:
        path: what is written; the lock is a file beside it.
        work: what the other one is, for the message: "build".
        seconds: how long to wait.

    Raises:
        UserError: another one holds the lock.
    """
    file = path.parent / f".{path.name}.lock"
    lock = FileLock(file, timeout=seconds)
    with clear_write_errors(file):
        try:
            lock.acquire()
        except Timeout as error:  # an OSError, but not one of writing
            raise UserError(
                f"cannot lock {path} for writing: another {work} is at work on it, or {path.parent} cannot be written"
            ) from error
    try:
        yield
    finally:
        lock.release()


def sync_directory(path: Path) -> None:
    """Makes renames inside a directory durable, where the file system can do that and this user may read the directory."""
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
        finally:
            os.close(handle)


def sync_tree(directory: Path) -> None:
    """Sends all that a directory holds to the disk, so that a rename cannot come before it."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with (Path(folder) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_directory(Path(folder))


def user_cache() -> Path:
    """Where this user's programs keep what they can make again: `$XDG_CACHE_HOME/edge-tprune`, by default `~/.cache/edge-tprune`.

    Raises:
        UserError: the user has no home directory, as in a container that runs under a number.
    """
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-tprune"
    raise UserError(
        f"the user with number {os.getuid()} has no home directory, and so no place for a cache: set HOME or XDG_CACHE_HOME to a directory "
        "that can be written"
    )


def check_free_space(path: Path, needed_bytes: int) -> None:
    """Makes sure that a directory's disk can take so many bytes more, and leaves a reserve.

    Raises:
        UserError: it cannot; saying how much is free and how much is needed.
    """
    free, needed = shutil.disk_usage(path).free, needed_bytes + _RESERVE_BYTES
    if free < needed:
        raise UserError(
            f"no space left while writing {path}: {free / 1e6:.1f} MB are free and up to {needed / 1e6:.1f} MB are needed. "
            "Free some space, or choose another place"
        )


def check_replaceable(path: Path) -> None:
    """Refuses a directory that cannot be renamed, and so not be replaced as a whole.

    Raises:
        UserError: a disk or a container's volume is mounted there.
    """
    if path.resolve().is_mount():  # of ".", Python 3.11 says so without looking
        raise UserError(f"{path} is a mount point, which cannot be replaced as a whole: give a directory in it")


def check_text_path(path: Path, named: str) -> None:
    """Refuses a path that ONNX Runtime cannot open.

    Args:
        path: where something is to be written.
        named: what the message calls it: "--out x".

    Raises:
        UserError: it is no text.
    """
    if not is_text(path.absolute()):
        raise UserError(f"{named}: ONNX Runtime opens no file whose path is not UTF-8 text: choose another")


def check_movable(folder: Path, beside: Path) -> None:
    """Refuses a directory that cannot be renamed, or not be removed then, before the work that shall replace it. One that is missing is none.

    No directory takes the place of one that holds something: the attempt changes nothing. Of its reasons to fail only an overlay's is sure to
    be one later, too.

    Args:
        folder: what shall be renamed.
        beside: an empty directory of the caller's with the same parent.

    Raises:
        UserError: it lies in a lower layer of an overlay, or is write-protected, or a directory in it is.
    """
    if not folder.exists():
        return
    for place, _, _ in os.walk(folder):
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"{place} is write-protected, so that {folder} cannot be replaced: run chmod -R u+w {shlex.quote(str(folder))}, or choose another --out"
            )
    (something := beside / "something").touch()
    try:
        folder.rename(beside)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise UserError(
                f"{folder} lies in a lower layer of an overlay, as of a container's image, and cannot be replaced as a whole: "
                "choose another --out, or copy it, remove it, and rename the copy"
            ) from error
    else:  # a file system that does as it should not
        beside.rename(folder)
        beside.mkdir(directory_mode())
    something.unlink(missing_ok=True)


def directory_mode() -> int:
    """The permissions that `mkdir` would give a new directory."""
    return 0o777 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
