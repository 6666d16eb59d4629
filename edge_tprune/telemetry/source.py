"""The interface between the measurement and the sensors of a machine.

A source is a group of sensors that are read together; a sensor gives one or more metrics. Whatever goes wrong with one sensor
(the file is gone, the driver refuses, the text is no number) is a gap with its reason in that reading. The other sensors are not
affected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol

from edge_tprune.telemetry.metric import SensorMetric

Clock = Callable[[], int]  #: monotonic time in ns
LARGEST_READING = 1e30  #: of whatever sign; no sensor measures more, and no plot shows more
NOT_REPORTED = "not reported"  #: the reason of a gap where nothing more is known


class NoReading(Exception):
    """Why a metric has no value at the moment, in few words: they are recorded with every reading that lacks it."""


@dataclass(frozen=True)
class Reading:
    """What a source's sensors said at one moment. Every metric of the source is either a value or a gap."""

    t_ns: int  #: the middle of the read
    read_ns: int  #: how long the read took
    values: dict[str, float] = field(default_factory=dict)  #: by metric, always finite
    gaps: dict[str, str] = field(default_factory=dict)  #: metric -> why it has no value


class Source(Protocol):
    """A group of sensors that are read together."""

    @property
    def name(self) -> str:
        """Short and stable: it labels the readings in a profile."""

    @property
    def metrics(self) -> tuple[SensorMetric, ...]:
        """What `read` returns, the same as long as the source is open."""

    def read(self) -> Reading:
        """A value or a gap per metric. Nothing is raised, and nothing reads 0 for missing."""

    def close(self) -> None:
        """Ends what the source started (a process, a connection). Reading afterwards gives gaps. Closing twice is harmless."""


class Sensor(Protocol):
    """What belongs together within a source: it is one file, one chip, one call."""

    @property
    def metrics(self) -> tuple[SensorMetric, ...]:
        """What `read` fills in."""

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        """Adds its metrics to one of the two. May raise: then those it has not added yet become gaps."""


class CallSensor:
    """A sensor that is one call, which gives its one value or raises."""

    def __init__(self, metric: SensorMetric, call: Callable[[], float]) -> None:
        self.metrics: tuple[SensorMetric, ...] = (metric,)
        self._call = call

    def answers(self) -> bool:
        """Whether the call works on this machine: found out by calling."""
        try:
            self._call()
        except Exception:
            return False
        return True

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        """Adds the value."""
        values[self.metrics[0].name] = float(self._call())


class SensorSource:
    """A source made of sensors; here, in one place, every failure of a sensor becomes a gap."""

    def __init__(self, name: str, sensors: Sequence[Sensor], clock_ns: Clock = time.perf_counter_ns) -> None:
        self.name = name
        self.metrics: tuple[SensorMetric, ...] = tuple(metric for sensor in sensors for metric in sensor.metrics)
        self._sensors = tuple(sensors)
        self._clock_ns = clock_ns

    def read(self) -> Reading:
        """A value or a gap per metric."""
        begin_ns = self._clock_ns()
        values: dict[str, float] = {}
        gaps: dict[str, str] = {}
        for sensor in self._sensors:
            reason = NOT_REPORTED
            try:
                sensor.read(values, gaps)
            except Exception as error:  # a driver or a service may fail in any way; the measurement goes on
                reason = gap_reason(error)
            for metric in sensor.metrics:
                if metric.name in values and not _is_plausible(value := values[metric.name]):
                    del values[metric.name]
                    reason = f"implausible: {value!r:.40}"
                if metric.name not in values:
                    gaps.setdefault(metric.name, reason)
        read_ns = self._clock_ns() - begin_ns
        return Reading(begin_ns + read_ns // 2, read_ns, values, gaps)

    def close(self) -> None:
        """Nothing to end."""


def _is_plausible(value: object) -> bool:
    """Whether a sensor's value is a number that can be recorded; one of another's sensor may be anything."""
    try:
        return isinstance(value, Real) and abs(float(value)) <= LARGEST_READING
    except OverflowError:  # a whole number beyond any float
        return False


def gap_reason(error: Exception) -> str:
    """The reason of a gap, from what was raised."""
    if isinstance(error, NoReading):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a person's own kind, whose text fails
        return type(error).__name__
