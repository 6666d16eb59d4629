"""Writing a profile directory; `reader` reads it. The format is described in profiles/README.md.

A directory appears under its final name with `run.json` and the first line of `samples.jsonl` in it, and every line after that
is one write: whenever the process dies, what was measured until then can be read. Nothing that was written is held in memory.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edge_tprune.bundle.fallback import Fallback
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, sync_directory
from edge_tprune.record.document import KIND, RunDocument
from edge_tprune.record.lines import SAMPLES, CheckLine, LogLine, ResumeLine, StartLine
from edge_tprune.record.log import LogWriter, clock_ns
from edge_tprune.record.summary import SUMMARY
from edge_tprune.schedule.latency import LATENCY


class Recorder:
    """The writing end of one profile directory. Made by `Recorder.create`; a context manager."""

    def __init__(self, path: Path, log: LogWriter) -> None:
        self.path = path
        self._log = log

    @classmethod
    def create(cls, out: Path, name: str, document: RunDocument) -> Recorder:
        """Makes `out/<name>` (or `<name>-2`, ... where that exists) with `document` as its run.json.

        Raises:
            UserError: `out` cannot be written.
            ValueError: the document does not fit its own type.
        """
        draft = out / f".{name}.{document.run_id}.tmp"
        with clear_write_errors(out):
            draft.mkdir(parents=True)
            try:
                KIND.write(draft, document)
                recorder = cls(draft, LogWriter(draft / SAMPLES, os.O_CREAT | os.O_EXCL))
                try:
                    recorder.append(StartLine(t_ns=clock_ns(), utc=_utc_now(), run_id=document.run_id))
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
        """Opens a run that ended early; nobody else writes it from now on. `begin_session` goes on with it.

        Raises:
            UserError: the run is still going on, or its directory cannot be written.
        """
        with clear_write_errors(path / SAMPLES):
            return cls(path, LogWriter(path / SAMPLES))

    def begin_session(self) -> None:
        """Goes on with a run that was opened again.

        Raises:
            UserError: its directory cannot be written.
        """
        with clear_write_errors(self.path / SUMMARY):
            for name in (SUMMARY, LATENCY):  # they are of the sessions before, and this one may be killed, too
                (self.path / name).unlink(missing_ok=True)
        self.append(ResumeLine(t_ns=clock_ns(), utc=_utc_now()))

    def append(self, line: LogLine | CheckLine, *, sync: bool = True) -> None:
        """Adds one line to samples.jsonl.

        When this returns, the line survives the process; with `sync` it is on the disk and survives a power cut too.

        Raises:
            UserError: no space is left. The lines before this one stay whole.
        """
        with clear_write_errors(self.path / SAMPLES):
            self._log.append(line)
            if sync:
                self._log.sync()

    def check_in_place(self) -> None:
        """Makes sure that what is written will be found.

        Raises:
            UserError: samples.jsonl was removed, moved away or replaced since it was opened.
        """
        if not self._log.is_at(self.path / SAMPLES):
            raise UserError(f"{self.path / SAMPLES} was removed or replaced while it was being written. Profile again")

    def note_fallbacks(self, fallbacks: Mapping[str, Fallback]) -> None:
        """Says in run.json which budgets do not run as their artifact says. Nothing is written where it says so already.

        Raises:
            UserError: no space is left.
        """
        document = KIND.read(self.path)
        budgets = tuple(msgspec.structs.replace(b, fallback=fallbacks.get(b.name)) for b in document.budgets)
        if budgets != document.budgets:
            with clear_write_errors(self.path):
                KIND.write(self.path, msgspec.structs.replace(document, budgets=budgets))

    def close(self) -> None:
        """Closes samples.jsonl. A second call does nothing."""
        self._log.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def directory_name(started: datetime, bundle: str, hostname: str) -> str:
    """'<UTC time>-<bundle>-<hostname>', safe as a file name."""
    safe = [re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "unnamed" for text in (bundle, hostname)]
    return "-".join([started.strftime("%Y%m%dT%H%M%SZ"), *safe])


def _utc_now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _rename_to_new(draft: Path, out: Path, name: str) -> Path:
    """Renames the directory `draft` to the first free of `out/name`, `out/name-2`, ..., without replacing anything."""
    count = 1
    while True:
        path = out / (name if count == 1 else f"{name}-{count}")
        count += 1
        if path.exists():
            continue
        try:
            return draft.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or not os.path.lexists(path):
                raise
