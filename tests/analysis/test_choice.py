from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_tprune.analysis.choice import (
    OBJECTIVES,
    Choice,
    NoChoice,
    choose,
    choose_per_group,
    make_question,
    pareto_front,
)
from edge_tprune.analysis.contrast import contrast
from edge_tprune.analysis.documents import answer_document
from edge_tprune.analysis.limits import LIMITS
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.recorded import RowVerdict
from edge_tprune.analysis.wording import describe_choice, describe_no_choice, describe_trade, list_caveats
from edge_tprune.errors import UserError
from edge_tprune.statistics import Interval


@pytest.fixture(scope="module")
def rows(profile_dir):
    return load_rows(profile_dir)


def test_without_constraints_the_fastest_that_loses_at_most_a_point(rows):
    choice = choose(rows)
    assert choice.row.budget == "0.65"
    assert choice.question.objective == "latency"
    reason = describe_choice(choice)
    assert "fastest with a top-1 drop of at most 1 point" in reason
    assert "1.42 ±" in reason
    assert "95 % interval -1.3 to -0.3 points" in reason
    (headroom,) = choice.headroom
    assert headroom.room == pytest.approx(0.2)
    assert headroom.sure is False
    assert any("not by the whole 95 % interval (0.3 to 1.3" in caveat for caveat in list_caveats(choice))


def test_the_nearest_to_the_unpruned_network(rows):
    known = [replace(row, values={**row.values, "kl_nats": kl}) for row, kl in zip(rows, (0.3, 0.1, 0.2))]
    choice = choose(known, {"max_p50_ms": 1e6}, "divergence")
    assert choice.row is known[1]
    assert "nearest to the unpruned network" in describe_choice(choice)
    exact = [
        replace(row, values={**row.values, "kl_nats": kl, "p50_ms": ms}, intervals={"kl_nats": Interval(kl, kl, kl)})
        for row, kl, ms in zip(rows, (0.0, 1e-10), (9.0, 8.0))
    ]
    loose = choose(exact, {"max_p50_ms": 1e6}, "divergence")
    assert loose.row is exact[1], "of equal ones the fastest"
    assert "Of equal budgets the fastest is taken" in describe_choice(loose)
    json.dumps(answer_document(loose), allow_nan=False)
    with_vectors = [
        replace(row, values={**row.values, "kl_nats": None, "cosine_distance": kl}) for row, kl in zip(rows, (0.3, 0.2, 0.1))
    ]
    assert choose(with_vectors, {"max_p50_ms": 1e6}, "divergence").row is with_vectors[2]


def test_a_speedup_is_a_limit_like_any_other(rows):
    speeds = {row.budget: row.value("speedup") for row in rows}
    fastest = max(speeds.values())
    choice = choose(rows, {"min_speedup": fastest}, "accuracy")
    assert speeds[choice.row.budget] == fastest
    assert f"a speed-up of at least {fastest:.2f}" in describe_choice(choice)
    assert isinstance(choose(rows, {"min_speedup": fastest + 0.01}, "accuracy"), NoChoice)


def test_a_stricter_drop_gives_a_slower_budget(rows):
    assert choose(rows, {"max_top1_drop": 0.5}).row.budget == "0.8"
    assert choose(rows, {"max_top1_drop": 0}).row.budget == "0.9"
    assert choose(rows, {"max_top1_drop": 10}).row.budget == "0.5"


def test_with_only_a_latency_bound_the_most_accurate_is_chosen(rows):
    choice = choose(rows, {"max_p95_ms": 9})
    assert (choice.row.budget, choice.question.objective) == ("0.65", "accuracy")
    assert choice.headroom[0].room == pytest.approx(9 - choice.row.value("p95_ms"))


def test_each_objective(rows):
    unmeasured = ("energy", "power")
    chosen = {name: choose(rows, objective=name).row.budget for name in OBJECTIVES if name not in unmeasured}
    assert chosen == {
        "latency": "0.5",
        "p95": "0.5",
        "throughput": "0.5",
        "accuracy": "0.9",
        "divergence": "0.5",
        "memory": "0.65",
        "macs": "0.5",
    }  # 114 MB equals 112 MB within 2 %
    for name in unmeasured:
        said = describe_no_choice(choose(rows, objective=name))
        assert "was not measured (nothing on this machine measures its whole power). Run: edge-tprune doctor" in said


def test_unset_options_are_no_constraints(rows):
    assert choose(rows, dict.fromkeys(LIMITS)).row.budget == "0.65"


def test_the_runner_up_and_its_trade(rows):
    choice = choose(rows)
    assert choice.runner_up.budget == "0.8"
    trade = describe_trade(choice)
    assert "p50 latency" in trade
    assert "(worse)" in trade
    assert "top-1 96.2% instead of 95.6% (better)" in trade
    alone = choose(rows, {"max_top1_drop": 10, "max_p50_ms": 6.5})
    assert alone.runner_up is None
    assert "no runner-up" in describe_trade(alone)


