"""Every sensor that can be read on this machine."""

from __future__ import annotations

import time
from pathlib import Path

from edge_tprune.telemetry.boards import Board, identify
from edge_tprune.telemetry.gpu import gpu_source
from edge_tprune.telemetry.host import HostSource
from edge_tprune.telemetry.jtop import jtop_source
from edge_tprune.telemetry.nvml import nvml_sources
from edge_tprune.telemetry.portable import psutil_source
from edge_tprune.telemetry.rails import rails_source
from edge_tprune.telemetry.rapl import rapl_source
from edge_tprune.telemetry.source import Clock, Source
from edge_tprune.telemetry.tegrastats import tegrastats_source
from edge_tprune.telemetry.thermal import events_source, thermal_source


def open_sources(root: Path = Path("/"), *, clock_ns: Clock = time.perf_counter_ns, pid: int | None = None) -> list[Source]:
    """Every source found on this machine, the most trusted first: of two that give the same metric, take the first.

    Files come first: they are nearest to the sensors and cost least. tegrastats and jtop are programs that read the same files
    less often, and start only where no file reports a rail. Sources that ask the running system instead of files (these two, NVML, psutil)
    are left out under another root.

    Args:
        root: the directory that holds the system's `proc`, `sys` and `etc`.
        clock_ns: the monotonic clock that stamps the readings.
        pid: the process whose memory and CPU share are the measurement's own; by default this one.
    """
    board = identify(root)
    running = root == Path("/")
    rails = rails_source(root, board, clock_ns)
    sources: list[Source | None] = [
        rails,
        gpu_source(root, clock_ns),
        thermal_source(root, clock_ns),
        events_source(root, clock_ns),
        HostSource(root, clock_ns, pid),
    ]
    if running and not rails.metrics:
        sources.append(_program(board, clock_ns))
    if running:
        sources += nvml_sources(clock_ns)
    sources.append(rapl_source(root, clock_ns))
    if running and not Path("/proc/meminfo").exists():
        sources.append(psutil_source(clock_ns))
    return [source for source in sources if source is not None and source.metrics]


def _program(board: Board, clock_ns: Clock) -> Source | None:
    """The first program that reports something."""
    for open_program in (tegrastats_source, jtop_source):
        source = open_program(board, clock_ns=clock_ns)
        if source is not None and source.metrics:
            return source
    return None
