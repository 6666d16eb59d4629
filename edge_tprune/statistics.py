"""How sure a number is: intervals for paired differences (by image), speed-ups (by round), percentiles and unpaired changes.

One estimator serves all means. A paired difference of means is the mean of the differences, and a speed-up is the exponential
of a mean of log ratios, so both are bootstraps of one mean:

- The percentile method. A mean over many images or rounds is close to symmetric, where BCa corrects next to nothing and
  costs a jackknife; and BCa of the heavily tied 0/1 data of top-1 is unstable.
- Widened for small samples. The percentile bootstrap of a mean is too narrow by sqrt((n-1)/n) and by the ratio of the
  Student to the normal quantile (Hesterberg 2015, "What Teachers Should Know about the Bootstrap"); five rounds would be
  covered some 82 times in 100 instead of 95. The deviations from the mean are scaled back by both factors, which go to
  1 as n grows and keep the bootstrap's asymmetry.

A percentile over all rounds is no mean of anything, and inferences of one round are not independent, so its interval is found
the way surveys of clusters do it: `percentile_intervals`.
"""

from __future__ import annotations

import importlib
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
    """A value and the interval that covers the truth with the stated confidence.

    An end is None where too little is known: as far as anyone can tell, the truth may lie anywhere on that side.
    """

    value: float
    low: float | None
    high: float | None
    confidence: float = 0.95

    @property
    def known(self) -> bool:
        """Whether anything is known about where the truth lies: it has at least one end."""
        return self.low is not None or self.high is not None

    def excludes(self, x: float) -> bool:
        """Whether `x` lies outside the interval. Without ends nothing is excluded."""
        return (self.low is not None and x < self.low) or (self.high is not None and x > self.high)

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a point in common. An interval without ends reaches everywhere."""
        apart = [
            low is not None and high is not None and low > high
            for low, high in ((self.low, other.high), (other.low, self.high))
        ]
        return not any(apart)

    def scaled(self, factor: float) -> Interval:
        """The same in another unit: value and ends times a positive `factor`."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Interval(self.value * factor, low, high, self.confidence)

    def at(self, value: float) -> Interval:
        """The same reach around another value."""
        low, high = (None if end is None else value + end - self.value for end in (self.low, self.high))
        return Interval(value, low, high, self.confidence)

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


def nearest_rank(count: int, share: float) -> int:
    """Index, among `count` sorted values, of the smallest that at least `share` (0 to 1) of them do not exceed."""
    return max(0, math.ceil(share * count * (1 - 1e-12)) - 1)  # a product such as 0.95 * 20 may come out just above 19


def percentile(values: NDArray[Any], percent: float) -> float:
    """The nearest-rank percentile of `values` (N,), in any order: the smallest that at least `percent` % of them do not exceed."""
    rank = nearest_rank(values.size, percent / 100)
    return float(np.partition(values, rank)[rank])


