from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from edge_tprune.analysis.limits import LIMITS
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.recorded import Verdict
from edge_tprune.analysis.select import (
    OBJECTIVES,
    Choice,
    NothingFits,
    choose,
    choose_each,
    equal_within_noise,
    pareto_front,
    render_choice,
)
from edge_tprune.analysis.table import load_rows
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.statistics import Interval


@pytest.fixture(scope="module")
def rows(profile_dir):
    return load_rows(profile_dir)


def test_without_constraints_the_fastest_that_loses_at_most_a_point(rows):
    choice = choose(rows)
    assert choice.row.budget == "0.65"
    assert choice.objective == "latency"
    assert "fastest with a top-1 drop of at most 1 point" in choice.reason
    assert "1.42 ±" in choice.reason
    assert "95 % interval -1.3 to -0.3 points" in choice.reason
    (margin,) = choice.margins
    assert margin.room == pytest.approx(0.2)
    assert margin.sure is False
    assert any("not for sure" in caveat and "0.3 to 1.3" in caveat for caveat in choice.caveats)


def test_a_stricter_drop_gives_a_slower_budget(rows):
    assert choose(rows, {"max_top1_drop": 0.5}).row.budget == "0.8"
    assert choose(rows, {"max_top1_drop": 0}).row.budget == "0.9"
    assert choose(rows, {"max_top1_drop": 10}).row.budget == "0.5"


def test_with_only_a_latency_bound_the_most_accurate_is_chosen(rows):
    choice = choose(rows, {"max_p95_ms": 9})
    assert (choice.row.budget, choice.objective) == ("0.65", "accuracy")
    assert choice.margins[0].room == pytest.approx(9 - choice.row.value("p95_ms"))


def test_each_objective(rows):
    unmeasured = ("energy", "power")
    chosen = {name: choose(rows, objective=name).row.budget for name in OBJECTIVES if name not in unmeasured}
    assert chosen == {"latency": "0.5", "p95": "0.5", "throughput": "0.5", "accuracy": "0.9", "memory": "0.5", "macs": "0.5"}
    for name in unmeasured:
        with pytest.raises(NothingFits, match=r"was not measured\. Run: edge-tprune doctor"):
            choose(rows, objective=name)


def test_unset_options_are_no_constraints(rows):
    assert choose(rows, dict.fromkeys(LIMITS)).row.budget == "0.65"


def test_the_runner_up_and_its_trade(rows):
    choice = choose(rows)
    assert choice.runner_up.budget == "0.8"
    assert "p50 latency" in choice.trade
    assert "(worse)" in choice.trade
    assert "top-1 96.2% instead of 95.6% (better, within the noise)" in choice.trade
    alone = choose(rows, {"max_top1_drop": 10, "max_p50_ms": 6.5})
    assert alone.runner_up is None
    assert "no runner-up" in alone.trade


def test_nothing_fits_names_the_nearest_miss_per_constraint(rows):
    with pytest.raises(NothingFits) as caught:
        choose(rows, {"max_p95_ms": 9, "max_top1_drop": 0.5})
    no = caught.value
    assert isinstance(no, NegativeAnswer)
    assert [(miss.limit.name, miss.row.budget) for miss in no.misses] == [("max_p95_ms", "0.8"), ("max_top1_drop", "0.65")]
    assert all(miss.short > 0 for miss in no.misses)
    assert "--max-p95-ms 9 ms is budget 0.8 with 9." in str(no)
    assert "\n" not in str(no)
    document = json.loads(json.dumps(no.to_document(), allow_nan=False))
    assert document["chosen"] is None
    assert document["nearest_misses"][1]["beyond"] == pytest.approx(0.3)


def test_a_near_miss_never_reads_like_the_bound(profiles):
    with pytest.raises(NothingFits, match=r"with 8\.001 ms|with 8 ms \(0\.001 ms beyond\)|0\.001 ms beyond"):
        choose([profiles.row(p50_ms=8.001, p95_ms=9)], {"max_p50_ms": 8}, "latency")


