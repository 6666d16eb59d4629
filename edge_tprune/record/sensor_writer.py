"""Writing a profile's sensors.jsonl. Loads no numpy: it runs in the process that samples, beside what is measured."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edge_tprune.record.lines import SAMPLES, SENSORS, LogLine, SamplerLine
from edge_tprune.record.log import LogWriter, clock_ns


class SensorRecorder:
    """The writing end of a profile's sensors.jsonl, in the process that samples; it syncs the samples beside it, too.

    A full disk loses a line whole. The measuring process, which writes to the same disk, says so.

    Raises:
        OSError: the profile at `path` cannot be written.
    """

    def __init__(self, path: Path, session: int) -> None:
        # A sampler whose parent was killed needs a moment to notice, so that its successor waits.
        self._log = LogWriter(path / SENSORS, os.O_CREAT, wait=True)
        self._samples = os.open(path / SAMPLES, os.O_RDONLY)
        self.append(SamplerLine(t_ns=clock_ns(), session=session, pid=os.getpid()))
        self.sync()

    def append(self, line: LogLine) -> None:
        """Adds one line."""
        with suppress(OSError):
            self._log.append(line)

    def sync(self) -> None:
        """Sends both logs to the disk, so that the measuring process need not wait for it."""
        with suppress(OSError):
            self._log.sync()
            os.fsync(self._samples)