def student_95(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, by the expansion of Cornish and Fisher about the normal; exact for 1 and 2.

    Within 1 % from 3 degrees of freedom on, and within 0.1 % from 5. For boards, which have no scipy.
    """
    if freedom < 3:
        return 12.706 if freedom < 2 else 4.303
    z = 1.959964
    z3, z5, z7, z9 = (math.pow(z, power) for power in (3, 5, 7, 9))
    return (
        z
        + (z3 + z) / (4 * freedom)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * freedom**3)
        + (79 * z9 + 776 * z7 + 1482 * z5 - 1920 * z3 - 945 * z) / (92160 * freedom**4)
    )


def student_interval(values: NDArray[Any]) -> Interval:
    """Mean of `values` (N,) with its 95 % Student interval. For boards, which have no scipy; elsewhere `mean_interval`."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, None, None)
    half = student_95(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def percentile_intervals(
    rounds: Sequence[NDArray[Any]],
    percents: Sequence[float],
    confidence: float = 0.95,
    ordered: NDArray[Any] | None = None,
) -> tuple[Interval, ...]:
    """Nearest-rank percentiles of all values together, one per entry of `percents`, each with its interval.

    Inferences of one round are not independent, so the number that counts is not how many there are but how many independent
    ones they are worth: as many as would make the share of values below the percentile vary as much as it does from round to
    round. With that number, the exact interval of a binomial share says between which two ranks the true percentile lies
    (Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts"; ranks for
    values after Woodruff 1952). It costs no resampling and holds where a bootstrap of rounds, or the mean of the rounds' own
    percentiles, does not: a p95 is decided by the slowest rounds. Where the rounds are worth too few, an end is None.

    No interval knows of a slow round that never came: after ten rounds, what happens once in twenty may be unseen.

    Args:
        rounds: per round (n_r,), the values in any order; every round at least one.
        percents: between 0 and 100.
        confidence: share of such intervals that cover the truth.
        ordered: all values in ascending order, where the caller has sorted them already.

    Raises:
        ValueError: no round, or a round without values.
    """
    if not rounds or not all(len(values) for values in rounds):
        raise ValueError("percentiles need at least one round, and at least one value in each")
    ordered = np.sort(np.concatenate(rounds)) if ordered is None else ordered
    ends = [_percentile_ends(ordered, rounds, percent / 100, confidence) for percent in percents]
    return tuple(
        Interval(float(ordered[nearest_rank(ordered.size, percent / 100)]), *end, confidence)
        for percent, end in zip(percents, ends)
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
    reach = _student(above.size - 1, (1 + confidence) / 2) * error
    return Interval(ratio, ratio - reach, ratio + reach, confidence)


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
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.value), low, high, a.confidence)


def proportion_interval(count: int, total: int, confidence: float = 0.95) -> Interval:
    """`count` of `total` as a share (0 to 1), with the exact interval of a binomial share (Clopper & Pearson 1934).

    Raises:
        ValueError: not 0 <= count <= total, or a total of zero.
    """
    if not 0 <= count <= total or not total:
        raise ValueError(f"a share needs 0 <= count <= total and a total, got {count} of {total}")
    low, high = _scipy("stats").binomtest(count, total).proportion_ci(confidence, method="exact")
    return Interval(count / total, float(low), float(high), confidence)


def simultaneous(interval: Interval, family: int) -> Interval:
    """The interval, widened so that `family` such intervals all cover with the stated confidence together (Bonferroni).

    The ends move out by the ratio of the normal quantiles, which keeps the asymmetry.
    """
    tail = (1 - interval.confidence) / 2
    ndtri = _special("ndtri")
    factor = float(ndtri(tail / max(family, 1)) / ndtri(tail))
    return interval.at(0.0).scaled(factor).at(interval.value)


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability of a split at least as uneven, were both equally good: McNemar's exact test, two-sided.

    Args:
        only_first: images on which only the first of two is right.
        only_second: images on which only the second is.

    Raises:
        ValueError: a negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts must not be negative, got {only_first} and {only_second}")
    discordant = only_first + only_second
    return float(_scipy("stats").binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_share_difference(only_first: int, only_second: int, total: int, confidence: float = 0.95) -> Interval:
    """Share of `total` images that the first of two gets right, less the second's, with its interval.

    The adjusted Wald interval for paired proportions (Bonett & Price 2012, "Adjusted Wald confidence interval for a difference
    of binomial proportions based on paired data"): one image is added to either kind of disagreement, which keeps the interval
    from having no width where the two never disagreed.

    Args:
        only_first: images on which only the first is right.
        only_second: images on which only the second is.
        total: images that both were judged on.
        confidence: share of such intervals that cover the truth.

    Raises:
        ValueError: negative counts, or more than `total`.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > total or total < 1:
        raise ValueError(f"{only_first} and {only_second} of {total} images make no sense")
    first, second = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    error = math.sqrt((first + second - (first - second) ** 2) / (total + 2))
    reach = float(_special("ndtri")((1 + confidence) / 2)) * error
    return Interval(
        (only_first - only_second) / total, max(-1.0, first - second - reach), min(1.0, first - second + reach), confidence
    )


def count_for_reach(count: int, reach: float, wanted: float, confidence: float = 0.95) -> int | None:
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
    noise = reach * math.sqrt(count) / _student(count - 1, share)
    low, high = count, 1_000_000

    def suffices(many: int) -> bool:
        return noise * _student(many - 1, share) / math.sqrt(many) <= wanted

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
    outcome = _scipy("stats").bootstrap(
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
    normal = float(_special("ndtri")(1 - tail))
    return _student(count - 1, 1 - tail) / normal * math.sqrt(count / (count - 1))


def _percentile_ends(
    ordered: NDArray[Any], rounds: Sequence[NDArray[Any]], share: float, confidence: float
) -> tuple[float | None, float | None]:
    """The interval of the percentile at `share` (0 to 1) of `ordered`, all values of `rounds`."""
    if len(rounds) < 2 or not 0 < share < 1:
        return None, None
    value = ordered[nearest_rank(ordered.size, share)]
    # Just below the value too: where a whole round is one value, all rounds agree on the share up to it.
    error = max(
        _cluster_error([int(np.count_nonzero(values <= value)) for values in rounds], rounds, share),
        _cluster_error([int(np.count_nonzero(values < value)) for values in rounds], rounds, share),
    )
    tail = (1 - confidence) / 2
    worth = min(float(ordered.size), share * (1 - share) / error**2) if error else float(ordered.size)
    worth *= (float(_special("ndtri")(1 - tail)) / _student(len(rounds) - 1, 1 - tail)) ** 2
    inverse = _special("betaincinv")
    low = float(inverse(worth * share, worth * (1 - share) + 1, tail))
    high = float(inverse(worth * share + 1, worth * (1 - share), 1 - tail))
    return (
        # None where that many independent values may well all lie on one side of the percentile.
        None if (1 - share) ** worth > tail else float(ordered[nearest_rank(ordered.size, low)]),
        None if share**worth > tail else float(ordered[nearest_rank(ordered.size, high)]),
    )


def _cluster_error(counts: Sequence[int], rounds: Sequence[NDArray[Any]], share: float) -> float:
    """Standard error of the share of all values that `counts` of each round's make up."""
    excess = np.array([count - share * len(values) for count, values in zip(counts, rounds)])
    squares = float(np.sum((excess - excess.mean()) ** 2))
    return math.sqrt(squares * len(rounds) / (len(rounds) - 1)) / sum(map(len, rounds))


def _student(degrees: int, share: float) -> float:
    """Quantile of Student's t distribution."""
    return float(_special("stdtrit")(degrees, share))


def _special(name: str) -> Any:
    """A function of scipy.special."""
    return getattr(_scipy("special"), name)


def _scipy(module: str) -> Any:
    """A module of scipy, which a board need not have."""
    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise missing_package("scipy", "analysis", error) from error


def _log_interval(interval: Interval) -> Interval:
    """The interval of the logarithm; an end that is not positive is unknown there."""
    low, high = (None if end is None or end <= 0 else math.log(end) for end in (interval.low, interval.high))
    return Interval(math.log(interval.value), low, high, interval.confidence)
