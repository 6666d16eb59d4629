"""The meter of a run: the one sensor of the whole device from which power and energy are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_tprune.record.settings import SourceRecord

_ASSUMED_INTERVAL_S = 0.5  #: of a sensor that does not report it: slower than any board's
_INTERVALS_PER_TURN = 10  #: length of a turn before anything is known of the noise


@dataclass(frozen=True)
class Meter:
    """What the energy is computed from."""

    metric: str
    source: str
    counter: bool  #: whether it counts energy (mJ) or shows power (mW)
    period_s: float  #: how often it is read
    interval_s: float | None  #: it has a new value this often, a mean over the time before; None: not known
    step: float | None  #: W, or J for a counter; None: not known
    made_of: str  #: in words
    guess: bool = False  #: whether it is a guess that it measures the whole device

    @property
    def update_s(self) -> float:
        """`interval_s`, or what is assumed."""
        return self.interval_s or _ASSUMED_INTERVAL_S

    @property
    def settle_s(self) -> float:
        """How long after a change of load a reading may still show the time before."""
        return self.update_s if self.counter else 2 * self.update_s

    @property
    def turn_s(self) -> float:
        """A sensible length of turns, before anything is known of the noise: ten new values each."""
        return _INTERVALS_PER_TURN * self.update_s


def choose_meter(sources: Sequence[SourceRecord], runtime: str) -> Meter | None:
    """The meter among the sensors of a run: a counter before power, a trusted source before others.

    A graphics card's own sensor does not see a CPU's work, and a CPU's sensor not a card's: the runtime decides which is none of its.
    """
    on_gpu = runtime.startswith("tensorrt")
    found: list[tuple[int, Meter]] = []
    for source in sources:
        for metric in source.metrics:
            counter = metric.name == "total_energy_mj"
            if not counter and metric.name != "total_power_mw":
                continue
            if source.name.startswith("rapl" if on_gpu else "nvml"):
                continue
            meter = Meter(
                metric=metric.name,
                source=source.name,
                counter=counter,
                period_s=source.period_s or _ASSUMED_INTERVAL_S,
                interval_s=metric.interval_s,
                step=None if metric.step is None else metric.step / 1e3,
                made_of=metric.help,
                guess=metric.guess,
            )
            found.append((int(not counter), meter))
    return min(found, key=lambda pair: pair[0])[1] if found else None
