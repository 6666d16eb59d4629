"""Percentiles by nearest rank, and their intervals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.statistics import (
    Interval,
    nearest_rank,
    percentile,
    percentile_intervals,
)


@given(st.integers(1, 500), st.floats(0, 100))
def test_nearest_rank_is_the_definition(count, percent):
    values = list(range(count))
    expected = next(value for value in values if 100 * (value + 1) >= percent * count - 1e-7)
    assert nearest_rank(count, percent / 100) == expected


def _rounds(rng, rounds, drift, inferences=60):
    """Latencies whose rounds drift as a warm machine does, each round with a tail of its own."""
    return [10 * np.exp(rng.normal(0, drift)) * (1 + rng.exponential(0.03, inferences)) for _ in range(rounds)]


@pytest.mark.parametrize("drift", [0.0, 0.02])
@pytest.mark.parametrize("percent", [50, 95])
def test_percentile_intervals_cover(percent, drift):
    rng = np.random.default_rng(5)
    truth = float(np.quantile(np.concatenate(_rounds(rng, 20_000, drift, 50)), percent / 100))
    found = [percentile_intervals(_rounds(rng, 15, drift), [percent])[0] for _ in range(200)]
    covered = sum(not interval.excludes(truth) for interval in found)
    assert covered >= 0.93 * 200
    known = [interval for interval in found if interval.low is not None and interval.high is not None]
    assert len(known) > 150  # or covering would be no achievement
    assert np.median([interval.high - interval.low for interval in known]) < 0.1 * truth


def test_percentiles_are_those_of_all_values_together():
    rng = np.random.default_rng(0)
    rounds = [rng.integers(0, 1000, count) for count in (7, 30, 11)]
    together = np.concatenate(rounds)
    for percent, interval in zip((5, 50, 95, 99), percentile_intervals(rounds, (5, 50, 95, 99))):
        assert interval.value == np.percentile(together, percent, method="inverted_cdf")
        assert interval.low is None or interval.low <= interval.value
        assert interval.high is None or interval.value <= interval.high


def test_percentiles_of_one_round_and_of_none():
    assert percentile_intervals([np.arange(100)], [50]) == (Interval(49.0, None, None),)
    with pytest.raises(ValueError, match="at least one"):
        percentile_intervals([], [50])
    with pytest.raises(ValueError, match="at least one"):
        percentile_intervals([np.arange(3), np.arange(0)], [50])


def test_too_few_rounds_for_a_percentile_leave_its_upper_end_open():
    rounds = [np.full(100, float(value)) for value in (1, 1, 1, 9)]  # is one round in four slow, or one in a hundred?
    (interval,) = percentile_intervals(rounds, [95])
    assert interval.value == 9
    assert interval.high is None


def textbook_rank(values: list[float], percent: int) -> float:
    """The textbook's definition, in exact arithmetic."""
    rank = math.ceil(Fraction(percent, 100) * len(values))
    return sorted(values)[max(rank, 1) - 1]


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300), st.sampled_from([50, 95, 99]))
def test_percentiles_are_nearest_rank(values: list[int], percent: int) -> None:
    assert percentile(np.array(values) / 1e6, percent) == textbook_rank([value / 1e6 for value in values], percent)


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_percentiles_of_every_count(percent: int) -> None:
    for count in range(1, 2001):
        assert percentile(np.arange(1.0, count + 1), percent) == textbook_rank(list(range(1, count + 1)), percent)
