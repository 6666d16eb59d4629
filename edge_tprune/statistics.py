"""How sure a number is: bootstrap intervals for paired differences (by image) and paired speed-ups (by round).

One estimator serves everything here. A paired difference of means is the mean of the differences, and a speed-up is the
exponential of a mean of log ratios, so both are bootstraps of one mean:

- The percentile method. A mean over many images or rounds is close to symmetric, where BCa corrects next to nothing and
  costs a jackknife; and BCa of the heavily tied 0/1 data of top-1 is unstable.
- Widened for small samples. The percentile bootstrap of a mean is too narrow by sqrt((n-1)/n) and by the ratio of the
  Student to the normal quantile (Hesterberg 2015, "What Teachers Should Know about the Bootstrap"); five rounds would be
  covered some 82 times in 100 instead of 95. The deviations from the mean are scaled back by both factors, which go to
  1 as n grows and keep the bootstrap's asymmetry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_tprune.errors import missing_package

RESAMPLES = 10_000
_BATCH_ELEMENTS = 4_000_000  # memory of one batch of resamples: 8 bytes each for the index and for the value


@dataclass(frozen=True)
class Interval:
    """A value and the interval that covers the truth with the stated confidence; ends are None where too little is known."""

    value: float
    low: float | None
    high: float | None
    confidence: float = 0.95

    def excludes(self, x: float) -> bool:
        """Whether `x` lies outside the interval. Without ends nothing is excluded."""
        return self.low is not None and self.high is not None and not self.low <= x <= self.high

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a point in common. An interval without ends reaches everywhere."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high

    def to_json(self) -> dict[str, float | None]:
        """{"value", "low", "high", "confidence"}; unknown ends are null."""
        return asdict(self)

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


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean of a - b, where a[i] and b[i] belong to the same image, in the unit of the data.

    Equal differences throughout give an interval of zero width; one image alone gives no ends.

    Args:
        a: (N,) one number per image, for example 100 where top-1 was right and 0 where not (then the unit is points).
        b: (N,) the same images in the same order.
        confidence: share of such intervals that cover the truth.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: the lengths differ, nothing was given, or a value is not finite.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired data need equal shapes, got {first.shape} and {second.shape}")
    return mean_interval(first - second, confidence, seed)


def mean_interval(values: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean of `values` (N,) with its bootstrap interval, in the unit of the data.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, or `confidence` is not between 0 and 1.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"an interval needs a non-empty one-dimensional array of finite values, got shape {data.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if (data == data[0]).all():
        same = float(data[0])
        return Interval(same, same, same, confidence) if data.size > 1 else Interval(same, None, None, confidence)
    mean = float(data.mean())
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(data, seed), [tail, 1 - tail])
    widening = _small_sample_widening(data.size, tail)
    return Interval(mean, float(mean + (low - mean) * widening), float(mean + (high - mean) * widening), confidence)


def paired_speedup(
    baseline_ms_by_round: Mapping[int, float],
    other_ms_by_round: Mapping[int, float],
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """How many times faster `other` is than `baseline`: geometric mean over rounds of the ratio of their latencies.

    Pairing by round cancels what a round's neighbours share (clock, heat, other load). One common round gives a value without
    ends, none gives None.

    Args:
        baseline_ms_by_round: round index -> latency (a median, ms) of the slower side by convention.
        other_ms_by_round: the same for the other side; rounds that only one side has are left out.
        confidence: share of such intervals that cover the truth.
        seed: of the resampling of rounds.

    Raises:
        ValueError: a latency is not positive and finite.
    """
    common = sorted(baseline_ms_by_round.keys() & other_ms_by_round.keys())
    if not common:
        return None
    log_ratio = _log(baseline_ms_by_round, common) - _log(other_ms_by_round, common)
    mean = mean_interval(log_ratio, confidence, seed)
    low, high = mean.low, mean.high
    return Interval(
        math.exp(mean.value), None if low is None else math.exp(low), None if high is None else math.exp(high), confidence
    )


def _log(ms_by_round: Mapping[int, float], rounds: Sequence[int]) -> NDArray[np.float64]:
    values = np.array([ms_by_round[index] for index in rounds], np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"latencies must be positive and finite, got {values.tolist()}")
    logs: NDArray[np.float64] = np.log(values)
    return logs


def _resampled_means(data: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of RESAMPLES resamples of `data` with replacement, (RESAMPLES,)."""
    try:
        from scipy.stats import bootstrap
    except ImportError as error:
        raise missing_package("scipy", "host") from error
    outcome = bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_ELEMENTS // data.size),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    means: NDArray[np.float64] = outcome.bootstrap_distribution
    return means


def _small_sample_widening(count: int, tail: float) -> float:
    """Factor by which the percentile bootstrap of the mean of `count` values is too narrow."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(count - 1, 1 - tail) / ndtri(1 - tail)) * math.sqrt(count / (count - 1))
