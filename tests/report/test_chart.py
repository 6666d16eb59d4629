from __future__ import annotations

import itertools
import json
import math

import pytest

from edge_tprune.analysis.choice import choose
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.report import chart
from edge_tprune.statistics import Interval

#: The grounds that lines lie on, and the linear-light simulation of colour vision by Machado et al. (2009), severity 1.
GROUNDS = {chart.COLOURS: ("#ffffff", "#f6f8fa"), chart.DARK_COLOURS: ("#0d1117", "#161b22")}
VISION = {
    "common": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


@pytest.fixture(scope="module")
def rows(profile_dir):
    return load_rows(profile_dir)


def _linear(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def _luminance(colour):
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), _linear(colour)))


def _lab(colour, vision):
    seen = [min(1, max(0, sum(weight * channel for weight, channel in zip(row, _linear(colour))))) for row in VISION[vision]]
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    x, y, z = (sum(w * c for w, c in zip(row, seen)) / white for row, white in zip(matrix, (0.95047, 1, 1.08883)))
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("colours", GROUNDS)
def test_colours_stand_out_and_apart(colours):
    for colour, ground in itertools.product(colours, GROUNDS[colours]):
        low, high = sorted((_luminance(colour), _luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3, (colour, ground)
    for vision in VISION:
        for one, two in itertools.combinations(colours, 2):
            assert math.dist(_lab(one, vision), _lab(two, vision)) >= 24, (vision, one, two)


def test_scatter_holds_what_was_measured(rows):
    chosen = choose(rows).row
    data = chart.make_scatter(rows, "p95_ms", chosen)
    assert [(point.x, point.y) for point in data.points] == [(row.value("p95_ms"), row.value("top1_percent")) for row in rows]
    assert [point.chosen for point in data.points] == [row is chosen for row in rows]
    assert [point.unpruned for point in data.points] == [True, False, False, False, False]
    change = rows[3].intervals["top1_change_points"]
    assert data.points[3].y_range == pytest.approx((95.6 + change.low - change.value, 95.6 + change.high - change.value))
    known = dict(data.points[3].facts)
    assert known["tokens"] == "197→112→64→37"
    assert known["top-1 change"] == "-0.8 points (-1.3 to -0.3 points)"
    assert json.loads(json.dumps(data.to_json()))["points"][3]["name"] == "0.65"


def test_what_takes_the_place_of_accuracy(profiles):
    agreement = [profiles.row("a", p95_ms=1.0, agreement_percent=99.0, macs_share_percent=50.0)]
    assert chart.make_scatter(agreement, "p95_ms").y is METRICS["agreement_percent"]
    nothing = [profiles.row("a", p95_ms=1.0, macs_share_percent=50.0)]
    data = chart.make_scatter(nothing, "p95_ms")
    assert data.y is METRICS["macs_share_percent"]
    assert data.front == ()


def test_what_nobody_measured_has_no_chart(profiles):
    rows = [profiles.row("a", top1_percent=90.0)]
    assert chart.make_scatter(rows, "p95_ms") is None
    assert chart.make_distribution(rows) is None


def test_an_interval_may_know_one_end_only(profiles):
    one_sided = {"p95_ms": Interval(5.0, 4.0, None)}
    (point,) = chart.make_scatter([profiles.row("a", p95_ms=5.0, top1_percent=90.0, intervals=one_sided)], "p95_ms").points
    assert point.x_range == (4.0, None)
    assert point.y_range is None
    assert dict(point.facts)["p95 latency"] == "5.00 ms (4.00 ms or more)"


def test_styles_say_the_budget_of_one_method_and_the_method_of_several(profiles, tmp_path):
    profiles.write(tmp_path / "a")
    one = load_rows(tmp_path)
    assert [point.style for point in chart.make_scatter(one, "p95_ms").points] == [0, 1, 2, 3, 4]
    profiles.write(tmp_path / "b", profiles.info("evit"))
    both = load_rows(tmp_path)
    data = chart.make_scatter(both, "p95_ms")
    assert {(row.method, point.style) for row, point in zip(both, data.points)} == {(m, i) for i, m in enumerate(data.methods)}
    lines = chart.make_token_lines(both).lines
    assert len({(line.style, line.dash) for line in lines}) == len(lines)


def test_a_thicket_of_lines_is_thinned_and_says_so(profiles):
    many = [profiles.row(f"{index}", p50_ms=float(index)) for index in range(40)]
    data = chart.make_token_lines(many, many[39])
    assert len(data.lines) == chart.MAX_LINES
    assert data.left_out == 40 - chart.MAX_LINES
    assert {line.name for line in data.lines} == {"39", *(str(index) for index in range(chart.MAX_LINES - 1))}
