"""Profiles from a board to this machine. What a board sends is not trusted: names, sizes and hashes are checked before use."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_tprune.agent.accuracy import ACCURACY
from edge_tprune.deploy import remote
from edge_tprune.deploy.answers import Done, Listing
from edge_tprune.deploy.ssh import Connection
from edge_tprune.documents import LARGEST_BYTES, InvalidDocument, decode
from edge_tprune.errors import UserError
from edge_tprune.files import atomic_writer, clear_write_errors, read_regular
from edge_tprune.record.document import RUN
from edge_tprune.record.lines import SAMPLES, SENSORS
from edge_tprune.record.summary import KIND as SUMMARY_KIND
from edge_tprune.record.summary import SUMMARY
from edge_tprune.record.trace import TRACE
from edge_tprune.schedule.latency import KIND as LATENCY_KIND
from edge_tprune.schedule.latency import LATENCY

FILES = frozenset((RUN, SAMPLES, SENSORS, SUMMARY, TRACE, ACCURACY, LATENCY))  #: that a profile may have
LIMIT_BYTES = 4_000_000_000  #: of one collection
LIMIT_FILES = 20_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}")
_DEPTH = 4  #: of what may lie on a board beside profiles, which are flat


def collect(connection: Connection, out: Path, say: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Brings the board's profiles into `out`, and returns those that are new or have grown.

    Each file appears whole or not at all, readable by the user alone. What its writer has not finished (hidden files) stays there, and so
    does what is no profile's. A profile is called after the second in which it began and its board's host name: where another run, or anything
    else, has that name here, NAME-2 is taken.
    Other boards' profiles may come into `out` at the same time, from other threads and processes. `say` takes what stays there because of its
    name.

    Raises:
        UserError: the board offers something that does not belong into a profile, or more than `LIMIT_BYTES` (nothing is written then); or a
            file arrived damaged.
    """
    who = str(connection.target)
    listing = connection.call("list", Listing, directory="profiles").files
    files = check_listing(listing, who)
    for name in sorted({_profile_of(path) for path in listing if path.endswith(f"/{RUN}")}):
        if not name.startswith(".") and not _NAME.fullmatch(name):
            say(f"profile {name!r} stays there: rename it, with letters, digits and . _ + - alone")
    names = sorted(set(map(_profile_of, _wanted(files, out, {}))))
    files = {path: size for path, size in files.items() if _profile_of(path) in names}
    with tempfile.TemporaryDirectory(prefix="etp-") as draft:
        runs = _fetch_runs(connection, files, names, Path(draft))
        places = {name: _place_of(out, name, _run_id(runs[name])) for name in names}
        wanted = _wanted(files, out, places)
        need, free = sum(wanted.values()), _free(out)
        if need > free:
            raise UserError(f"{out}: the profiles of {who} take {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free here")
        places = {name: _claim(out, name, runs[name]) for name in sorted(set(map(_profile_of, wanted)))}
    wanted = _wanted({path: size for path, size in files.items() if _profile_of(path) in places}, out, places)
    _remove_derived({path for path in wanted if path.endswith(f"/{SAMPLES}")}, files, out, places)
    if wanted:
        _fetch(connection, Receiver(out, wanted, who, places))
    return sorted(places.values())


def _fetch(connection: Connection, receiver: Receiver) -> None:
    """Asks for what a receiver still misses, and gives it that."""
    connection.call("send", Done, on_frame=receiver, directory="profiles", paths=dict(receiver.missing))
    if receiver.missing:
        raise UserError(f"{connection.target} did not send {next(iter(receiver.missing))}, which it has. Repeat the command")


def _remove_derived(samples: Set[str], files: Mapping[str, int], out: Path, places: Mapping[str, Path]) -> None:
    """Removes what was derived here, or on the board, from samples that have grown since, where the board has nothing newer."""
    for path in samples:
        for file, kind in ((SUMMARY, SUMMARY_KIND), (LATENCY, LATENCY_KIND)):
            name = f"{_profile_of(path)}/{file}"
            with suppress(UserError, OSError):  # none there, or not ours
                if name not in files:
                    kind.read(_target(path, out, places).parent)
                    _target(name, out, places).unlink()


def _fetch_runs(connection: Connection, files: Mapping[str, int], names: Sequence[str], draft: Path) -> dict[str, Path]:
    """Brings the run.json of each profile into `draft`: the files by the profile's name."""
    wanted = {(path := f"{name}/{RUN}"): min(files[path], LARGEST_BYTES) for name in names}
    if wanted:
        _fetch(connection, Receiver(draft, dict(wanted), str(connection.target)))
    return {_profile_of(path): draft / path for path in wanted}


def _place_of(out: Path, name: str, run: str | None) -> Path:
    """Where a board's profile has its place here: at that of the same run, or else at the first that nothing else has."""
    place, number = out / name, 1
    while not _may_hold(place, run):
        number += 1
        place = out / f"{name}-{number}"
    return place


def _may_hold(place: Path, run: str | None) -> bool:
    """Whether `place` is free, or has this run already. A run.json that is damaged is to be replaced, if a profile is all that lies there."""
    if not os.path.lexists(place):
        return True
    if not place.is_dir():
        return False
    if (here := _run_id(place / RUN)) is not None:
        return here == run
    names = {entry.name for entry in place.iterdir() if not entry.name.startswith(".")}
    return not names or (RUN in names and names <= FILES)


