"""What psutil reports on systems that have no /proc."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from edge_tprune.telemetry.host import AVAILABLE, CLOCK, LOAD, SWAP
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import NOT_REPORTED, CallSensor, Clock, NoReading, SensorSource


def psutil_source(clock_ns: Clock = time.perf_counter_ns) -> SensorSource:
    """The source "psutil": memory, load and clock of the machine."""
    psutil.cpu_percent(None)  # later calls give the load since this one
    asked: list[tuple[SensorMetric, Callable[[], float]]] = [
        (AVAILABLE, lambda: psutil.virtual_memory().available),
        (SWAP, lambda: psutil.swap_memory().used),
        (LOAD, lambda: psutil.cpu_percent(None)),
        (CLOCK, _mhz),
    ]
    return SensorSource("psutil", [CallSensor(metric, ask) for metric, ask in asked], clock_ns)


def _mhz() -> float:
    frequency = psutil.cpu_freq()
    if frequency is None or not frequency.current:
        raise NoReading(NOT_REPORTED)
    return float(frequency.current)
