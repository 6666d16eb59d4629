"""The one place where a bundle is changed after it was built: lock, read again, make sure that it is still the same bundle, write.

Two locks, both files beside the bundle. *Work* is held by what builds (`build`, engine files ahead of time), for minutes, and keeps a second
build out. *Manifest* is held for the moment in which a manifest is replaced, so that an evaluation can store its results while engine
files are built. Who needs both takes *work* first.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edge_tprune.bundle.bundle import Bundle, check_manifest
from edge_tprune.bundle.manifest import KIND, MANIFEST, Manifest
from edge_tprune.errors import UserError
from edge_tprune.files import check_free_space, clear_write_errors, exclusive, write_bytes

_WORK_SECONDS = 10  # a build that finds another at work waits so long for it
_MANIFEST_SECONDS = 120  # a manifest is written in milliseconds; a bundle is moved into place in as many

RESULTS = "eval-"  #: how the names of files with per-image results begin
_ENGINE = r"[^/]+\.sm\d+(\.2)?\.plan"
#: Full match with the names of what commands that were killed leave in a bundle's directory: results, engine files and temporary files.
LEFT_BEHIND = (
    rf"{RESULTS}[0-9a-f]{{12}}\.npz|engines/{_ENGINE}(\.json)?|engines/\.{_ENGINE}\.lock"
    rf"|(engines/)?\.(manifest\.json|{RESULTS}[0-9a-f]{{12}}\.npz|{_ENGINE}(\.json)?)\.\w+\.tmp"
)


@dataclass(frozen=True)
class Revision:
    """What is to become of a bundle."""

    manifest: Manifest
    files: Mapping[str, bytes] = field(default_factory=dict)  #: new files, by relative path; named after their content


@contextmanager
def work_lock(path: Path) -> Iterator[None]:
    """Keeps a second build away from the bundle at `path`.

    Raises:
        UserError: another one is at work on it, or the directory that holds it cannot be written.
    """
    with exclusive(path.resolve(), "build", _WORK_SECONDS):
        yield


@contextmanager
def manifest_lock(path: Path) -> Iterator[None]:
    """Keeps everybody else from replacing the manifest of the bundle at `path`, or the bundle as a whole, for a moment."""
    resolved = path.resolve()
    with exclusive(resolved.with_name(f"{resolved.name}.manifest"), "command", _MANIFEST_SECONDS):
        yield


def revise(bundle: Bundle, change: Callable[[Bundle], Revision]) -> Bundle:
    """Changes a bundle, from what it is now: others may have added to it since it was opened.

    Files that the new manifest no longer names are removed. Whenever this ends, the manifest names files that are whole.

    Args:
        bundle: as it was opened.
        change: is given the bundle as it is now.

    Returns:
        The bundle as it is then.

    Raises:
        UserError: it is another bundle now, so that nothing is written; or it cannot be written.
    """
    with clear_write_errors(bundle.path), manifest_lock(bundle.path):
        now = read_again(bundle)
        revision = change(now)
        check_manifest(bundle.path, revision.manifest)
        try:
            for name, data in revision.files.items():
                write_bytes(bundle.path / name, data)
            KIND.write(bundle.path, revision.manifest)
        except BaseException:
            # The new manifest may be in place already: what it names stays.
            with suppress(UserError):
                _remove(bundle.path, revision.files.keys() - KIND.read(bundle.path).all_files.keys())
            raise
        wanted = revision.manifest.all_files.keys()
        left_behind = {file.name for file in bundle.path.glob(f"{RESULTS}*") if re.fullmatch(LEFT_BEHIND, file.name)}
        _remove(bundle.path, (now.files.keys() | left_behind) - wanted)
        return Bundle(bundle.path, revision.manifest)


def read_again(bundle: Bundle) -> Bundle:
    """The bundle as it is now.

    Raises:
        UserError: it is another one.
    """
    now = Bundle.open(bundle.path, verify=False)
    if now.identity != bundle.identity:
        raise UserError(
            f"bundle {bundle.path} was rebuilt in the meantime: what was found is of the bundle that was there before, and is not stored. "
            "Run the command again"
        )
    return now


def _remove(path: Path, names: set[str]) -> None:
    for name in names:
        with suppress(OSError):
            if (path / name).parent.resolve().is_relative_to(path.resolve()):  # not through a link of a bundle of others
                (path / name).unlink()


def check_revisable(path: Path, more_bytes: int = 0) -> None:
    """Makes sure, before hours are spent, that the bundle at `path` can be written at the end.

    Args:
        path: the bundle.
        more_bytes: what is going to be written.

    Raises:
        UserError: it is read-only, or there is too little space.
    """
    with clear_write_errors(path), manifest_lock(path):
        handle, name = tempfile.mkstemp(prefix=f".{MANIFEST}.", suffix=".tmp", dir=path)
        os.close(handle)
        Path(name).unlink()
        check_free_space(path, more_bytes)
