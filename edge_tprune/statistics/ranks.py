"""Percentiles by nearest rank, and their intervals.

A percentile over all rounds is no mean of anything, and inferences of one round are not independent, so its interval is found
the way surveys of clusters do it: `percentile_intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_tprune.statistics.distributions import special, student
from edge_tprune.statistics.interval import Interval


def nearest_rank(count: int, share: float) -> int:
    """Index, among `count` sorted values, of the smallest that at least `share` (0 to 1) of them do not exceed."""
    return max(0, math.ceil(share * count * (1 - 1e-12)) - 1)  # a product such as 0.95 * 20 may come out just above 19


def percentile(values: NDArray[Any], percent: float) -> float:
    """The nearest-rank percentile of `values` (N,), in any order: the smallest that at least `percent` % of them do not exceed."""
    rank = nearest_rank(values.size, percent / 100)
    return float(np.partition(values, rank)[rank])


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
    worth *= (float(special("ndtri")(1 - tail)) / student(len(rounds) - 1, 1 - tail)) ** 2
    inverse = special("betaincinv")
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
