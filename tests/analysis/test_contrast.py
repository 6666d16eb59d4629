from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from edge_tprune.analysis.contrast import (
    WITHIN_RUN,
    EqualityMargin,
    contrast,
    count_to_resolve,
    make_contrast,
    resolve,
    same_images,
    speedup_contrast,
)
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.errors import UserError
from edge_tprune.statistics import Interval

P50, TOP1, MEMORY = METRICS["p50_ms"], METRICS["top1_percent"], METRICS["peak_memory_mb"]


@pytest.mark.parametrize(
    ("ends", "resolution"),
    [
        ((1.00, 0.99, 1.01), "equal"),
        ((1.01, 1.005, 1.015), "equal"),  # a difference that is proven and does not matter
        ((1.10, 1.08, 1.12), "different"),
        ((1.015, 1.005, 1.03), "different"),
        ((1.00, 0.90, 1.10), "not resolved"),
        ((1.01, 0.99, 1.03), "not resolved"),
        ((1.00, None, None), "not resolved"),
        ((1.10, 1.05, None), "different"),
        ((1.10, None, 1.2), "not resolved"),
    ],
)
def test_equal_needs_proof(ends, resolution):
    assert resolve(Interval(*ends), P50, WITHIN_RUN) == resolution


def test_points_have_a_margin_of_their_own():
    assert resolve(Interval(0.1, -0.4, 0.4), TOP1, WITHIN_RUN) == "equal"
    assert resolve(Interval(0.1, -0.6, 0.4), TOP1, WITHIN_RUN) == "not resolved"
    assert resolve(Interval(0.1, -0.6, 0.4), TOP1, EqualityMargin(points=1)) == "equal"


@given(st.floats(0.5, 2), st.floats(1e-3, 0.5), st.floats(0, 20))
def test_a_ratio_and_its_inverse_are_resolved_alike(value, half, percent):
    margin = EqualityMargin(percent)
    interval = Interval(value, value * math.exp(-half), value * math.exp(half))
    inverse = Interval(1 / value, 1 / interval.high, 1 / interval.low)
    assert resolve(interval, P50, margin) == resolve(inverse, P50, margin) or math.isclose(abs(math.log(value)), half)


@given(st.floats(-0.2, 0.2), st.floats(0.01, 1), st.integers(3, 200), st.floats(0.1, 10))
def test_as_many_rounds_as_are_said_to_be_needed_do_resolve_it(value, half, count, percent):
    margin = EqualityMargin(percent)
    interval = Interval(math.exp(value), math.exp(value - half), math.exp(value + half))
    found = make_contrast(interval, P50, margin, count)
    if found.resolution != "not resolved":
        assert found.needed is None
        return
    if found.needed is None:  # more than a million
        return
    assert found.needed >= count
    narrower = half * math.sqrt(count / found.needed) * t.ppf(0.975, found.needed - 1) / t.ppf(0.975, count - 1)
    ends = (math.exp(value - narrower), math.exp(value + narrower))
    assert resolve(Interval(math.exp(value), *ends), P50, margin) != "not resolved"


def test_nothing_is_said_of_rounds_where_the_noise_is_unknown():
    assert count_to_resolve(Interval(1.1, None, None), P50, WITHIN_RUN, 1) is None
    assert make_contrast(Interval(1.1, None, 1.2), P50, WITHIN_RUN, 5).needed is None


def test_rows_of_one_run_are_paired_by_round(profiles):
    drift = [1.0, 1.3, 1.7, 2.2, 2.9]  # far wider than the difference of the two

    def row(name, ms):
        of = {index: ms * factor * (1 + 0.001 * (index % 2)) for index, factor in enumerate(drift)}
        return profiles.row(name, p50_ms=ms, by_round={"p50_ms": of}, intervals={"p50_ms": Interval(ms, ms / 2, ms * 2)})

    assert contrast(row("a", 5.0), row("b", 5.3), P50).resolution == "different"
    assert contrast(row("a", 5.0), row("b", 5.0), P50).resolution == "equal"


def test_one_round_resolves_nothing(profiles):
    def row(name, ms):
        return profiles.row(name, p50_ms=ms, by_round={"p50_ms": {0: ms}}, intervals={"p50_ms": Interval(ms, None, None)})

    found = contrast(row("a", 5.0), row("b", 9.0), P50)
    assert (found.resolution, found.needed) == ("not resolved", None)


