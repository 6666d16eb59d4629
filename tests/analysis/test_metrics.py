from __future__ import annotations

import math

from edge_tprune.analysis.metrics import METRICS, MISSING
from edge_tprune.statistics import Interval


def test_names_end_in_their_unit():
    endings = {
        "ms": "_ms",
        "%": "_percent",
        "MB": "_mb",
        "points": "_points",
        "images/s": "_images_per_s",
        "G": "_g",
        "nats": "_nats",
    }
    for each in METRICS.values():
        if each.unit in endings:
            assert each.name.endswith(endings[each.unit]), each.name


def test_missing_is_a_dash_never_zero():
    for each in METRICS.values():
        assert each.format(None) == MISSING
        assert each.quantity(None) == MISSING
        assert each.cost(None) == math.inf


def test_numbers_carry_their_unit():
    assert METRICS["p50_ms"].quantity(8.214) == "8.21 ms"
    assert METRICS["speedup"].quantity(1.416) == "1.42×"
    assert METRICS["top1_percent"].quantity(72.13) == "72.1%"


def test_no_negative_zero():
    assert METRICS["top1_change_points"].format(-0.04) == "0.0"
    assert METRICS["top1_change_points"].format(-0.06) == "-0.1"


def test_uncertainty_is_never_understated():
    speedup = METRICS["speedup"]
    assert speedup.uncertain(Interval(1.42, 1.40, 1.43)) == "1.42 ±0.02"
    assert speedup.uncertain(Interval(1.42, 1.419, 1.421)) == "1.42 ±0.01"
    assert METRICS["top1_change_points"].uncertain(Interval(-0.8, -1.3, -0.3)) == "-0.8 ±0.5"
    assert speedup.uncertain(Interval(1.42, None, None)) == "1.42 ±?"
    assert speedup.uncertain(Interval(1.0, 1.0, 1.0)) == "1.00"
    assert speedup.range(Interval(1.42, 1.40, 1.43)) == "1.40 to 1.43×"
    assert speedup.range(Interval(1.42, None, None)) == ""


def test_an_interval_beyond_all_bounds_is_not_known():
    assert METRICS["p50_ms"].uncertain(Interval(1.0, -1e308, 1e308)) == "1.00 ±?"


def test_better_and_cost_agree():
    for each in METRICS.values():
        if each.better is None:
            assert not each.is_better(1, 2)
            assert not each.is_better(2, 1)
        else:
            assert each.is_better(1, 2) == (each.better == "lower")
            assert (each.cost(1) < each.cost(2)) == each.is_better(1, 2)
