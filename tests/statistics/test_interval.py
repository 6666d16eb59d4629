"""A value with its interval, and differences and ratios of two."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest

from edge_tprune.statistics import (
    Interval,
    bonferroni,
    combine_difference,
    combine_ratio,
    mean_interval,
)


def test_interval_excludes_only_what_lies_outside():
    interval = Interval(1.0, 0.9, 1.2)
    assert interval.excludes(0.8)
    assert interval.excludes(1.3)
    assert not interval.excludes(0.9)
    assert not Interval(1.0, None, None).excludes(5)


def test_interval_json_round_trip():
    for interval in (Interval(1.5, 1.0, 2.0, 0.9), Interval(1.5, None, None)):
        assert Interval.from_json(json.loads(json.dumps(interval.to_json()))) == interval
    assert Interval.from_json(None) is None
    assert Interval.from_json({"value": None, "low": None, "high": None}) is None
    assert Interval.from_json({"value": 99, "low": 98, "high": 100}) == Interval(99.0, 98.0, 100.0, 0.95)


def test_an_end_that_is_unknown_reaches_everywhere_on_its_side():
    from_below = Interval(10.0, 9.0, None)
    assert from_below.excludes(8.9)
    assert not from_below.excludes(1e9)
    assert from_below.scaled(2) == Interval(20.0, 18.0, None)
    assert from_below.at(3) == Interval(3.0, 2.0, None)


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


def test_a_ratio_is_a_number_however_far_apart_its_parts_are():
    huge, tiny = Interval(1e30, 1e29, 1e30), Interval(1e-320, 1e-320, 1e-319)
    for ratio in (combine_ratio(huge, tiny), combine_ratio(tiny, huge)):
        assert all(math.isfinite(end) for end in (ratio.value, ratio.low, ratio.high))


def test_a_document_holds_no_interval_that_overflows():
    for number in (1.7e308, -1e31):
        for name in ("value", "low", "high"):
            with pytest.raises(msgspec.ValidationError, match=name):
                msgspec.convert({"value": 1.0, "low": 0.0, "high": 2.0, name: number}, Interval)


def test_simultaneous_intervals_are_wider_and_hold_together():
    one = Interval(1.0, 0.9, 1.2)
    assert bonferroni(one, 1) == Interval(1.0, pytest.approx(0.9), pytest.approx(1.2))
    wide = bonferroni(one, 20)
    assert wide.low < 0.9
    assert wide.high > 1.2
    assert (1 - wide.low) / 0.1 == pytest.approx((wide.high - 1) / 0.2)


def test_an_interval_ends_where_values_do() -> None:
    assert Interval(66.7, 18.8, 114.6).within(0, 100) == Interval(66.7, 18.8, 100)
    assert Interval(0.03, -0.01, 0.07).within(0) == Interval(0.03, 0, 0.07)
    assert Interval(1.0, None, None).within(0) == Interval(1.0, None, None)