def test_rows_of_two_runs_are_compared_by_their_intervals(profiles):
    def row(name, ms, reach):
        return profiles.row(name, profile=name, p50_ms=ms, intervals={"p50_ms": Interval(ms, ms - reach, ms + reach)})

    assert contrast(row("a", 5.0, 0.1), row("b", 5.2, 0.05), P50).resolution == "different"  # although the intervals overlap
    assert contrast(row("a", 5.0, 0.1), row("b", 5.1, 0.1), P50).resolution == "not resolved"
    assert contrast(row("a", 5.0, 0.02), row("b", 5.01, 0.02), P50).resolution == "equal"


def test_what_is_measured_once_is_compared_by_the_margin_alone(profiles):
    def row(mb):
        return profiles.row(peak_memory_mb=mb)

    assert contrast(row(100.0), row(101.0), MEMORY).resolution == "equal"
    assert contrast(row(100.0), row(103.0), MEMORY).resolution == "different"


def test_accuracy_on_the_same_images_is_paired_image_by_image(profiles):
    bits = np.arange(1000) % 4 > 0  # 75 % right
    lost, swapped = bits.copy(), bits.copy()
    lost[np.flatnonzero(bits)[:20]] = False
    swapped[np.flatnonzero(bits)[:30]] = False
    swapped[np.flatnonzero(~bits)[:30]] = True
    wide = {"top1_change_points": Interval(0, -5, 5)}  # unpaired, nothing could be resolved

    def row(right, data="d"):
        top1 = 100 * float(right.mean())
        conditions = {"eval data hash": data}
        return profiles.row(
            top1_percent=top1, intervals=wide, conditions=conditions, profile=str(id(right)), per_image={"top1_percent": right}
        )

    found = contrast(row(lost), row(bits), TOP1)
    assert found.resolution == "different"
    assert found.interval.value == pytest.approx(-2)
    assert (found.unit, found.count) == ("images", 1000)
    assert contrast(row(bits), row(bits.copy()), TOP1).resolution == "equal"
    unclear = contrast(row(bits), row(swapped), TOP1)
    assert unclear.resolution == "not resolved"
    assert unclear.needed > 1000
    assert contrast(row(bits), row(lost, "other images"), TOP1).resolution == "not resolved"
    assert not same_images(row(bits), row(lost, "other images"))
    assert contrast(row(bits), row(lost[:500]), TOP1).resolution == "not resolved", "a part of them, under one hash"


def test_the_unpruned_model_has_no_contrast_with_itself(profiles):
    interval = {"speedup": Interval(1.0, 1.0, 1.0)}
    assert speedup_contrast(profiles.row(speedup=1.0, intervals=interval, unpruned=True)) is None
    assert speedup_contrast(profiles.row()) is None
    assert speedup_contrast(profiles.row(speedup=1.0, intervals=interval)).resolution == "equal"


def test_a_missing_value_has_no_contrast(profiles):
    with pytest.raises(ValueError, match="p50_ms is missing"):
        contrast(profiles.row(p50_ms=1.0), profiles.row(), P50)


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("2%", EqualityMargin(2, 0.5)),
        ("5 %", EqualityMargin(5, 0.5)),
        ("1points", EqualityMargin(2, 1)),
        (".5 point, 10%", EqualityMargin(10, 0.5)),
    ],
)
def test_a_margin_is_read_from_the_command_line(text, margin):
    assert EqualityMargin.parse(text, WITHIN_RUN) == margin


@pytest.mark.parametrize("text", ["2", "", "2%,x", "-1%", "nan%", "2percent"])
def test_what_is_no_margin_is_refused(text):
    with pytest.raises(UserError, match=r"is not a margin such as 2% or 0\.5points"):
        EqualityMargin.parse(text, WITHIN_RUN)


@pytest.mark.parametrize("number", ["1001", "9" * 400])
def test_a_margin_that_is_wider_than_everything_is_refused(number):
    with pytest.raises(UserError, match="is out of range: give at most 1000"):
        EqualityMargin.parse(f"{number}%", WITHIN_RUN)


def test_two_margins_of_one_unit_are_refused():
    with pytest.raises(UserError, match="gives two margins in percent: give one"):
        EqualityMargin.parse("2%,0.5points,3%", WITHIN_RUN)
