"""Which step of a fit comes next, and what it decides from what was measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_tprune.errors import UserError
from edge_tprune.schedule.latency import Latency, NetworkRecord
from edge_tprune.search.configuration import Found
from edge_tprune.search.cost import MeasuredCost, total
from edge_tprune.search.fit import (
    KIND,
    STATE,
    Candidate,
    FitState,
    Round,
    Tuned,
    name_candidates,
    needs_no_pruning,
    next_aim,
    pick_candidates,
    tightest,
    with_best_so_far,
)
from edge_tprune.search.space import MethodSpace, SearchSpace
from edge_tprune.search.study import Result
from edge_tprune.statistics import Interval
from tests.schedule.test_latency import SHAPE, fitted

MODEL = fitted(SHAPE, ["evit"])


def candidate(name: str, precision: str) -> Candidate:
    return Candidate(name=name, method="evit", options={}, tokens=(9, 5), precision=precision, predicted=None)


def test_what_was_removed_is_done_again() -> None:
    first = Round(aims={"fp32": 8.0}, candidates=(), bundle="b-1", profile="p1", again={"fp32": 7.8})
    last = Round(aims={"fp32": 7.8}, candidates=(), bundle="b-2", profile="p2", again={"fp32": 7.7})
    tuned = {
        "a": Tuned(candidate="fit-1", verdict="better", bundle="t", profile="p3"),
        "b": Tuned(candidate="1.0", verdict="none"),
    }
    whole = FitState(key="k", probes={"fp32": "x", "int8": "y"}, rounds={"a": (first, last)}, tuned=tuned)
    there = {"x/latency.json", "y/latency.json", "b-1", "p1", "b-2", "p2", "t", "p3"}
    assert whole.without_removed(there.__contains__) == whole
    assert whole.without_removed((there - {"b-1", "p1"}).__contains__) == whole, "nothing needs the rounds before the last"
    assert whole.without_removed((there - {"y/latency.json"}).__contains__).probes == {"fp32": "x"}
    assert whole.without_removed((there - {"t"}).__contains__).tuned == {"b": tuned["b"]}
    for gone in ("b-2", "p2"):
        left = whole.without_removed((there - {gone}).__contains__)
        assert left.next_step("a", ["fp32"]) == "measure"
        assert left.rounds["a"][0] == first


def test_what_is_measured_again_is_tuned_again() -> None:
    first, second = (Round(aims={"fp32": 8.0}, candidates=(), bundle=f"b-{n}", profile=f"p{n}") for n in (1, 2))
    tuned = Tuned(candidate="fit-1", verdict="better", bundle="t", profile="p3")
    state = FitState(key="k", probes={"fp32": "x"}, rounds={"a": (first,), "b": (second,)}, tuned={"a": tuned, "b": tuned})
    left = state.without_removed({"x/latency.json", "b-1", "b-2", "p2", "t", "p3"}.__contains__)
    assert left.tuned == {"b": tuned}, "p1 is gone: perhaps another network is chosen"
    assert left.next_step("a", ["fp32"], tune=True) == "measure"


def test_more_trials_are_another_search() -> None:
    found = Round(aims={"fp32": 8.0}, candidates=(), bundle="b-1", profile="p1", trials=30)
    tuned = {"a": Tuned(candidate="fit-1", verdict="better"), "b": Tuned(candidate="1.0", verdict="none")}
    whole = FitState(key="k", probes={"fp32": "x"}, rounds={"a": (found,), "b": (found,)}, tuned=tuned)
    assert whole.without_shorter_searches("a", 30) == whole
    assert whole.without_shorter_searches("a", 20) == whole
    longer = whole.without_shorter_searches("a", 31)
    assert longer.next_step("a", ["fp32"]) == "search"
    assert (longer.rounds, longer.tuned) == ({"b": (found,)}, {"b": tuned["b"]})


def test_another_time_is_another_fine_tuning() -> None:
    tuned = {"a": Tuned(candidate="fit-1", verdict="better", seconds=300), "b": Tuned(candidate="1.0", verdict="none")}
    state = FitState(key="k", tuned=tuned)
    assert state.without_other_tuning("a", 300, "") == state.without_other_tuning("b", None, "") == state
    assert state.without_other_tuning("a", None, "").tuned == {"b": tuned["b"]}
    assert state.without_other_tuning("b", 300, "").tuned == {"a": tuned["a"]}


def test_other_photos_are_another_fine_tuning_and_a_time_that_was_too_short_is_tried_again() -> None:
    tuned = {
        "a": Tuned(candidate="fit-1", verdict="better", photos="p"),
        "b": Tuned(candidate="1.0", verdict="too short", photos="p", too_short=True),
    }
    state = FitState(key="k", tuned=tuned)
    assert state.without_other_tuning("a", None, "p") == state
    assert state.without_other_tuning("a", None, "q").tuned == {"b": tuned["b"]}
    assert state.without_other_tuning("b", None, "p").tuned == {"a": tuned["a"]}


def test_steps_follow_from_what_is_there(tmp_path: Path) -> None:
    state = FitState(key="k")
    assert state.next_step("a", ["fp32"]) == "probe"
    state = msgspec.structs.replace(state, probes={"fp32": "profiles/x"})
    assert state.next_step("a", ["fp32"]) == "search"
    assert state.next_step("a", ["fp32", "int8"]) == "probe", "the other precision has none"
    first = Round(aims={"fp32": 8.0}, candidates=(), bundle="b-1")
    state = state.with_round("a", first)
    assert state.next_step("a", ["fp32"]) == "measure"
    assert state.next_step("b", ["fp32"]) == "search", "other limits use the probes, not the search"
    state = state.with_round("a", msgspec.structs.replace(first, profile="profiles/y", again={"fp32": 7.8}))
    assert len(state.rounds["a"]) == 1
    assert state.next_step("a", ["fp32"]) == "search"
    assert state.aim("a", "fp32", 8.0) == 7.8
    assert state.aim("b", "fp32", 6.0) == 6.0
    for number in (2, 3):
        state = state.with_round(
            "a", Round(aims={"fp32": 7.8}, candidates=(), bundle=f"b-{number}", profile="z", again={"fp32": 7.7})
        )
    assert state.next_step("a", ["fp32"]) == "answer", "three rounds at most"
    assert state.next_step("a", ["fp32"], tune=True) == "tune"
    state = msgspec.structs.replace(state, tuned={"a": Tuned(candidate="fit-1", verdict="nothing")})
    assert state.next_step("a", ["fp32"], tune=True) == "answer"
    KIND.write(tmp_path, state)
    assert KIND.read(tmp_path) == state


def test_a_precision_whose_candidates_were_as_predicted_keeps_them() -> None:
    two = (candidate("fit-1", "fp32"), candidate("fit-2", "int8"))
    last = Round(aims={"fp32": 8.0, "int8": 8.0}, candidates=two, bundle="b-1", profile="y", again={"int8": 7.5})
    state = FitState(key="k").with_round("a", last)
    assert state.settled("a", "fp32") == [two[0]]
    assert state.settled("a", "int8") is None
    assert state.settled("b", "fp32") is None
    assert [each.name for each in name_candidates([two[1], two[1], two[0]])] == ["fit-1", "fit-2", "fit-3"]


def test_another_round_measures_the_best_so_far_again() -> None:
    best, other = candidate("fit-3", "fp32"), msgspec.structs.replace(candidate("fit-1", "fp32"), tokens=(7, 3))
    assert with_best_so_far([other], best) == [other, best]
    assert with_best_so_far([other, best], best) == [other, best], "once"
    assert with_best_so_far([other], None) == [other]


def test_another_round_where_predictions_were_off() -> None:
    said = [Interval(8.0, 7.8, 8.2), None]
    assert next_aim(8.0, 8.0, said, [7.9, 9.0], met=True) is None
    assert next_aim(8.0, 8.0, said, [8.8, 9.0], met=False) == pytest.approx(0.99 * 8.0 / 1.1)
    assert next_aim(8.0, 8.0, said, [7.2, 9.0], met=True) == pytest.approx(0.99 * 8.0 / 0.9), "tokens were given away"
    assert next_aim(8.0, 8.0, said, [8.1, 7.5], met=True) == pytest.approx(0.99 * 8.0 / (8.1 / 8.0)), (
        "the one that keeps it is far below"
    )
    assert next_aim(8.0, 8.0, said, [8.1, 7.7], met=True) is None
    assert next_aim(8.0, 8.0, [None], [7.2], met=False) is None
    without = [Interval(6.0, 5.8, 6.2)]  # seemed to need no pruning in int8; what float32 found is far faster than needed there
    assert next_aim(8.0, 8.0, without, [9.0, 6.8, 6.7], met=True) == pytest.approx(0.99 * 8.0 / 1.5)
    assert next_aim(8.0, 8.0, without, [9.0, 7.8, 6.7], met=True) is None


def test_the_tightest_bound_is_searched() -> None:
    network = NetworkRecord(name="tiny", weights_sha256="a", tokens=197, blocks=12)
    slow = msgspec.structs.replace(MODEL, metric="p95_ms", full=2 * MODEL.full)
    latency = Latency(
        run_id="r", network=network, runtime="onnxruntime", precision="fp32", batch=1, threads=1, power_mode=None, machine="x",
        status="valid", costs={"p50_ms": MODEL, "p95_ms": slow},
    )  # fmt: skip
    assert tightest(latency, {"p50_ms": 9.0, "p95_ms": 12.0}) == ("p95_ms", 12.0)
    assert tightest(latency, {"p50_ms": 5.0, "p95_ms": 12.0}) == ("p50_ms", 5.0)
    with pytest.raises(UserError, match="energy_mj is not known"):
        tightest(latency, {"energy_mj": 3.0})


def test_a_loose_limit_needs_no_pruning() -> None:
    assert needs_no_pruning(MODEL, SHAPE, 2 * MODEL.full)
    assert not needs_no_pruning(MODEL, SHAPE, 0.5 * MODEL.full)


def test_candidates_are_the_best_the_second_and_a_safe_one() -> None:
    cost = MeasuredCost(SHAPE, MODEL)
    space = SearchSpace(cost, 12.0, (MethodSpace("evit", lambda tokens: 2),), 1, 11)
    results = []
    for number, weights in enumerate(([0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0])):
        configuration = space.from_weights("evit", weights, {"fuse": True})
        assert configuration is not None
        schedule = space.schedule(configuration)
        assert schedule is not None
        results.append(Result(configuration, schedule, (0.1 + number,) * 5))
    best, second, safe = pick_candidates(Found(space, results), MODEL, {"other": 1}, "int8")
    assert best.tokens == results[0].schedule.tokens
    assert second.tokens == results[1].schedule.tokens
    assert {each.precision for each in (best, second, safe)} == {"int8"}
    assert best.options == {"fuse": True, "other": 1}
    spent = total(cost, "evit", safe.tokens)
    assert spent is not None
    assert spent * (1 + MODEL.reach) <= 12.0
    assert safe.predicted is not None
    assert safe.predicted.value == pytest.approx(spent)


def test_the_second_candidate_is_of_another_method_where_there_are_several() -> None:
    model = fitted(SHAPE, ["evit", "tome"])
    methods = (MethodSpace("evit", lambda tokens: 2), MethodSpace("tome", lambda tokens: 2))
    space = SearchSpace(MeasuredCost(SHAPE, model), 12.0, methods, 1, 11)
    results = []
    for method, block in (("evit", 4), ("evit", 5), ("tome", 4)):
        configuration = space.from_weights(method, [float(number in (block, 8)) for number in range(1, 12)], {})
        assert configuration is not None
        schedule = space.schedule(configuration)
        assert schedule is not None
        results.append(Result(configuration, schedule, (0.1 + len(results),) * 5))
    found = pick_candidates(Found(space, results), model, {}, "fp32")
    assert [each.method for each in found] == ["evit", "tome", "evit"]
    assert [each.tokens for each in found[:2]] == [results[0].schedule.tokens, results[2].schedule.tokens]


def test_the_best_methods_own_pattern_is_a_candidate() -> None:
    cost = MeasuredCost(SHAPE, MODEL)
    space = SearchSpace(cost, 12.0, (MethodSpace("evit", lambda tokens: 2),), 1, 11)
    results = []
    for block in (4, 5, 6):
        configuration = space.from_weights("evit", [float(number in (block, 8)) for number in range(1, 12)], {})
        assert configuration is not None
        schedule = space.schedule(configuration)
        assert schedule is not None
        results.append(Result(configuration, schedule, (0.1 + len(results),) * 5))
    found = pick_candidates(Found(space, results, patterns={"evit": results[2].configuration}), MODEL, {}, "fp32")
    assert [each.tokens for each in found[:3]] == [result.schedule.tokens for result in results]
    assert len(found) == 4
    assert len(pick_candidates(Found(space, results, patterns={"evit": results[0].configuration}), MODEL, {}, "fp32")) == 3
    dropped = Found(space, results[:2], patterns={"evit": results[2].configuration})
    assert results[2].schedule.tokens in [each.tokens for each in pick_candidates(dropped, MODEL, {}, "fp32")]


def test_bounds_that_no_fit_writes_are_damage(tmp_path: Path) -> None:
    first = Round(aims={"fp32": 8.0}, candidates=(), bundle="b-1", profile="p", again={"fp32": 7.5})
    KIND.write(tmp_path, FitState(key="k", rounds={"a": (first,)}))
    (tmp_path / STATE).write_text((tmp_path / STATE).read_text().replace("7.5", "-3.0"))
    with pytest.raises(UserError, match="again"):
        KIND.read(tmp_path)


def test_a_prediction_of_nothing_says_nothing() -> None:
    assert next_aim(8.0, 8.0, [Interval(0.0, 0.0, 0.0)], [9.0], met=False) is None
