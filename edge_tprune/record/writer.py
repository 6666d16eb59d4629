"""Writing a profile directory; `run` reads it. The format is described in profiles/README.md.

A directory appears under its final name with `run.json` and the first line of `samples.jsonl` in it, and every line after that
is one write: whenever the process dies, what was measured until then can be read. Nothing that was written is held in memory.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_tprune.documents import UntypedDocumentKind as DocumentKind
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, cut_last_line, sync_directory, write_json

FORMAT = "edge-tprune-profile"
VERSION = 2
RUN = "run.json"
SAMPLES = "samples.jsonl"
SENSORS = "sensors.jsonl"
KIND = DocumentKind(
    noun="profile",
    format=FORMAT,
    version=VERSION,
    make="Make one with: edge-tprune profile",
    mend="Copy the profile again",
    file=RUN,
    schema=Path(__file__).with_name("run.schema.json"),
)
LEAST_INFERENCES = 10  #: of a turn; one that was cut off before so many is not used

#: The clock of every `t_ns`, `start_ns` and `latency_ns`; on Linux the monotonic one, so other processes can stamp with it too.
clock_ns = time.perf_counter_ns


class Recorder:
    """The writing end of one profile directory. Created by `Recorder.create`; a context manager."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @classmethod
    def create(cls, out: Path, name: str, run: dict[str, Any]) -> Recorder:
        """Makes `out/<name>` (or `<name>-2`, ... where that exists) with `run` as its run.json.

        Raises:
            UserError: `out` cannot be written.
        """
        KIND.check(run, out)
        draft = out / f".{name}.{run['run_id']}.tmp"
        with clear_write_errors(out):
            draft.mkdir(parents=True)
            try:
                write_json(draft / RUN, run)
                recorder = cls(draft, _open_locked(draft / SAMPLES, os.O_CREAT | os.O_EXCL))
                try:
                    recorder.append("start", utc=datetime.now(timezone.utc).isoformat())
                    recorder.path = _rename_to_new(draft, out, name)
                except BaseException:
                    recorder.close()
                    raise
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_directory(out)
        return recorder

    @classmethod
    def reopen(cls, path: Path) -> Recorder:
        """Goes on with a run that ended early. What a dying process left of its last line is cut off.

        Raises:
            UserError: the run is still going on, or its directory cannot be written.
        """
        with clear_write_errors(path / SAMPLES):
            recorder = cls(path, _open_locked(path / SAMPLES))
            cut_last_line(recorder._handle)
        recorder.append("resume", utc=datetime.now(timezone.utc).isoformat())
        return recorder

    def append(self, kind: str, t_ns: int | None = None, *, sync: bool = True, **values: Any) -> None:
        """Adds one line to samples.jsonl; `t_ns` is now unless given.

        When this returns, the line survives the process; with `sync` it is on the disk and survives a power cut too.

        Raises:
            UserError: no space is left. The lines before this one stay whole.
        """
        line = {"kind": kind, "t_ns": clock_ns() if t_ns is None else t_ns, **values}
        data = (json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n").encode()
        with clear_write_errors(self.path / SAMPLES):
            size = os.fstat(self._handle).st_size
            try:
                while data:  # once, unless the disk is nearly full
                    data = data[os.write(self._handle, data) :]
                if sync:
                    os.fsync(self._handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._handle, size)
                raise

    def close(self) -> None:
        """Closes samples.jsonl. A second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def directory_name(started: datetime, bundle: str, hostname: str) -> str:
    """'<UTC time>-<bundle>-<hostname>', safe as a file name."""
    safe = [re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "unnamed" for text in (bundle, hostname)]
    return "-".join([started.strftime("%Y%m%dT%H%M%SZ"), *safe])


def _open_locked(file: Path, flags: int = 0) -> int:
    """Opens a file for appending, for this process alone.

    Raises:
        UserError: another process is writing it.
    """
    handle = os.open(file, os.O_RDWR | os.O_APPEND | flags, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise UserError(f"{file.parent} is being written: wait until that run has ended, or stop it") from error
    return handle


def _rename_to_new(draft: Path, out: Path, name: str) -> Path:
    """Renames the directory `draft` to the first free of `out/name`, `out/name-2`, ...; never onto something."""
    count = 1
    while True:
        path = out / (name if count == 1 else f"{name}-{count}")
        count += 1
        if path.exists():
            continue
        try:
            return draft.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