def test_a_row_that_misses_a_constrained_metric_is_never_chosen_and_that_is_said(profiles):
    fast = profiles.row("fast", p50_ms=1.0, p95_ms=1.0)
    slow = profiles.row("slow", p50_ms=2.0, p95_ms=2.0, top1_drop_points=0.1)
    choice = choose([fast, slow], {"max_top1_drop": 1})
    assert choice.row is slow
    assert choice.left_out == ((fast, "top-1 drop not measured"),)
    assert any("fast: top-1 drop not measured" in caveat for caveat in choice.caveats)


def test_when_accuracy_was_never_measured_the_no_says_what_to_run(profiles):
    with pytest.raises(NothingFits, match=r"top-1 drop was not measured\. Run: edge-tprune eval"):
        choose([profiles.row(p50_ms=1.0)])


def test_without_labels_agreement_bounds_the_loss(profiles):
    same = profiles.row("a", p50_ms=2.0, agreement_percent=99.4)
    other = profiles.row("b", p50_ms=1.0, agreement_percent=97.0)
    choice = choose([same, other])
    assert choice.row is same
    assert choice.margins[0].limit.name == "min_agreement"


def test_an_unfit_row_is_never_chosen(profiles):
    broken = profiles.row("broken", p50_ms=1.0, top1_drop_points=0.0, unfit="its outputs failed the check")
    fine = profiles.row("fine", p50_ms=2.0, top1_drop_points=0.0)
    assert choose([broken, fine]).row is fine
    with pytest.raises(NothingFits, match="failed the check"):
        choose([broken])


def test_equal_within_the_noise_goes_to_the_more_accurate(profiles):
    def row(name, top1, ms, low, high):
        return profiles.row(name, profile=name, p50_ms=ms, top1_percent=top1, intervals={"p50_ms": Interval(ms, low, high)})

    fast, accurate = row("fast", 90, 5.00, 4.9, 5.1), row("accurate", 92, 5.05, 4.95, 5.15)
    choice = choose([fast, accurate, row("slow", 95, 7, 6.9, 7.1)], objective="latency")
    assert choice.row is accurate
    assert choice.equals == (fast,)
    assert "Equal within the noise" in choice.reason


def test_rows_of_one_run_are_paired_by_round(profiles):
    drift = [1.0, 1.3, 1.7, 2.2, 2.9]  # far wider than the difference of the two

    def row(name, ms):
        of = {index: ms * factor * (1 + 0.001 * (index % 2)) for index, factor in enumerate(drift)}
        return profiles.row(name, p50_ms=ms, by_round={"p50_ms": of}, intervals={"p50_ms": Interval(ms, ms / 2, ms * 2)})

    assert not equal_within_noise(row("a", 5.0), row("b", 5.1), METRICS["p50_ms"])
    assert equal_within_noise(row("a", 5.0), row("b", 5.0), METRICS["p50_ms"])


def test_one_round_makes_no_two_rows_equal_that_read_differently(profiles):
    def row(name, ms):
        return profiles.row(name, p50_ms=ms, by_round={"p50_ms": {0: ms}}, intervals={"p50_ms": Interval(ms, None, None)})

    assert not equal_within_noise(row("a", 5.0), row("b", 5.1), METRICS["p50_ms"])
    assert equal_within_noise(row("a", 5.001), row("b", 5.002), METRICS["p50_ms"])


def test_different_environments_are_refused_by_name_and_forced_openly(profiles):
    one = profiles.row("1", p50_ms=1.0, top1_drop_points=0.0, conditions={"host": "a", "CPU": "x"})
    two = profiles.row("2", p50_ms=2.0, top1_drop_points=0.0, conditions={"host": "b", "CPU": "x"})
    with pytest.raises(UserError, match=r"differ in host \(a, b\).*--force"):
        choose([one, two])
    forced = choose([one, two], force=True)
    assert forced.row is one
    assert forced.caveats[0] == "forced: the rows differ in host (a, b)"
    each = choose_each([one, two])
    assert [answer.row for _, answer in each] == [one, two]