def test_nothing_fits_names_the_nearest_miss_per_constraint(rows):
    no = choose(rows, {"max_p95_ms": 9, "max_top1_drop": 0.5})
    assert isinstance(no, NoChoice)
    assert [(miss.limit.name, miss.row.budget) for miss in no.misses] == [("max_p95_ms", "0.8"), ("max_top1_drop", "0.65")]
    assert all(miss.excess > 0 for miss in no.misses)
    assert "--max-p95-ms 9 ms is budget 0.8 with 9." in describe_no_choice(no)
    assert "\n" not in describe_no_choice(no)
    document = json.loads(json.dumps(answer_document(no), allow_nan=False))
    assert document["chosen"] is None
    assert document["nearest_misses"][1]["beyond"] == pytest.approx(0.3)


def test_a_near_miss_never_reads_like_the_bound(profiles):
    no = choose([profiles.row(p50_ms=8.001, p95_ms=9)], {"max_p50_ms": 8}, "latency")
    assert "(0.001 ms beyond)" in describe_no_choice(no)


def test_a_row_that_misses_a_constrained_metric_is_never_chosen_and_that_is_said(profiles):
    fast = profiles.row("fast", p50_ms=1.0, p95_ms=1.0)
    slow = profiles.row("slow", p50_ms=2.0, p95_ms=2.0, top1_drop_points=0.1)
    choice = choose([fast, slow], {"max_top1_drop": 1})
    assert choice.row is slow
    (exclusion,) = choice.exclusions
    assert (exclusion.row, exclusion.unfit, exclusion.missing) == (fast, None, (METRICS["top1_drop_points"],))
    assert any("fast: top-1 drop not measured" in caveat for caveat in list_caveats(choice))


def test_when_accuracy_was_never_measured_the_no_says_what_to_run(profiles):
    assert "top-1 drop was not measured. Run: edge-tprune eval" in describe_no_choice(choose([profiles.row(p50_ms=1.0)]))


def test_without_labels_agreement_bounds_the_loss(profiles):
    same = profiles.row("a", p50_ms=2.0, agreement_percent=99.4)
    other = profiles.row("b", p50_ms=1.0, agreement_percent=97.0)
    choice = choose([same, other])
    assert choice.row is same
    assert choice.headroom[0].limit.name == "min_agreement"


def test_an_unfit_row_is_never_chosen(profiles):
    broken = profiles.row("broken", p50_ms=1.0, top1_drop_points=0.0, unfit="its outputs failed the check")
    fine = profiles.row("fine", p50_ms=2.0, top1_drop_points=0.0)
    assert choose([broken, fine]).row is fine
    assert "failed the check" in describe_no_choice(choose([broken]))


def test_of_equal_budgets_the_most_accurate_is_taken(profiles):
    def row(name, top1, ms, reach):
        interval = Interval(ms, ms - reach, ms + reach)
        return profiles.row(name, profile=name, p50_ms=ms, top1_percent=top1, intervals={"p50_ms": interval})

    fast, accurate = row("fast", 90, 5.00, 0.02), row("accurate", 92, 5.03, 0.02)
    choice = choose([fast, accurate, row("slow", 95, 7, 0.02)], objective="latency")
    assert choice.row is accurate
    assert choice.equals == (fast,)
    assert choice.unresolved == ()
    assert "Equal within 2 %: budget fast. Of equal budgets the most accurate is taken." in describe_choice(choice)


def test_what_is_not_resolved_is_no_tie_and_is_named_with_what_it_takes(profiles):
    def row(name, top1, ms, reach):
        interval = Interval(ms, ms - reach, ms + reach)
        return profiles.row(name, profile=name, p50_ms=ms, top1_percent=top1, intervals={"p50_ms": interval})

    fast, near = row("fast", 90, 5.0, 0.4), row("near", 92, 5.1, 0.4)
    choice = choose([fast, near], objective="latency")
    assert choice.row is fast
    assert choice.equals == ()
    ((other, found),) = choice.unresolved
    assert other is near
    assert found.needed > found.count == 5
    assert f"Not resolved from it: budget near (about {found.needed} rounds would tell; 5 were measured)" in describe_choice(
        choice
    )
    assert answer_document(choice)["not_resolved"][0]["contrast"]["rounds_needed"] == found.needed


def test_the_unpruned_model_is_never_named_over_unresolved_ones_without_saying_so(profiles):
    def row(name, top1, ms, unpruned=False):
        interval = Interval(ms, ms - 1, ms + 1)
        return profiles.row(
            name, profile=name, p50_ms=ms, top1_percent=top1, top1_drop_points=80.0 - top1, intervals={"p50_ms": interval}, unpruned=unpruned
        )  # fmt: skip

    pruned, unpruned = row("0.8", 79.5, 9.9), row("1.0", 80.0, 10.0, unpruned=True)
    assert choose([pruned, unpruned]).row is pruned, "the better estimate, not the more accurate one, although neither is sure"
    choice = choose([row("0.8", 79.5, 10.1), unpruned])
    assert choice.row is unpruned
    assert "only because the measurement cannot tell" in describe_choice(choice)


