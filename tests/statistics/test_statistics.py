from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.statistics import (
    Interval,
    bonferroni,
    combine_difference,
    combine_ratio,
    mcnemar,
    mean_interval,
    nearest_rank,
    paired_difference,
    paired_share_difference,
    paired_speedup,
    percentile,
    percentile_intervals,
    proportion_interval,
    ratio_interval,
    required_count,
    student_95,
    student_interval,
)


def test_interval_excludes_only_what_lies_outside():
    interval = Interval(1.0, 0.9, 1.2)
    assert interval.excludes(0.8)
    assert interval.excludes(1.3)
    assert not interval.excludes(0.9)
    assert not Interval(1.0, None, None).excludes(5)


def test_interval_overlap_is_symmetric_and_unknown_ends_reach_everywhere():
    a, b, c = Interval(1, 0.5, 1.5), Interval(2, 1.5, 2.5), Interval(3, 2.6, 3.5)
    assert a.overlaps(b)
    assert b.overlaps(a)
    assert not b.overlaps(c)
    assert not c.overlaps(b)
    assert a.overlaps(Interval(9, None, None))


def test_interval_json_round_trip():
    for interval in (Interval(1.5, 1.0, 2.0, 0.9), Interval(1.5, None, None)):
        assert Interval.from_json(json.loads(json.dumps(interval.to_json()))) == interval
    assert Interval.from_json(None) is None
    assert Interval.from_json({"value": None, "low": None, "high": None}) is None
    assert Interval.from_json({"value": 99, "low": 98, "high": 100}) == Interval(99.0, 98.0, 100.0, 0.95)


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


def test_without_scipy_the_error_says_what_to_install():
    code = (  # None in sys.modules would be a package that is there and broken, as the import of a sub-module sees it
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'scipy': raise ModuleNotFoundError('No module named scipy', name='scipy')\n"
        "sys.meta_path.insert(0, Absent)\n"
        "from edge_tprune.errors import UserError\n"
        "from edge_tprune.statistics import mean_interval\n"
        "try: mean_interval([1, 2, 3])\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "scipy" in done.stdout
    assert "edge-tprune[analysis]" in done.stdout


def test_an_end_that_is_unknown_reaches_everywhere_on_its_side():
    from_below = Interval(10.0, 9.0, None)
    assert from_below.excludes(8.9)
    assert not from_below.excludes(1e9)
    assert not from_below.overlaps(Interval(8.0, 7.0, 8.5))
    assert from_below.overlaps(Interval(99.0, 98.0, 100.0))
    assert from_below.scaled(2) == Interval(20.0, 18.0, None)
    assert from_below.at(3) == Interval(3.0, 2.0, None)


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


def test_combined_intervals_of_independent_means_cover():
    rng = np.random.default_rng(3)
    differences = ratios = 0
    for _ in range(300):
        a, b = mean_interval(rng.normal(12, 1, 10), seed=1), mean_interval(rng.normal(10, 2, 15), seed=2)
        differences += not combine_difference(a, b).excludes(2)
        ratios += not combine_ratio(a, b).excludes(1.2)
    assert differences >= 0.93 * 300
    assert ratios >= 0.93 * 300


def test_combining_what_is_not_known():
    half = Interval(10.0, 9.0, None)
    assert combine_difference(half, Interval(5.0, 4.0, 6.0)) == Interval(5.0, 5 - math.hypot(1, 1), None)
    assert combine_ratio(half, Interval(5.0, -1.0, 6.0)) == Interval(
        pytest.approx(2.0), pytest.approx(2 * math.exp(-math.hypot(math.log(10 / 9), math.log(6 / 5)))), None
    )
    with pytest.raises(ValueError, match="positive"):
        combine_ratio(Interval(0.0, 0.0, 0.0), half)


@given(st.integers(0, 40), st.integers(1, 40))
def test_proportions_are_exact_intervals(count, total):
    if count > total:
        with pytest.raises(ValueError, match="count <= total"):
            proportion_interval(count, total)
        return
    interval = proportion_interval(count, total)

    def at_least(share, least):
        return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(least, total + 1))

    assert interval.low <= interval.value <= interval.high
    if count:  # were the share at the lower end, so many would come once in forty times
        assert at_least(interval.low, count) == pytest.approx(0.025)
    if count < total:
        assert 1 - at_least(interval.high, count + 1) == pytest.approx(0.025)


def test_simultaneous_intervals_are_wider_and_hold_together():
    one = Interval(1.0, 0.9, 1.2)
    assert bonferroni(one, 1) == Interval(1.0, pytest.approx(0.9), pytest.approx(1.2))
    wide = bonferroni(one, 20)
    assert wide.low < 0.9
    assert wide.high > 1.2
    assert (1 - wide.low) / 0.1 == pytest.approx((wide.high - 1) / 0.2)


@given(st.integers(0, 14), st.integers(0, 14))
def test_mcnemar_counts_every_way_the_split_could_have_gone(first, second):
    discordant = first + second
    ways = [math.comb(discordant, k) for k in range(discordant + 1)]
    as_uneven = sum(way for k, way in enumerate(ways) if abs(2 * k - discordant) >= abs(first - second))
    assert mcnemar(first, second) == pytest.approx(as_uneven / 2**discordant)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 400))
def test_a_paired_difference_of_shares_is_centred_and_covers_its_value(first: int, second: int, total: int) -> None:
    found = paired_share_difference(first, second, total)
    assert found.value == pytest.approx((first - second) / total)
    assert -1 <= found.low < found.high <= 1
    mirrored = paired_share_difference(second, first, total)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert paired_share_difference(4 * first, 4 * second, 4 * total).high - found.value <= found.high - found.value + 1e-12


def test_a_paired_difference_of_shares_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    only_first, only_second, total, covered = 0.06, 0.03, 300, 0
    for _ in range(2000):
        counts = rng.multinomial(total, [only_first, only_second, 1 - only_first - only_second])
        found = paired_share_difference(int(counts[0]), int(counts[1]), total)
        covered += found.low <= only_first - only_second <= found.high
    assert 0.935 <= covered / 2000 <= 0.975


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_make_no_sense_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="make no sense"):
        paired_share_difference(*counts)


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


@given(st.floats(1, 500))
def test_students_quantile(freedom: float) -> None:
    exact = scipy.stats.t.ppf(0.975, freedom)
    assert student_95(freedom) >= exact * (0.995 if freedom >= 3 else 0.999)
    if freedom >= 3:
        assert student_95(freedom) == pytest.approx(exact, rel=0.005)


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


def test_an_interval_ends_where_values_do() -> None:
    assert Interval(66.7, 18.8, 114.6).within(0, 100) == Interval(66.7, 18.8, 100)
    assert Interval(0.03, -0.01, 0.07).within(0) == Interval(0.03, 0, 0.07)
    assert Interval(1.0, None, None).within(0) == Interval(1.0, None, None)