def test_choose_each_keeps_the_noes(profiles):
    one = profiles.row("1", p50_ms=1.0, top1_drop_points=0.0, conditions={"host": "a"})
    two = profiles.row("2", p50_ms=2.0, top1_drop_points=5.0, conditions={"host": "b"})
    answers = [answer for _, answer in choose_each([one, two])]
    assert isinstance(answers[0], Choice)
    assert isinstance(answers[1], NothingFits)


@pytest.mark.parametrize(
    ("constraints", "objective", "says"),
    [
        ({"max_p96_ms": 3}, None, "no constraint 'max_p96_ms'.*Did you mean"),
        ({"max_p95_ms": math.nan}, None, "--max-p95-ms must be a number"),
        ({}, "latncy", "no objective 'latncy'.*Did you mean latency"),
    ],
)
def test_wrong_questions(rows, constraints, objective, says):
    with pytest.raises(UserError, match=says):
        choose(rows, constraints, objective)


def test_nothing_to_choose_from():
    with pytest.raises(UserError, match="nothing to choose from"):
        choose([])


def test_an_interrupted_run_is_a_caveat(profiles, tmp_path):
    info = profiles.info()
    path = profiles.write(tmp_path / "run", info, profiles.lines(info)[:-6])
    assert any("was cut off" in caveat for caveat in choose(load_rows(path)).caveats)


def test_the_answer_is_printed_and_documented(rows):
    choice = choose(rows, {"max_p95_ms": 10, "max_top1_drop": 1})
    stream = io.StringIO()
    render_choice(choice, Console(file=stream, width=60))
    text = stream.getvalue()
    assert text.isascii()
    assert text.startswith("Budget 0.65 is the fastest with a p95 latency of at most 10 ms and a top-1 drop of at most 1 point")
    assert "Runner-up: budget 0.8" in text
    document = json.loads(json.dumps(choice.to_document(), allow_nan=False))
    assert document["chosen"]["budget"] == "0.65"
    assert [entry["constraint"] for entry in document["constraints"]] == ["max_p95_ms", "max_top1_drop"]
    assert document["runner_up"]["budget"] == "0.8"
    assert [row["budget"] for row in document["pareto_front"]] == ["0.5", "0.65", "0.8", "0.9"]


NUMBER = st.one_of(st.none(), st.sampled_from([1.0, 2.0, 3.0]), st.floats(0.1, 100))
ROW = st.fixed_dictionaries(
    {
        "p50_ms": NUMBER,
        "p95_ms": NUMBER,
        "top1_percent": NUMBER,
        "top1_drop_points": NUMBER,
        "agreement_percent": NUMBER,
        "throughput_images_per_s": NUMBER,
        "peak_memory_mb": NUMBER,
        "macs_g": NUMBER,
        "mean_power_w": NUMBER,
        "energy_mj_per_image": NUMBER,
        "missed_deadlines_percent": NUMBER,
    }
)


def _rows(profiles, table):
    return [
        profiles.row(str(index), unfit="broken" if index % 7 == 6 else None, **values) for index, values in enumerate(table)
    ]


@given(st.lists(ROW, max_size=12))
def test_pareto_front_equals_brute_force(profiles, table):
    rows = _rows(profiles, table)
    for names in (
        ("p50_ms", "top1_percent"),
        ("throughput_images_per_s", "peak_memory_mb"),
        ("p95_ms", "energy_mj_per_image", "top1_percent"),
    ):
        metrics = [METRICS[name] for name in names]
        known = [row for row in rows if not row.unfit and all(row.value(name) is not None for name in names)]

        def beats(a, b, metrics=metrics):
            pairs = [(metric, a.value(metric.name), b.value(metric.name)) for metric in metrics]
            return all(not metric.is_better(theirs, ours) for metric, ours, theirs in pairs) and any(
                metric.is_better(ours, theirs) for metric, ours, theirs in pairs
            )

        expected = {row.budget for row in known if not any(beats(other, row) for other in known)}
        front = pareto_front(rows, *metrics)
        assert {row.budget for row in front} == expected
        costs = [metrics[0].cost(row.value(names[0])) for row in front]
        assert costs == sorted(costs)


