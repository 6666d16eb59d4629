"""A value and how sure it is, and what follows for the difference and the ratio of two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from msgspec import Meta

from edge_tprune.statistics.distributions import special

Number = Annotated[float, Meta(ge=-1e30, le=1e30)]  # in a document, so that nothing that is made of it is infinite
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Interval:
    """A value and the interval that covers the truth with the stated confidence.

    An end is None where too little is known: as far as anyone can tell, the truth may lie anywhere on that side.
    """

    value: Number
    low: Number | None
    high: Number | None
    confidence: float = 0.95

    @property
    def known(self) -> bool:
        """Whether anything is known about where the truth lies: it has at least one end."""
        return self.low is not None or self.high is not None

    def excludes(self, x: float) -> bool:
        """Whether `x` lies outside the interval. Without ends nothing is excluded."""
        return (self.low is not None and x < self.low) or (self.high is not None and x > self.high)

    def scaled(self, factor: float) -> Interval:
        """The same in another unit: value and ends times a positive `factor`."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Interval(self.value * factor, low, high, self.confidence)

    def within(self, least: float, most: float = math.inf) -> Interval:
        """The same with no end beyond what the value can be: a share has 0 and 100 %."""
        low, high = (None if end is None else min(max(end, least), most) for end in (self.low, self.high))
        return Interval(self.value, low, high, self.confidence)

    def at(self, value: float) -> Interval:
        """The same reach around another value."""
        low, high = (None if end is None else value + end - self.value for end in (self.low, self.high))
        return Interval(value, low, high, self.confidence)

    def to_json(self) -> dict[str, float | None]:
        """{"value", "low", "high", "confidence"}; what is not known, or infinite, is null."""
        return {name: value if value is not None and math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Any) -> Interval | None:
        """The interval `to_json` wrote; None where `value` is null or holds no number."""
        if not isinstance(value, Mapping) or value.get("value") is None:
            return None
        low, high = value.get("low"), value.get("high")
        return cls(
            float(value["value"]),
            None if low is None else float(low),
            None if high is None else float(high),
            float(value.get("confidence", 0.95)),
        )


def combine_difference(a: Interval, b: Interval) -> Interval:
    """a - b of two independent estimates, in their unit.

    The ends are recovered from the two intervals by squares (MOVER: Zou & Donner 2008, "Construction of confidence limits
    about effect measures"), which keeps their asymmetry and assumes nothing about how they were made.
    """
    difference = a.value - b.value
    low = None if a.low is None or b.high is None else difference - math.hypot(a.value - a.low, b.high - b.value)
    high = None if a.high is None or b.low is None else difference + math.hypot(a.high - a.value, b.value - b.low)
    return Interval(difference, low, high, a.confidence)


def combine_ratio(a: Interval, b: Interval) -> Interval:
    """a / b of two independent estimates of positive quantities; ends None where theirs are unknown or not positive.

    Raises:
        ValueError: a value is not positive.
    """
    if a.value <= 0 or b.value <= 0:
        raise ValueError(f"a ratio needs positive values, got {a.value} and {b.value}")
    logs = combine_difference(_log_interval(a), _log_interval(b))
    low, high = (None if end is None else _exp(end) for end in (logs.low, logs.high))
    return Interval(_exp(logs.value), low, high, a.confidence)


def _exp(value: float) -> float:
    """The exponential, or the largest one that a double holds."""
    return math.exp(min(value, _LARGEST_EXPONENT))


def bonferroni(interval: Interval, family: int) -> Interval:
    """The interval, widened so that `family` such intervals all cover with the stated confidence together (Bonferroni).

    The ends move out by the ratio of the normal quantiles, which keeps the asymmetry.
    """
    tail = (1 - interval.confidence) / 2
    ndtri = special("ndtri")
    factor = float(ndtri(tail / max(family, 1)) / ndtri(tail))
    return interval.at(0.0).scaled(factor).at(interval.value)


def _log_interval(interval: Interval) -> Interval:
    """The interval of the logarithm; an end that is not positive is unknown there."""
    low, high = (None if end is None or end <= 0 else math.log(end) for end in (interval.low, interval.high))
    return Interval(math.log(interval.value), low, high, interval.confidence)
