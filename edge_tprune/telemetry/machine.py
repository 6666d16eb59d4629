"""Everything that can be read on this machine: which board it is, its sensors, and the state it is in."""

from __future__ import annotations

import time
from pathlib import Path

from edge_tprune.telemetry.host import HostSource
from edge_tprune.telemetry.source import Clock, Source


def open_sources(root: Path = Path("/"), *, clock_ns: Clock = time.perf_counter_ns, pid: int | None = None) -> list[Source]:
    """Every source found on this machine, the most trusted first: of two that give the same metric, take the first.

    Args:
        root: the directory that holds the system's `proc`, `sys` and `etc`.
        clock_ns: the monotonic clock that stamps the readings.
        pid: the process whose memory and CPU share are the measurement's own; by default this one.
    """
    sources: list[Source] = [HostSource(root, clock_ns, pid)]
    return [source for source in sources if source.metrics]
