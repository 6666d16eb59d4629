"""Which step of a fit comes next, and what it decides from what was measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_tprune.errors import UserError
from edge_tprune.schedule.latency import Latency, NetworkRecord
from edge_tprune.search.configuration import Found
from edge_tprune.search.cost import MeasuredCost, total
from edge_tprune.search.fit import KIND, FitState, Round, needs_no_pruning, next_aim, pick_candidates, tightest
from edge_tprune.search.space import MethodSpace, SearchSpace
from edge_tprune.search.study import Result
from edge_tprune.statistics import Interval
from tests.schedule.test_latency import SHAPE, fitted

MODEL = fitted(SHAPE, ["evit"])


def test_steps_follow_from_what_is_there(tmp_path: Path) -> None:
    state = FitState(key="k")
    assert state.next_step("a") == "probe"
    state = msgspec.structs.replace(state, probes="profiles/x")
    assert state.next_step("a") == "search"
    first = Round(aim=8.0, candidates=(), bundle="b-1")
    state = state.with_round("a", first)
    assert state.next_step("a") == "measure"
    assert state.next_step("b") == "search", "other limits use the probes, not the search"
    state = state.with_round("a", msgspec.structs.replace(first, profile="profiles/y", again=7.8))
    assert len(state.rounds["a"]) == 1
    assert state.next_step("a") == "search"
    assert state.aim("a", 8.0) == 7.8
    assert state.aim("b", 6.0) == 6.0
    for number in (2, 3):
        state = state.with_round("a", Round(aim=7.8, candidates=(), bundle=f"b-{number}", profile="z", again=7.7))
    assert state.next_step("a") == "answer", "three rounds at most"
    KIND.write(tmp_path, state)
    assert KIND.read(tmp_path) == state


def test_another_round_where_predictions_were_off() -> None:
    said = [Interval(8.0, 7.8, 8.2), None]
    assert next_aim(8.0, 8.0, said, [7.9, 9.0], met=True) is None
    assert next_aim(8.0, 8.0, said, [8.8, 9.0], met=False) == pytest.approx(8.0 / 1.1)
    assert next_aim(8.0, 8.0, said, [7.2, 9.0], met=True) == pytest.approx(8.0 / 0.9), "tokens were given away"
    assert next_aim(8.0, 8.0, [None], [7.2], met=False) is None


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
    best, second, safe = pick_candidates(Found(space, results, None), MODEL, {"other": 1})
    assert best.tokens == results[0].schedule.tokens
    assert second.tokens == results[1].schedule.tokens
    assert best.options == {"fuse": True, "other": 1}
    spent = total(cost, "evit", safe.tokens)
    assert spent is not None
    assert spent * (1 + MODEL.reach) <= 12.0
    assert safe.predicted is not None
    assert safe.predicted.value == pytest.approx(spent)