def test_the_answer_names_one_percentile(rows):
    assert make_question(rows).latency.name == "p50_ms"
    assert make_question(rows, {"max_p95_ms": 9}).latency.name == "p95_ms"
    assert make_question(rows, objective="p95").latency.name == "p95_ms"
    choice = choose(rows, {"max_p95_ms": 9})
    assert choice.front.cost.name == "p95_ms"
    assert "p50" not in describe_choice(choice) + describe_trade(choice)


def test_different_environments_are_refused_by_name_and_forced_openly(profiles):
    one = profiles.row("1", p50_ms=1.0, top1_drop_points=0.0, conditions={"host": "a", "CPU": "x"})
    two = profiles.row("2", p50_ms=2.0, top1_drop_points=0.0, conditions={"host": "b", "CPU": "x"})
    with pytest.raises(UserError, match=r"differ in host \(a, b\).*--force"):
        choose([one, two])
    forced = choose([one, two], force=True)
    assert forced.row is one
    assert list_caveats(forced)[0] == "forced: the rows differ in host (a, b)"
    each = choose_per_group([one, two])
    assert [answer.row for _, answer in each] == [one, two]


def test_each_group_has_an_answer_of_its_own(profiles):
    one = profiles.row("1", p50_ms=1.0, top1_drop_points=0.0, conditions={"host": "a"})
    two = profiles.row("2", p50_ms=2.0, top1_drop_points=5.0, conditions={"host": "b"})
    answers = [answer for _, answer in choose_per_group([one, two])]
    assert isinstance(answers[0], Choice)
    assert isinstance(answers[1], NoChoice)


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
    assert any("was cut off" in caveat for caveat in list_caveats(choose(load_rows(path))))


def test_the_answer_is_documented(rows):
    choice = choose(rows, {"max_p95_ms": 10, "max_top1_drop": 1})
    document = json.loads(json.dumps(answer_document(choice), allow_nan=False))
    assert document["chosen"]["budget"] == "0.65"
    assert [entry["constraint"] for entry in document["constraints"]] == ["max_p95_ms", "max_top1_drop"]
    assert document["runner_up"]["budget"] == "0.8"
    assert [row["budget"] for row in document["pareto_front"]] == ["0.5", "0.65", "0.8", "0.9"]
    assert document["equal_within"] == {"percent": 2.0, "points": 0.5}


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

    choice = choose(rows, constraints, objective)
    if isinstance(choice, NoChoice):
        names = OBJECTIVES[objective or ("latency" if {"max_top1_drop", "min_agreement"} & stated.keys() else "accuracy")]
        metric = next((name for name in names if any(row.value(name) is not None for row in rows)), names[0])
        assert not any(keeps(row) and row.value(metric) is not None for row in rows)
        assert all(miss.excess > 0 for miss in choice.misses)
        return
    for row in (choice.row, *choice.equals, *([choice.runner_up] if choice.runner_up else [])):
        assert keeps(row)
    assert [headroom.limit.name for headroom in choice.headroom] == list(stated)
    assert all(headroom.room >= 0 for headroom in choice.headroom)
    metric = choice.question.metric
    for row in filter(keeps, rows):
        value = row.value(metric.name)
        if value is not None and metric.is_better(value, choice.row.value(metric.name)):
            assert any(row is other for other in choice.equals)
            assert contrast(row, choice.row, metric).resolution == "equal"


def test_the_front_is_of_what_was_asked(profiles):
    def row(name, ms, joules, top1):
        return profiles.row(name, p50_ms=ms, energy_mj_per_image=joules, top1_percent=top1, top1_drop_points=0.0)

    rows = [row("a", 5.0, 90.0, 80.0), row("b", 6.0, 50.0, 79.0), row("c", 7.0, 60.0, 78.0)]
    choice = choose(rows, {"max_energy_mj": 100})
    assert (choice.front.cost.name, choice.front.accuracy.name) == ("energy_mj_per_image", "top1_percent")
    assert [each.budget for each in choice.front.rows] == ["b", "a"]
    assert choose(rows).front.cost.name == "p50_ms"


def test_among_equals_a_valid_measurement_is_preferred_to_a_suspect_one(profiles):
    def row(name, status):
        return profiles.row(
            name, profile=name, p50_ms=5.0, intervals={"p50_ms": Interval(5, 4.9, 5.1)},
            top1_percent=90.0 + (status == "suspect"), verdict=RowVerdict(status, ("throttled",)),
        )  # fmt: skip

    assert choose([row("a", "suspect"), row("b", "valid")], objective="latency").row.budget == "b"
