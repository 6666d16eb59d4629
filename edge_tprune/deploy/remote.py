"""The program that `deploy` runs on the board, before anything is installed there.

It is sent as text through the SSH connection's stdin and executed from there: so it must be one file, and may use the standard
library alone. A request is one JSON line; files follow as frames (a JSON line, then that many bytes). Answers come after a line
that no login script prints, as JSON lines and frames. Empty lines between them say that the program is still at work.

Everything it writes lies in one directory that only the user can read (`~/.edge-tprune`):

    incoming/<sha256>      what is being received; a cut-off transfer goes on where it stopped
    bundles/<name>/        complete bundles only: files are checked against their SHA-256, then moved into place together
    venv/                  the agent; its stamp is written last, and one without a stamp is made again
    venv.old/              the agent before, until the new one is complete
    profiles/

Names, sizes and hashes in requests are checked as if a stranger had sent them.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

Json = dict[str, Any]  # a request, an answer or a frame: what is in it, each command says

MARK = b"@edge-tprune-board 1\n"
MARGIN_BYTES = 20_000_000  #: left free on the disk
HEARTBEAT_S = 10  #: the host sends a byte this often while something runs here ...
LOST_S = 120  #: ... and is taken for gone after this long without
STOP_S = 60  #: how long a program has to end itself before it is killed
FORGOTTEN_S = 3600  #: since when nothing was added to what was received: nobody continues that transfer
CHUNK = 1 << 18
STAMP = "edge-tprune.json"
RUNNING = "running.lock"  #: held while something is measured, by a campaign too
BUSY = "something else is being measured on the board: wait for it to finish, or stop it there"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
MANIFEST = "manifest.json"
_RESULTS, _ENGINE = r"eval-[0-9a-f]{12}\.npz", r"[^/]+\.sm\d+(\.2)?\.plan"
#: Full match with what commands that were killed leave in a bundle (`edge_tprune.bundle.revision.LEFT_BEHIND`).
LEFT_BEHIND = re.compile(
    rf"{_RESULTS}|engines/{_ENGINE}(\.json)?|engines/\.{_ENGINE}\.lock"
    rf"|(engines/)?\.(manifest\.json|{_RESULTS}|{_ENGINE}(\.json)?)\.\w+\.tmp"
)
#: Full match with the files of a bundle that has no manifest.
PART = re.compile(rf"{LEFT_BEHIND.pattern}|manifest\.json|golden\.npz|onnx/[^/]+\.(onnx|bin)|engines/[^/]+\.plan(\.json)?")
#: How every manifest begins (`edge_tprune.bundle.manifest.KIND.begins`).
BEGINS = re.compile(rb'\s*\{\s*"format":\s*"edge\-tprune\-bundle"')
SHA256 = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):
    """The request cannot be met; the message is for the person at the host."""


def main(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Reads one request, does it, answers. Returns the exit code: 0, or 1 after an answer with `error`."""
    os.umask(0o077)
    stdout.write(b"\n" + MARK)
    stdout.flush()
    try:
        request = json.loads(stdin.readline())
        home = _home()
        with beating(stdout, _writing):
            answer = COMMANDS[request["do"]](home, request, stdin, stdout)
    except Refused as refusal:
        answer = {"error": _shown(refusal)}
    except BrokenPipeError:
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "no space left on the board's disk" if full else f"the board says: {error.strerror or error}"
        answer = {"error": f"{what} ({_shown(error.filename or 'while writing')})"}
    answer_line(stdout, answer)
    return 1 if "error" in answer else 0


def _shown(value: object) -> str:
    """As text: a name of a file may be none."""
    return str(value).encode(errors="replace").decode()


def _home() -> Path:
    """The directory in which everything lies."""
    try:
        return (Path.home() / ".edge-tprune").resolve()
    except RuntimeError as error:  # no home directory, or links that lead in a circle
        raise Refused(f"the home directory there cannot be used: {error}") from error


_writing = threading.RLock()  #: held while a line or a frame is written


