"""Mean power of one window, from the readings that saw nothing else. The method is explained in `energy`."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from edge_tprune.record.meter import Meter

LEAST_LEVELS = 4  #: distinct values from which on a sensor's noise can be separated from its step
_LEAP = 10.0  #: between two reads, a counter that rises this many times faster than usual is faulty


@dataclass(frozen=True)
class Power:
    """Mean power of one window, from the readings that saw nothing else."""

    mean_w: float
    variance: float  #: of a single new value, W^2
    values: float  #: how many new values the sensor showed: independent ones, not readings
    levels: int  #: distinct values, counted up to `LEAST_LEVELS`
    seconds: float  #: from the first to the last reading
    begin_ns: int
    end_ns: int
    leaps: int = 0  #: pairs of readings of a counter that were left out

    @property
    def middle_ns(self) -> float:
        """The time the mean belongs to."""
        return (self.begin_ns + self.end_ns) / 2


class PowerWindow:
    """Takes in the readings of one window and gives its power. Holds no readings of a power sensor.

    Args:
        meter: what is read.
        load_begin_ns: since when the machine does what it does in this window.
        begin_ns: begin of the window.
        end_ns: end of the window, and of what the machine does.
    """

    def __init__(self, meter: Meter, load_begin_ns: int, begin_ns: int, end_ns: int) -> None:
        self._meter = meter
        self._from_ns = max(begin_ns, load_begin_ns + round(meter.settle_s * 1e9))
        self._to_ns = end_ns
        self._count = 0
        self._mean = self._squares = 0.0
        self._levels: set[float] = set()
        self._first_ns = self._last_ns = 0
        self._updates: list[tuple[int, float]] = []  #: of a counter: (t, J) where it changed

    def add(self, t_ns: int, read_ns: int, value: float) -> None:
        """One reading, in mW or mJ: stamped with the middle of a read that took `read_ns`. Readings come in order of time."""
        slow = read_ns > 0.5e9 * self._meter.update_s  # when it was taken is not known well enough
        if slow or t_ns - read_ns // 2 < self._from_ns or t_ns + read_ns // 2 > self._to_ns:
            return
        value /= 1e3
        if self._meter.counter:
            if not self._updates or value != self._updates[-1][1]:
                self._updates.append((t_ns, value))
            return
        self._count += 1
        deviation = value - self._mean
        self._mean += deviation / self._count
        self._squares += deviation * (value - self._mean)
        if len(self._levels) < LEAST_LEVELS:
            self._levels.add(value)
        self._first_ns = self._first_ns or t_ns
        self._last_ns = t_ns

    def power(self) -> Power | None:
        """None where no reading can have seen this window alone."""
        if self._meter.counter:
            return self._counter_power()
        if not self._count:
            return None
        seconds = (self._last_ns - self._first_ns) / 1e9
        return Power(
            mean_w=self._mean,
            variance=self._squares / (self._count - 1) if self._count > 1 else 0.0,
            values=min(self._count, 1 + seconds / self._meter.update_s),
            levels=len(self._levels),
            seconds=seconds,
            begin_ns=self._first_ns,
            end_ns=self._last_ns,
        )

    def _counter_power(self) -> Power | None:
        pairs = [
            ((t_ns - before_ns) / 1e9, joule - before)
            for (before_ns, before), (t_ns, joule) in zip(self._updates, self._updates[1:])
        ]
        usual = median([energy / seconds for seconds, energy in pairs if energy > 0] or [0.0])
        kept = [(seconds, energy) for seconds, energy in pairs if 0 < energy <= _LEAP * usual * seconds]
        if not kept:
            return None
        total_s, total_j = sum(seconds for seconds, _ in kept), sum(energy for _, energy in kept)
        mean = total_j / total_s
        spread = sum(seconds * (energy / seconds - mean) ** 2 for seconds, energy in kept) / total_s
        return Power(
            mean_w=mean,
            variance=spread * len(kept) / max(1, len(kept) - 1),
            values=len(kept),
            levels=LEAST_LEVELS,
            seconds=total_s,
            begin_ns=self._updates[0][0],
            end_ns=self._updates[-1][0],
            leaps=len(pairs) - len(kept),
        )
