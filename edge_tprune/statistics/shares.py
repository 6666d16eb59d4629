"""Shares of images that were classified right, and differences of two such shares on the same images."""

from __future__ import annotations

import math
from statistics import NormalDist

from edge_tprune.statistics.distributions import scipy_module
from edge_tprune.statistics.interval import Interval


def proportion_interval(count: int, total: int, confidence: float = 0.95) -> Interval:
    """`count` of `total` as a share (0 to 1), with the exact interval of a binomial share (Clopper & Pearson 1934).

    Raises:
        ValueError: not 0 <= count <= total, or a total of zero.
    """
    if not 0 <= count <= total or not total:
        raise ValueError(f"a share needs 0 <= count <= total and a total, got {count} of {total}")
    if count == total:  # in closed form, for boards, which have no scipy
        return Interval(1.0, ((1 - confidence) / 2) ** (1 / total), 1.0, confidence)
    low, high = scipy_module("stats").binomtest(count, total).proportion_ci(confidence, method="exact")
    return Interval(count / total, float(low), float(high), confidence)


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
    return float(scipy_module("stats").binomtest(only_first, discordant).pvalue) if discordant else 1.0


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
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Interval(
        (only_first - only_second) / total, max(-1.0, first - second - reach), min(1.0, first - second + reach), confidence
    )
