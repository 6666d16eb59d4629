"""Means, paired differences and ratios by round, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    paired_speedup,
    ratio_interval,
    required_count,
    student_interval,
)


def test_paired_difference_has_the_sign_of_a_minus_b_and_pairs_by_position():
    b = np.random.default_rng(0).normal(50, 20, 400)  # images differ far more from each other than the two models do
    interval = paired_difference(b + 1 + np.random.default_rng(1).normal(0, 0.1, 400), b)
    assert interval.value == pytest.approx(1, abs=0.02)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.high - interval.low < 0.05


def test_equal_data_give_zero_width_not_nan():
    assert paired_difference([100, 0, 100], [100, 0, 100]) == Interval(0.0, 0.0, 0.0)
    assert mean_interval([7.0, 7.0]) == Interval(7.0, 7.0, 7.0)


def test_one_value_has_no_ends():
    assert mean_interval([7.0]) == Interval(7.0, None, None)


@pytest.mark.parametrize("bad", [[], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_data_without_a_mean_are_refused(bad):
    with pytest.raises(ValueError, match="finite values"):
        mean_interval(bad)


def test_unpaired_lengths_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([1, 2, 3], confidence=confidence)


def test_same_seed_same_interval():
    data = np.random.default_rng(0).normal(size=200)
    assert mean_interval(data, seed=3) == mean_interval(data, seed=3)
    assert mean_interval(data, seed=3) != mean_interval(data, seed=4)


def test_many_values_and_few_values_agree():
    """The multinomial draw of tied data is the same bootstrap as drawing every element."""
    tied = (np.random.default_rng(0).random(1000) < 0.3) * 100.0
    nearly = tied + np.random.default_rng(1).normal(0, 1e-9, 1000)
    few, many = mean_interval(tied), mean_interval(nearly)
    assert few.low == pytest.approx(many.low, abs=0.25)
    assert few.high == pytest.approx(many.high, abs=0.25)


def test_agrees_with_a_bootstrap_drawn_one_resample_at_a_time():
    data = np.random.default_rng(0).exponential(size=400)
    rng = np.random.default_rng(9)
    means = sorted(float(np.mean([data[rng.integers(400)] for _ in range(400)])) for _ in range(1000))
    ours = mean_interval(data)
    assert ours.low == pytest.approx(means[25], abs=0.02)
    assert ours.high == pytest.approx(means[975], abs=0.02)


def test_speedup_is_the_geometric_mean_of_the_ratios_of_common_rounds():
    speedup = paired_speedup({0: 2.0, 1: 8.0, 2: 5.0, 7: 1.0}, {0: 1.0, 1: 2.0, 2: 5.0, 9: 1.0})
    assert speedup is not None
    assert speedup.value == pytest.approx(2.0)  # (2 * 4 * 1) ** (1/3)
    assert speedup.low < 1 < 4 < speedup.high


def test_pairing_cancels_what_a_round_shares():
    drift = {k: 10 * 1.3**k for k in range(6)}  # the machine slows down all the while
    speedup = paired_speedup(drift, {k: v / 1.5 * (1 + 0.001 * (-1) ** k) for k, v in drift.items()})
    assert speedup.value == pytest.approx(1.5, abs=0.01)
    assert speedup.high - speedup.low < 0.01


def test_too_few_rounds_are_said_not_guessed():
    assert paired_speedup({0: 2.0}, {0: 1.0, 1: 1.0}) == Interval(2.0, None, None)
    assert paired_speedup({0: 2.0}, {1: 1.0}) is None
    assert paired_speedup({}, {}) is None


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_impossible_latencies_are_refused(bad):
    with pytest.raises(ValueError, match="positive"):
        paired_speedup({0: 1.0, 1: bad}, {0: 1.0, 1: 1.0})


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: mean_interval(rng.normal(3, 1, 5)), 3),  # as few as the rounds of a short run
        (lambda rng: mean_interval(rng.normal(3, 1, 40)), 3),
        (lambda rng: mean_interval(rng.exponential(2, 100)), 2),
        (lambda rng: paired_difference(100.0 * (rng.random(400) < 0.9), 100.0 * (rng.random(400) < 0.88)), 2),
        (lambda rng: _speedup_of_noisy_rounds(rng, 1.42, 5), 1.42),
        (lambda rng: _speedup_of_noisy_rounds(rng, 1.42, 12), 1.42),
    ],
    ids=["5 normal", "40 normal", "100 exponential", "400 images", "5 rounds", "12 rounds"],
)
def test_intervals_cover_the_truth(draw, truth):
    covered = sum(not draw(np.random.default_rng(seed)).excludes(truth) for seed in range(200))
    assert covered >= 180  # 95 % promised; 90 % leaves three standard deviations for the draw of 200


def _speedup_of_noisy_rounds(rng: np.random.Generator, truth: float, rounds: int) -> Interval:
    shared = 10 * np.exp(rng.normal(0, 0.2, rounds))
    other = shared / truth * np.exp(rng.normal(0, 0.02, rounds))
    interval = paired_speedup(dict(enumerate(shared)), dict(enumerate(other)))
    assert interval is not None
    return interval


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.floats(0.5, 0.99))
def test_the_interval_contains_its_value(values, confidence):
    interval = mean_interval(values, confidence)
    slack = 1e-9 * max(1.0, max(abs(v) for v in values))
    assert interval.low <= interval.value + slack
    assert interval.value <= interval.high + slack


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=20), st.floats(0.2, 5))
def test_speedup_of_a_scaled_run_is_the_scale(latencies, scale):
    base = dict(enumerate(latencies))
    speedup = paired_speedup(base, {k: v / scale for k, v in base.items()})
    assert speedup.value == pytest.approx(scale)
    assert speedup.low == pytest.approx(scale)
    assert speedup.high == pytest.approx(scale)


def test_ratio_interval_covers_the_ratio_of_totals():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        counts = rng.integers(20, 60, 12)
        totals = counts * 8.0 * np.exp(rng.normal(0, 0.05, 12))
        interval = ratio_interval(totals, counts)
        assert interval.value == pytest.approx(totals.sum() / counts.sum())
        covered += not interval.excludes(8.0 * np.exp(0.05**2 / 2))
    assert covered >= 0.93 * 300
    assert ratio_interval([8.0], [2]) == Interval(4.0, None, None)
    with pytest.raises(ValueError, match="positive denominators"):
        ratio_interval([1.0, 2.0], [1.0, 0.0])


@given(st.integers(2, 50), st.floats(0.01, 10), st.floats(0.01, 10))
def test_the_count_for_a_reach_is_the_least_that_suffices(count: int, reach: float, wanted: float) -> None:
    from scipy.stats import t

    def half(many: int) -> float:
        return reach * np.sqrt(count / many) * t.ppf(0.975, many - 1) / t.ppf(0.975, count - 1)

    found = required_count(count, reach, wanted)
    if found is None:
        assert half(1_000_000) > wanted
        return
    assert found >= count
    assert half(found) <= wanted * (1 + 1e-9)
    assert found == count or half(found - 1) > wanted * (1 - 1e-9)


def test_without_noise_no_count_is_known() -> None:
    assert required_count(1, 1.0, 0.5) is None
    assert required_count(10, 1.0, 0.0) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_a_student_interval_is_scipys(values: list[float]) -> None:
    data = np.array(values)
    interval = student_interval(data)
    exact = scipy.stats.t.ppf(0.975, len(values) - 1) * data.std(ddof=1) / math.sqrt(len(values))
    assert interval.value == pytest.approx(data.mean())
    assert interval.high is not None
    assert interval.high - interval.value == pytest.approx(exact, rel=0.006, abs=1e-9)


def test_one_value_has_no_student_interval() -> None:
    assert student_interval(np.array([5.0])) == Interval(5.0, None, None)