def _claim(out: Path, name: str, file: Path) -> Path:
    """`_place_of`, made, with the profile's run.json in it: whoever looks from now on sees whose place it is.

    Args:
        out: where profiles are collected.
        name: of the profile on the board.
        file: its run.json.
    """
    run = _run_id(file)
    while True:
        place = _place_of(out, name, run)
        if os.path.lexists(place / RUN):
            if _run_id(place / RUN) in (run, None):  # None: damaged, and to be replaced
                return place
            continue  # another run's since `_place_of` looked
        with clear_write_errors(place):
            _make_private(out, place)
            handle, draft = tempfile.mkstemp(prefix=f".{RUN}.", suffix=".tmp", dir=place)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(file.read_bytes())
                with suppress(FileExistsError):  # another process was faster, maybe for another board: look again
                    os.link(draft, place / RUN)
            finally:
                Path(draft).unlink()


class _Run(msgspec.Struct):
    run_id: str


def _run_id(file: Path) -> str | None:
    """Which run a run.json is of; None where it does not say, or is not there."""
    try:
        return decode(read_regular(file, LARGEST_BYTES), _Run).run_id
    except (OSError, InvalidDocument):
        return None


def _profile_of(path: str) -> str:
    return path.partition("/")[0]


def _target(path: str, out: Path, places: Mapping[str, Path]) -> Path:
    """Where a board's file or profile has its place here."""
    name, _, rest = path.partition("/")
    return places.get(name, out / name) / rest


def check_listing(files: Any, who: str) -> dict[str, int]:
    """The files of profiles in a listing {path: bytes}; refused where it could write outside its directory, or fill the disk.

    Raises:
        UserError: naming what is wrong.
    """
    if not isinstance(files, dict) or not all(
        isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in files.values()
    ):
        raise UserError(f"{who} sent no list of files")
    shown: dict[str, int] = {
        path: size
        for path, size in files.items()
        if not any(part.startswith(".") and part.strip(".") for part in path.split("/"))
    }
    for path in shown:
        if not {"", ".", ".."}.isdisjoint(path.split("/")) or len(path.split("/")) > _DEPTH:
            raise UserError(f"{who} offers {path!r}, which is not a profile's file. Nothing was collected")
    shown = {path: size for path, size in shown.items() if "/" in path and all(map(_NAME.fullmatch, path.split("/")))}
    if len(shown) > LIMIT_FILES or sum(shown.values()) > LIMIT_BYTES:
        raise UserError(
            f"{who} offers {len(shown)} files of {sum(shown.values()) / 1e9:.1f} GB in its profiles, more than is collected at once. "
            "Remove old ones there"
        )
    profiles = {_profile_of(path) for path in shown if path == f"{_profile_of(path)}/{RUN}"}
    return {path: size for path, size in shown.items() if _profile_of(path) in profiles and path.partition("/")[2] in FILES}


class Receiver:
    """Writes the announced files of one collection, checked; anything else is refused."""

    def __init__(self, out: Path, wanted: dict[str, int], who: str, places: Mapping[str, Path] | None = None) -> None:
        self._out, self._wanted, self._who, self._places = out, dict(wanted), who, places or {}

    @property
    def missing(self) -> dict[str, int]:
        """What was announced and did not come."""
        return self._wanted

    def __call__(self, frame: remote.Json, stream: IO[bytes]) -> None:
        """Takes one file from `stream`.

        Raises:
            UserError: it was not announced, is not what its hash says, or cannot be written here.
        """
        path, size = frame.get("path"), frame.get("bytes")
        if not isinstance(path, str) or type(size) is not int or self._wanted.pop(path, None) != size:
            raise UserError(f"{self._who} sent a file that it had not announced: {path!r}")
        target = _target(path, self._out, self._places)
        with clear_write_errors(target):
            _make_private(self._out, target.parent)
        with atomic_writer(target) as draft:
            digest, received = hashlib.sha256(), 0
            for block in remote.blocks(stream, size):
                digest.update(block)
                received += len(block)
                draft.write(block)
            if received != size or digest.hexdigest() != frame.get("sha256"):
                raise UserError(f"{self._who}: {path} arrived damaged. Repeat the command")
        target.chmod(0o600)


def _make_private(out: Path, directory: Path) -> None:
    """Makes `directory` below `out`, which must not lead elsewhere through a symbolic link."""
    out.mkdir(parents=True, exist_ok=True)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not directory.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{directory} leads out of {out} through a symbolic link. Nothing is written there")


def _wanted(files: dict[str, int], out: Path, places: Mapping[str, Path]) -> dict[str, int]:
    """What must be fetched: files that are not here in this size, and what was derived from them.

    Raw samples only ever grow; the small files beside them are rewritten as a whole, perhaps in the same size. Raw samples come last: a
    profile whose collection was cut off before then still lacks some of them, and all of it is fetched again. Samples that are longer here, in
    the place of the same run, were damaged on the board, and are kept.
    """
    here = {path: _size(_target(path, out, places)) for path in files}
    longer = (
        {path for path, size in files.items() if path.endswith(".jsonl") and (here[path] or 0) > size} if places else set[str]()
    )
    changed = {path for path, size in files.items() if here[path] != size} - longer
    profiles = set(map(_profile_of, changed))
    derived = {path for path in files if _profile_of(path) in profiles and not path.endswith(".jsonl")}
    raw_last = sorted((changed | derived) - longer, key=lambda path: (path.endswith(".jsonl"), path))
    return {path: files[path] for path in raw_last}


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _free(out: Path) -> int:
    try:
        place = out.resolve()
    except RuntimeError as error:  # before Python 3.13; after it, the directory cannot be made
        raise UserError(f"{out} cannot be written: its symbolic links lead in a circle. Choose another directory") from error
    existing = next(path for path in (place, *place.parents) if path.is_dir())
    return shutil.disk_usage(existing).free
