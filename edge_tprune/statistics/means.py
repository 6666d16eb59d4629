"""Intervals of means: of paired differences (by image), of speed-ups and ratios (by round).

One estimator serves them. A paired difference of means is the mean of the differences, and a speed-up is the exponential of a
mean of log ratios, so both are bootstraps of one mean:

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
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_tprune.statistics.distributions import scipy_module, special, student, student_95
from edge_tprune.statistics.interval import Interval

RESAMPLES = 10_000
_BATCH_ELEMENTS = 4_000_000  # memory of one batch of resamples: 8 bytes each for the index and for the value


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


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike, confidence: float = 0.95) -> Interval:
    """Sum of `numerators` over sum of `denominators`, both (rounds,), with the interval that their scatter over the rounds gives.

    The ratio estimator of survey statistics, linearised: rounds of unequal length weigh what they are worth. One round gives no ends.

    Raises:
        ValueError: nothing was given, the shapes differ, or the denominators are not positive.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if above.ndim != 1 or above.shape != below.shape or not above.size or not (below > 0).all():
        raise ValueError(
            f"a ratio needs equal one-dimensional shapes and positive denominators, got {above.shape} and {below.shape}"
        )
    ratio = float(above.sum() / below.sum())
    if above.size == 1:
        return Interval(ratio, None, None, confidence)
    residual = above - ratio * below
    error = math.sqrt(float(residual @ residual) * above.size / (above.size - 1)) / float(below.sum())
    reach = student(above.size - 1, (1 + confidence) / 2) * error
    return Interval(ratio, ratio - reach, ratio + reach, confidence)


def student_interval(values: NDArray[Any]) -> Interval:
    """Mean of `values` (N,) with its 95 % Student interval. For boards, which have no scipy; elsewhere `mean_interval`."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, None, None)
    half = student_95(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def required_count(count: int, reach: float, wanted: float, confidence: float = 0.95) -> int | None:
    """How many rounds (or images) it takes to narrow an interval that `count` of them gave, at the noise seen.

    The half-width of an interval of a mean goes down with the root of the count and with Student's quantile.

    Args:
        count: what was measured; at least 2.
        reach: half the width that the interval has now.
        wanted: half the width that it should have.
        confidence: of the interval.

    Returns:
        The count, at least `count`; None where it is more than a million, or nothing is known about the noise.
    """
    if count < 2 or wanted <= 0:
        return None
    share = (1 + confidence) / 2
    noise = reach * math.sqrt(count) / student(count - 1, share)
    low, high = count, 1_000_000

    def suffices(many: int) -> bool:
        return noise * student(many - 1, share) / math.sqrt(many) <= wanted

    if not suffices(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return low


def _log(ms_by_round: Mapping[int, float], rounds: Sequence[int]) -> NDArray[np.float64]:
    values = np.array([ms_by_round[index] for index in rounds], np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"latencies must be positive and finite, got {values.tolist()}")
    logs: NDArray[np.float64] = np.log(values)
    return logs


def _resampled_means(data: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of RESAMPLES resamples of `data` with replacement, (RESAMPLES,)."""
    outcome = scipy_module("stats").bootstrap(
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
    normal = float(special("ndtri")(1 - tail))
    return student(count - 1, 1 - tail) / normal * math.sqrt(count / (count - 1))
