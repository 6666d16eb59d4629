"""Profiles from a board to this machine. What a board sends is not trusted: names, sizes and hashes are checked before use."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edge_tprune.deploy import remote
from edge_tprune.deploy.answers import Done, Listing
from edge_tprune.deploy.ssh import Connection
from edge_tprune.errors import UserError
from edge_tprune.files import atomic_writer, clear_write_errors

LIMIT_BYTES = 4_000_000_000  #: of one collection
LIMIT_FILES = 20_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}")
_DEPTH = 4  #: a profile is a flat directory; what its writer may add lies little deeper


def collect(connection: Connection, out: Path) -> list[Path]:
    """Brings the board's profiles into `out`, and returns those that are new or have grown.

    Each file appears whole or not at all, readable by the user alone. What its writer has not finished (hidden files) stays there.

    Raises:
        UserError: the board offers something that does not belong into a profile, or more than `LIMIT_BYTES` (nothing is written then); or a
            file arrived damaged.
    """
    files = check_listing(connection.call("list", Listing, directory="profiles").files, str(connection.target))
    wanted = _wanted(files, out)
    if not wanted:
        return []
    need, free = sum(wanted.values()), _free(out)
    if need > free:
        raise UserError(
            f"{out}: the profiles of {connection.target} take {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free here"
        )
    receiver = Receiver(out, wanted, str(connection.target))
    connection.call("send", Done, on_frame=receiver, directory="profiles", paths=wanted)
    if receiver.missing:
        raise UserError(f"{connection.target} did not send {next(iter(receiver.missing))}, which it has. Repeat the command")
    return sorted({out / PurePosixPath(path).parts[0] for path in wanted})


def check_listing(files: Any, who: str) -> dict[str, int]:
    """The listing {path: bytes} without hidden files; refused where it could write outside its directory, or fill the disk.

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
        parts = path.split("/")
        if not 2 <= len(parts) <= _DEPTH or not all(_NAME.fullmatch(part) for part in parts):
            raise UserError(f"{who} offers {path!r}, which is not a profile's file. Nothing was collected")
    if len(shown) > LIMIT_FILES or sum(shown.values()) > LIMIT_BYTES:
        raise UserError(
            f"{who} offers {len(shown)} files of {sum(shown.values()) / 1e9:.1f} GB in its profiles, more than is collected at once. "
            "Remove old ones there"
        )
    return shown


class Receiver:
    """Writes the announced files of one collection, checked; anything else is refused."""

    def __init__(self, out: Path, wanted: dict[str, int], who: str) -> None:
        self._out, self._wanted, self._who = out, dict(wanted), who

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
        if not isinstance(path, str) or self._wanted.pop(path, None) != size:
            raise UserError(f"{self._who} sent a file that it had not announced: {path!r}")
        target = self._out / path
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


def _wanted(files: dict[str, int], out: Path) -> dict[str, int]:
    """What must be fetched: files that are not here in this size, and what was derived from them.

    Raw samples only ever grow; the small files beside them are rewritten as a whole, perhaps in the same size.
    """
    changed = {path for path, size in files.items() if not (out / path).is_file() or (out / path).stat().st_size != size}
    profiles = {path.partition("/")[0] for path in changed}
    derived = {path for path in files if path.partition("/")[0] in profiles and not path.endswith(".jsonl")}
    return {path: files[path] for path in sorted(changed | derived)}


def _free(out: Path) -> int:
    existing = next(path for path in (out.resolve(), *out.resolve().parents) if path.is_dir())
    return shutil.disk_usage(existing).free