@given(
    st.lists(ROW, min_size=1, max_size=10),
    st.dictionaries(st.sampled_from(list(LIMITS)), st.one_of(st.none(), st.floats(0.1, 100)), max_size=4),
    st.sampled_from([None, *OBJECTIVES]),
)
def test_a_choice_keeps_every_constraint_and_a_no_means_that_nothing_does(profiles, table, constraints, objective):
    rows = _rows(profiles, table)
    stated = {name: bound for name, bound in constraints.items() if bound is not None}
    assume(stated or objective is not None)  # the default constraint has tests of its own

    def keeps(row):
        for name, bound in stated.items():
            metric, side = LIMITS[name]
            value = row.value(metric)
            if value is None or (value > bound if side == "max" else value < bound):
                return False
        return row.unfit is None

    try:
        choice = choose(rows, constraints, objective)
    except NothingFits as caught:
        no = caught
        names = OBJECTIVES[objective or ("latency" if {"max_top1_drop", "min_agreement"} & stated.keys() else "accuracy")]
        metric = next((name for name in names if any(row.value(name) is not None for row in rows)), names[0])
        assert not any(keeps(row) and row.value(metric) is not None for row in rows)
        assert all(miss.short > 0 for miss in no.misses)
        return
    for row in (choice.row, *choice.equals, *([choice.runner_up] if choice.runner_up else [])):
        assert keeps(row)
    assert [margin.limit.name for margin in choice.margins] == list(stated)
    assert all(margin.room >= 0 for margin in choice.margins)
    metric = choice.metric
    for row in filter(keeps, rows):
        value = row.value(metric.name)
        if value is not None and metric.is_better(value, choice.row.value(metric.name)):
            assert equal_within_noise(row, choice.row, metric)


def test_accuracy_on_the_same_images_is_paired_image_by_image(profiles):
    bits = np.arange(1000) % 4 > 0  # 75 % right
    lost = bits.copy()
    lost[np.flatnonzero(bits)[:20]] = False
    wide = {"top1_change_points": Interval(0, -5, 5)}  # unpaired, nothing could be told apart

    def row(right, data="d"):
        top1 = 100 * float(right.mean())
        conditions = {"eval data hash": data}
        return profiles.row(
            top1_percent=top1, intervals=wide, conditions=conditions, profile=str(id(right)), per_image={"top1_percent": right}
        )

    metric = METRICS["top1_percent"]
    assert not equal_within_noise(row(bits), row(lost), metric)
    assert equal_within_noise(row(bits), row(bits.copy()), metric)
    assert equal_within_noise(row(bits), row(lost, "other images"), metric)


def test_the_front_is_of_what_was_asked(profiles):
    def row(name, ms, joules, top1):
        return profiles.row(name, p50_ms=ms, energy_mj_per_image=joules, top1_percent=top1, top1_drop_points=0.0)

    rows = [row("a", 5.0, 90.0, 80.0), row("b", 6.0, 50.0, 79.0), row("c", 7.0, 60.0, 78.0)]
    choice = choose(rows, {"max_energy_mj": 100})
    assert [metric.name for metric in choice.pareto_metrics] == ["energy_mj_per_image", "top1_percent"]
    assert [each.budget for each in choice.pareto] == ["b", "a"]
    assert [metric.name for metric in choose(rows).pareto_metrics] == ["p50_ms", "top1_percent"]


def test_among_equals_a_valid_measurement_is_preferred_to_a_suspect_one(profiles):
    def row(name, status):
        return profiles.row(
            name, profile=name, p50_ms=5.0, intervals={"p50_ms": Interval(5, 4.9, 5.1)},
            top1_percent=90.0 + (status == "suspect"), verdict=Verdict(status, ("throttled",)),
        )  # fmt: skip

    assert choose([row("a", "suspect"), row("b", "valid")], objective="latency").row.budget == "b"