@contextlib.contextmanager
def beating(stream: IO[bytes], lock: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Sends an empty line every `HEARTBEAT_S`: either side takes one that says nothing for gone. `lock` keeps it out of what else is written."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with lock:
                try:
                    stream.write(b"\n")
                    stream.flush()
                except (OSError, ValueError):
                    return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def answer_line(stdout: IO[bytes], value: Json) -> None:
    """One JSON line."""
    with _writing:
        stdout.write(json.dumps(value).encode() + b"\n")
        stdout.flush()


# --- what is here


def check(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Facts about the board, and what is installed there already. Changes nothing."""
    existing = next(path for path in (home, *home.parents) if path.is_dir())
    return {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "machine": platform.machine(),
        "system": sys.platform,
        "glibc": _glibc(),
        "venv": _importable("venv"),
        "hostname": platform.node(),
        "home": str(home),
        "writable": os.access(existing, os.W_OK),
        "free_bytes": shutil.disk_usage(existing).free,
        "packages": _packages(),
        "tensorrt": _importable("tensorrt"),
        "cuda": _cuda(),
        "stamp": read_stamp(home),
        "root": os.geteuid() == 0,
    }


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _packages() -> dict[str, str]:
    """Name -> version of the distributions that a virtual environment with system packages will see."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(Exception):  # a broken one in the system is none of ours
            name, version = distribution.metadata["Name"], distribution.version
            if 0 < len(name) <= 200 and 0 < len(version) <= 100:
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return found


def _glibc() -> str | None:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
    except (ValueError, OSError, IndexError):
        return None


def _cuda() -> str | None:
    """The CUDA toolkit's version, as the toolkit itself says it."""
    try:
        return str(_read_json(Path("/usr/local/cuda/version.json"))["cuda"]["version"])
    except (KeyError, TypeError):
        return None


def read_stamp(home: Path) -> Any:
    """What the venv holds, or None where there is none or it was not finished."""
    return _read_json(home / "venv" / STAMP)


def _read_json(file: Path) -> Any:
    """What a file says; None where it cannot be read. A pipe, which would keep its reader waiting, cannot."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if file.is_file():
            return json.loads(file.read_bytes())
    return None


# --- receiving files


def wanted(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Which of `files` ({sha256: bytes}) must be sent, and from which offset: {sha256: offset}.

    What the bundle called `reuse` already holds is not sent again.
    """
    files = _checked_sizes(request["files"])
    incoming = _directory(home, "incoming")
    held = set(_hashes(home / "bundles" / _name(request["reuse"])).values()) if "reuse" in request else set()
    offsets: dict[str, int] = {}
    for digest, size in files.items():
        partial = incoming / digest
        if not partial.is_file():  # a pipe would keep its writer waiting
            partial.unlink(missing_ok=True)
        have = _size(partial)
        if digest in held or (have == size and partial.exists() and sha256(partial) == digest):
            continue
        if have >= size:  # as long as it should be, but wrong
            partial.unlink(missing_ok=True)
            have = 0
        offsets[digest] = have
    missing = sum(files[digest] - offset for digest, offset in offsets.items())
    need, free = missing + int(request.get("extra_bytes", 0)) + MARGIN_BYTES, shutil.disk_usage(incoming).free
    if offsets and need > free:
        raise Refused(
            f"the board's disk is too full: {need / 1e6:.0f} MB are needed at {home} and {free / 1e6:.0f} MB are free. Free some space there"
        )
    return {"offsets": offsets, "bytes": missing}


def receive(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Takes frames {"sha256", "offset", "bytes"} until one without; each file is checked as soon as it is whole."""
    files = _checked_sizes(request["files"])
    incoming = _directory(home, "incoming")
    taken = 0
    while True:
        frame = json.loads(stdin.readline() or b"null")
        if frame is None:
            raise Refused("the connection ended before everything was sent")
        if "sha256" not in frame:
            return {"received": taken}
        digest, offset, size = frame["sha256"], frame["offset"], frame["bytes"]
        if digest not in files or offset < 0 or size < 0 or offset + size != files[digest]:
            raise Refused("a file was sent that was not announced")
        partial = incoming / digest
        if _size(partial) < offset:
            raise Refused("a transfer does not continue where it stopped. Repeat the command")
        _take(partial, stdin, offset, size)
        try:
            whole = sha256(partial) == digest
        except FileNotFoundError:  # it has what this one sent
            raise Refused("another deployment to this board was at work at the same time. Repeat the command") from None
        if not whole:
            partial.unlink(missing_ok=True)
            raise Refused("a file arrived damaged (its SHA-256 differs). Repeat the command")
        taken += 1


def _take(path: Path, stdin: IO[bytes], offset: int, size: int) -> None:
    """Writes `size` bytes of `stdin` at `offset`; what came stays when the connection breaks, and goes when the disk is full.

    Two deployments may send one file at once: both write the same bytes to the same places.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a pipe without a reader is refused
    handle = os.open(path, flags, 0o600)
    try:
        received = 0
        for block in blocks(stdin, size):
            received += len(block)
            while block:
                written = os.pwrite(handle, block, offset)
                block, offset = block[written:], offset + written
        os.fsync(handle)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    if received < size:
        raise Refused("the connection ended in the middle of a file")


def _checked_sizes(files: dict[str, int]) -> dict[str, int]:
    for digest, size in files.items():
        if not SHA256.fullmatch(digest) or not isinstance(size, int) or size < 0:
            raise Refused("not a list of files")
    return files


def _hashes(directory: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of the regular files below `directory`."""
    return {file.relative_to(directory).as_posix(): sha256(file) for file in _regular_files(directory)}


# --- bundles


def bundle(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Puts `files` ({path: {"sha256", "bytes"}}) into place as bundles/<name>: all of them, or none."""
    name, files = _name(request["name"]), request["files"]
    bundles = _directory(home, "bundles")
    with _locked(home, "bundles.lock", "another deployment is changing the board's bundles: repeat the command in a while"):
        while not _place(bundles, home / "incoming", name, files):
            pass  # `eval` stored something meanwhile: again, with that
    return {"path": str(bundles / name)}


def _place(bundles: Path, incoming: Path, name: str, files: Json) -> bool:
    """Makes the bundle and moves it into place. False, and nothing moved, where the manifest of the one there has changed since this began."""
    target, fresh, old = bundles / name, bundles / f".{name}.new", bundles / f".{name}.old"
    if old.is_dir() and not old.is_symlink() and not target.is_dir():  # a swap was cut off half-way
        old.rename(target)
    if target.is_dir() and not target.is_symlink() and not os.access(target, os.W_OK):
        raise Refused(f"{target} is write-protected: run there: chmod -R u+w {shlex.quote(str(target))}")
    there, before = _hashes(target), _manifest(target / MANIFEST)
    own = _named(before)
    if own is None:
        own = dict.fromkeys(_guessed(target, files), "")
    theirs = _others(target, own)
    held = {digest: target / path for path, digest in sorted(there.items(), key=lambda each: each[0] not in theirs)}
    sent, files = files, _with_results(files, before, held, incoming)
    others, persons = [path for path in theirs if path not in files], {target / path for path in theirs}
    if {path: digest for path, digest in there.items() if path not in others} == {
        path: entry["sha256"] for path, entry in files.items()
    }:
        _remove_sent(incoming, [*sent.values(), *files.values()])
        return True
    for path in theirs:
        if path in files and there.get(path) != files[path]["sha256"]:
            raise Refused(
                f"{target / path} is no file of the bundle there, and would be lost: move it away on the board, or rename the directory "
                "of the bundle here"
            )
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for path, entry in files.items():
        source = held.get(entry["sha256"]) or _received(incoming, path, entry)
        place = fresh.joinpath(*_inside(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        if source in persons:  # who may write into it
            _copy(source, place)
        else:
            _name_again(source, place)
    for path in others:
        place = fresh / path
        _make_alike(target / Path(path).parent, place.parent)
        _name_again(target / path, place)
    for path in _empty_directories(target):  # a person's, for what is to come
        _make_alike(target / path, fresh / path)
    for directory in (fresh, *(path for path in fresh.rglob("*") if path.is_dir())):
        _sync(directory)
    busy = f"another command is at work on bundle {name} there: repeat the command in a while"
    with _locked(bundles, f".{name}.manifest.lock", busy):  # that of `edge_tprune.bundle.revision.manifest_lock`
        if _manifest(target / MANIFEST) != before:
            return False
        _make_room(old)
        if target.is_symlink():  # a person moved the bundle elsewhere: what is there stays
            target.unlink()
        elif target.is_dir():
            target.rename(old)
        fresh.rename(target)
        if old.is_dir() and not old.is_symlink():
            _take_late(old, target, [path for path in _others(old, own) if path not in files])
    _sync(bundles)
    _remove(old)
    _remove_sent(incoming, [*sent.values(), *files.values()])
    return True


def _take_late(old: Path, target: Path, paths: list[str]) -> None:
    """Moves what a person put into a bundle's directory, or replaced there, while the next version was being made."""
    for path in paths:
        late, place = old / path, target / path
        if not os.path.lexists(place) or not os.path.samestat(late.lstat(), place.lstat()):
            _make_alike(late.parent, place.parent)
            late.replace(place)


def _remove_sent(incoming: Path, entries: list[Json]) -> None:
    for entry in entries:
        (incoming / entry["sha256"]).unlink(missing_ok=True)
    _remove_forgotten(incoming)


def _manifest(file: Path) -> Json | None:
    """A bundle's manifest; None where it cannot be read."""
    found = _read_json(file)
    return found if isinstance(found, dict) else None


def _named(manifest: Json | None) -> dict[str, str] | None:
    """Path -> SHA-256 of the files that a manifest names, and the manifest's own path -> ""; None where it does not name them as it should."""
    if manifest is None:
        return None
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        named = {path: entry["sha256"] for path, entry in manifest["files"].items()}
        named |= {artifact["file"]: artifact["sha256"] for budget in manifest["budgets"] for artifact in budget["artifacts"]}
        if all(isinstance(digest, str) for digest in named.values()):
            return {MANIFEST: "", **named}
    return None


def _guessed(target: Path, files: Json) -> list[str]:
    """What belongs to a bundle whose manifest does not say it: of a damaged one what the new version has, too; nothing of what is no bundle."""
    manifest = target / MANIFEST
    if not manifest.is_file():
        return [
            *files,
            *(path for path in (each.relative_to(target).as_posix() for each in _below(target)) if PART.fullmatch(path)),
        ]
    return [MANIFEST, *files] if _says_bundle(manifest) else []


def _says_bundle(file: Path) -> bool:
    """Whether a manifest begins as a bundle's does, or was cut off before it begins."""
    with contextlib.suppress(OSError):
        with file.open("rb") as stream:
            begin = stream.read(1000)
        return not begin or BEGINS.match(begin) is not None
    return False


def _others(target: Path, own: dict[str, str]) -> list[str]:
    """What lies in a bundle's directory and is not the bundle's: the profiles and notes of a person, which an update leaves there.

    Args:
        target: the directory.
        own: the files that are the bundle's.

    Raises:
        Refused: a directory in it cannot be listed.
    """
    paths = [path.relative_to(target).as_posix() for path in _below(target)]
    return [path for path in paths if path not in own and not LEFT_BEHIND.fullmatch(path)]


def _empty_directories(target: Path) -> list[str]:
    """Those below a directory, but for what commands leave behind."""
    paths = [Path(place).relative_to(target).as_posix() for place, folders, files in os.walk(target) if not folders + files]
    return [path for path in paths if path != "." and not LEFT_BEHIND.fullmatch(path)]


def _with_results(files: Json, before: Json | None, held: dict[str, Path], incoming: Path) -> Json:
    """As `_merged`; the files as they are where a manifest is not as it should be."""
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        return _merged(files, before, held, incoming)
    return files


def _merged(files: Json, before: Json | None, held: dict[str, Path], incoming: Path) -> Json:
    """The files of a bundle that was not evaluated yet, with what `eval` found on the board of the same graphs: a manifest that says so, and its results."""
    named = _named(before)
    if before is None or named is None or MANIFEST not in files:
        return files
    entry = files[MANIFEST]
    manifest = _manifest(held.get(entry["sha256"]) or _received(incoming, MANIFEST, entry))
    fresh = _named(manifest)
    if manifest is None or fresh is None or manifest.get("fingerprint") != before.get("fingerprint"):
        return files
    results = {path for path in named if re.fullmatch(_RESULTS, path)}
    graphs = {(path, digest) for path, digest in named.items() if path not in results and not path.startswith("engines/")}
    if any(_evaluated(budget) for budget in manifest["budgets"]) or not graphs <= fresh.items():
        return files
    if any(named[path] not in held for path in results):  # damaged
        return files
    found = {budget.get("name"): budget for budget in before["budgets"] if _evaluated(budget)}
    if not found:
        return files
    for budget in manifest["budgets"]:
        budget.update({key: value for key, value in found.get(budget.get("name"), {}).items() if key.startswith("accuracy")})
    manifest["files"].update({path: before["files"][path] for path in results})
    data = json.dumps(manifest, indent=1).encode()
    digest = hashlib.sha256(data).hexdigest()
    with (incoming / digest).open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return {**files, MANIFEST: {"sha256": digest, "bytes": len(data)}, **{path: before["files"][path] for path in results}}


def _evaluated(budget: Json) -> bool:
    return bool(budget.get("accuracy") or budget.get("accuracy_by_precision"))


def _name_again(source: Path, place: Path) -> None:
    """A second name of a file or link, or a copy where that cannot be: there a pipe or device stays where it is."""
    try:
        os.link(source, place, follow_symlinks=False)
    except OSError as error:
        # It is on another disk, another user's, or on a file system without such names.
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        if source.is_symlink():
            place.symlink_to(source.readlink())
            return
        if not source.is_file():
            return
        _copy(source, place)


def _copy(source: Path, place: Path) -> None:
    with source.open("rb") as old, place.open("wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())


def _make_alike(source: Path, place: Path) -> None:
    """Makes a directory with the permissions of another, and those above it like those above that; nothing where something is there."""
    if not os.path.lexists(place):
        _make_alike(source.parent, place.parent)
        place.mkdir()
        shutil.copymode(source, place)


def _remove(path: Path) -> None:
    """A directory, or a link to one, if it is there."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _make_room(path: Path) -> None:
    """Removes a directory that something else shall take the place of.

    Raises:
        Refused: a part of it cannot be removed.
    """
    _remove(path)
    if os.path.lexists(path):
        raise Refused(
            f"{path} holds what this user may not remove: remove it on the board with: sudo rm -r {shlex.quote(str(path))}"
        )


def _remove_forgotten(incoming: Path) -> None:
    """Removes what earlier deployments sent and did not use: of a copy that was cut off, or of an older version."""
    for file in _regular_files(incoming):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > FORGOTTEN_S:
                file.unlink()


def _received(incoming: Path, name: str, entry: Json) -> Path:
    """The file that was received for `entry`, checked.

    Raises:
        Refused: it is not there, or damaged.
    """
    if not SHA256.fullmatch(entry["sha256"]):
        raise Refused("not a list of files")
    file: Path = incoming / entry["sha256"]
    if not file.is_file() or _size(file) != entry["bytes"] or sha256(file) != entry["sha256"]:
        raise Refused(f"{name} did not arrive on the board. Repeat the command")
    return file


# --- the agent


def install(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Makes the virtual environment and installs the carried wheels into it, unless its stamp says that this was done.

    It sees the system's packages (JetPack's TensorRT) and has no pip of its own: the carried pip runs from its wheel.
    """
    with _locked(home, "install.lock", "something else is being installed on the board: repeat the command in a while"):
        if read_stamp(home) == request["stamp"]:
            return {"installed": False}
        with _locked(home, RUNNING, f"{BUSY}. The agent cannot be replaced meanwhile"):
            return _install(home, request)


def _install(home: Path, request: Json) -> Json:
    venv, old, wheels = home / "venv", home / "venv.old", home / "wheels"
    if old.is_dir() and read_stamp(home) is None:  # an installation was cut off half-way
        _make_room(venv)
        old.rename(venv)
    _make_room(old)
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    for name, entry in request["wheels"].items():
        _received(home / "incoming", name, entry).rename(wheels / _name(name))
    python = str(venv / "bin" / "python")
    if venv.is_dir():
        venv.rename(old)
    try:
        _run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(venv)])
        options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--no-warn-script-location"]
        alone = ["--isolated"] if request["offline"] else []
        source = [*alone, "--no-index", "--find-links", str(wheels)] if request["offline"] else []
        what = [str(wheels / _name(request["agent"])) + request["extras"], *request["requirements"]]
        pip = [python, str(wheels / _name(request["pip"]) / "pip")]
        _check_places(_run([*pip, *alone, "config", "list"]))
        _run([*pip, "install", *options, *source, *what])
        _run([python, "-c", _CHECK, str(venv)])
        draft = venv / f"{STAMP}.tmp"
        draft.write_text(json.dumps(request["stamp"]))
        os.sync()
        draft.rename(venv / STAMP)
    except BaseException:
        _remove(venv)
        if old.is_dir():
            old.rename(venv)
        raise
    finally:
        _remove(old)
        shutil.rmtree(wheels, ignore_errors=True)
    _link(Path.home() / ".local" / "bin" / "edge-tprune", venv / "bin" / "edge-tprune")
    return {"installed": True}


def _check_places(configuration: str) -> None:
    """Refuses a configuration of pip's (`pip config list`) that would put packages elsewhere, over a person's.

    Raises:
        Refused: naming the setting.
    """
    for line in configuration.splitlines():
        setting, _, place = line.partition("=")
        if re.fullmatch(r"(global|install)\.(target|prefix|root|home)", setting) and place.strip("'\""):
            raise Refused(
                f"pip is set up on the board to put packages into {place} ({setting}): take that out of the file that 'pip config debug' shows"
            )


#: Where the agent came to lie, whatever pip did.
_CHECK = """
import importlib.util, os, sys
del sys.path[0]  # the current directory
venv, found = os.path.realpath(sys.argv[1]), importlib.util.find_spec("edge_tprune")
if found is None or os.path.commonpath([os.path.realpath(found.origin), venv]) != venv:
    sys.exit(f"error: pip put it elsewhere than {venv}: see 'pip config list' on the board")
import edge_tprune.agent.profile
"""


def _link(link: Path, program: Path) -> None:
    """Puts the command on the user's path, unless something else of that name is there."""
    with contextlib.suppress(OSError):
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and not link.exists() and ".edge-tprune" in link.readlink().parts:
            link.unlink()  # ours, of an older place
        link.symlink_to(program)


def _run(command: list[str]) -> str:
    """Runs a program to its end, and returns what it wrote.

    Raises:
        Refused: it failed; with the line of its output that says why.
    """
    unset = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"PIP_USER": "0", "PIP_DRY_RUN": "0"}  # whatever a pip.conf says: packages of the user's are not touched
    with tempfile.TemporaryFile() as out:  # the end of a pipe would not come where something is left running
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False
        )
        out.seek(0)
        words = out.read().decode(errors="replace")
    if done.returncode == 0:
        return words
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    if any("No space left" in line for line in lines):
        raise Refused("no space left on the board's disk while installing the agent")
    errors = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {done.returncode}"]
    raise Refused(f"the agent could not be installed on the board: {errors[-1]}")


# --- running the agent


def run(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Runs the agent with `arguments`; ends it when the host is gone.

    Its stderr goes to the host as it comes (lines {"stderr": text}), its stdout comes with the answer. With `alone`, it waits a
    little for another such run to end, and refuses to start beside it: two would disturb each other. With `bundle` ({name, fingerprint})
    it refuses where that is another one by then.
    """
    program = [str(home / "venv" / "bin" / "python"), "-m", "edge_tprune", *request["arguments"]]
    environment = {**os.environ, **request.get("environment", {}), "PYTHONSAFEPATH": "1"}
    # TensorRT may be found by it, but no other edge_tprune.
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    environment["PYTHONPATH"] = os.pathsep.join(place for place in places if not Path(place, "edge_tprune").exists())
    with _locked(home, RUNNING, BUSY) if request.get("alone") else contextlib.nullcontext() as lock:
        if "bundle" in request:
            _check_same(home, **request["bundle"])
        pipe = subprocess.PIPE
        own = [] if lock is None else [lock]  # who measures holds the lock, even if this program is killed
        child = subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            cwd=home,
            env=environment,
            pass_fds=own,
            preexec_fn=_end_with_parent,
        )
        out, gone = _supervise(child, stdin, stdout)
    if gone:
        raise Refused("the connection was lost, so what ran on the board was ended")
    return {"code": child.returncode, "stdout": out.decode(errors="replace")}


def _check_same(home: Path, name: str, fingerprint: str) -> None:
    manifest = _read_json(home / "bundles" / _name(name) / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("fingerprint") != fingerprint:
        raise Refused(
            f"bundle {name} was replaced there by another deployment before it was measured. Repeat the command, or give one of the directories another name"
        )


def _end_with_parent() -> None:
    """In a child before it becomes its program: Linux ends it when this program is gone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _supervise(child: subprocess.Popen[bytes], stdin: IO[bytes], stdout: IO[bytes]) -> tuple[bytes, bool]:
    """Passes on what the child writes until it ends. Returns (its stdout, whether the host went away)."""
    assert child.stdout is not None
    assert child.stderr is not None
    out, err, host = child.stdout.fileno(), child.stderr.fileno(), stdin.fileno()
    collected: list[bytes] = []
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # a block may end within a character
    watched, heard, stop_at = {out, err, host}, time.monotonic(), None
    while watched & {out, err}:
        has_ended = child.poll() is not None  # then all that it wrote is in the pipes, which a descendant may keep open
        ready, _, _ = select.select(list(watched), [], [], 0 if has_ended else 1)
        if has_ended and not {out, err} & set(ready):
            break
        gone = time.monotonic() - heard > LOST_S
        for handle in ready:
            block = os.read(handle, CHUNK)
            if not block:
                watched.discard(handle)
                gone = gone or handle == host
            elif handle == host:
                heard = time.monotonic()
            elif handle == out:
                collected.append(block)
            elif stop_at is None:
                try:
                    answer_line(stdout, {"stderr": decode(block)})
                except OSError:
                    gone = True
        if gone and stop_at is None:
            child.terminate()
            stop_at = time.monotonic() + STOP_S
        if stop_at is not None and time.monotonic() > stop_at:
            child.kill()
    child.wait()
    return b"".join(collected), stop_at is not None


@contextlib.contextmanager
def _locked(home: Path, lock: str, busy: str) -> Iterator[int]:
    """Holds a lock, and gives its file. Waits for its holder as long as one whose connection just broke may take to end, then refuses."""
    handle = os.open(home / lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + 2 * STOP_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Refused(busy) from None
                time.sleep(0.2)
        yield handle
    finally:
        os.close(handle)


# --- sending files back


def listing(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Every regular file below `directory`: {path: bytes}; links and special files are left out."""
    base = home.joinpath(*_inside(request["directory"]))
    return {"files": {str(file.relative_to(base)): _size(file) for file in _regular_files(base)}}


def send(home: Path, request: Json, stdin: IO[bytes], stdout: IO[bytes]) -> Json:
    """Sends `paths` ({path: bytes}) below `directory` as frames {"path", "bytes", "sha256"}, each followed by its bytes.

    A file that still grows is sent as long as it was when it was listed.
    """
    base = home.joinpath(*_inside(request["directory"]))
    for path, size in request["paths"].items():
        file = base.joinpath(*_inside(path))
        digest = sha256(file, size)
        with _writing, file.open("rb") as stream:
            answer_line(stdout, {"path": path, "bytes": size, "sha256": digest})
            for block in blocks(stream, size):
                stdout.write(block)
    return {"sent": len(request["paths"])}


# --- names and files


def _inside(path: str) -> list[str]:
    """The parts of a relative path that stays where it is put.

    Raises:
        Refused: it would not.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise Refused(f"not a path inside a directory: {path!r}")
    return parts


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Refused(f"not a usable name: {name!r}")
    return name


def _directory(home: Path, name: str) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    (home / name).mkdir(exist_ok=True)
    return home / name


def _below(directory: Path) -> list[Path]:
    """All that is below a directory and is no directory itself, sorted.

    Raises:
        Refused: a directory cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise Refused(f"{error.filename} on the board cannot be read: {error.strerror}. Move it away, or give access to it")

    found: list[Path] = []
    for folder, inside, names in os.walk(directory, onerror=refuse) if directory.exists() else ():
        found += [path for path in (Path(folder, name) for name in (*names, *inside)) if path.is_symlink() or not path.is_dir()]
    return sorted(found)


def _regular_files(directory: Path) -> list[Path]:
    """Those below a directory whose paths are text: no file of ours has another, and an answer could not hold it."""
    return [file for file in _below(directory) if _is_text(str(file)) and file.is_file() and not file.is_symlink()]


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(file: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return file.lstat().st_size if file.is_file() and not file.is_symlink() else 0


def _sync(directory: Path) -> None:
    """Makes what was renamed or linked in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path, size: int | None = None) -> str:
    """SHA-256 of a file's bytes, or of its first `size`, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for block in blocks(stream, size):
            digest.update(block)
    return digest.hexdigest()


def blocks(stream: IO[bytes], size: int | None) -> Iterator[bytes]:
    """The next `size` bytes of a stream, or all that it has, in pieces; fewer where it ends."""
    while size is None or size > 0:
        block = stream.read(CHUNK if size is None else min(size, CHUNK))
        if not block:
            return
        size = None if size is None else size - len(block)
        yield block


COMMANDS: dict[str, Callable[[Path, Json, IO[bytes], IO[bytes]], Json]] = {
    "check": check,
    "wanted": wanted,
    "receive": receive,
    "bundle": bundle,
    "install": install,
    "run": run,
    "list": listing,
    "send": send,
}

if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
