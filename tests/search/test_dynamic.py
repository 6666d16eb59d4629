"""Dynamic programming against trying out every schedule."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.schedule import NetworkShape
from edge_tprune.search.cost import Cost, MacsCost, MeasuredCost, total
from edge_tprune.search.dynamic import solve
from edge_tprune.search.sensitivity import Sensitivity
from tests.schedule.test_latency import fitted

SMALL = NetworkShape.plain(41, 1, 5, 24, 24, 96, 1000, 10)
COUNTS = (41, 33, 24, 15, 8)


def table(rng: random.Random, shape: NetworkShape, blocks: int) -> Sensitivity:
    counts = (8, 20, 30, shape.tokens)
    rows = []
    for _ in range(blocks):
        falls = sorted((rng.random() for _ in counts[:-1]), reverse=True)
        rows.append((*falls, 0.0))
    return Sensitivity(method="evit", counts=counts, loss=tuple(rows))


def brute(cost: Cost, sensitivity: Sensitivity, fewest: int, limit: float) -> list[tuple[float, float]]:
    """Every schedule's (cost, loss), by trying all."""
    shape = cost.shape
    blocks = shape.blocks - (cost.exact and shape.read_tokens is not None)
    found = []
    for after in itertools.product(COUNTS, repeat=blocks):
        before = (shape.tokens, *after[:-1])
        if any(b > a or (b < a and b < a - fewest) for a, b in zip(before, after)):
            continue
        schedule = after if blocks == shape.blocks else (*after, shape.read_tokens)
        spent = total(cost, "evit", schedule)  # type: ignore[arg-type]
        lost = sum(sensitivity.added(i, a, b) for i, (a, b) in enumerate(zip(before, after), 1))
        if spent is not None and spent <= limit and not math.isinf(lost):
            found.append((spent, lost))
    return found


@given(seed=st.integers(0, 10**6), exact=st.booleans(), fewest=st.sampled_from([12, 40]), limit=st.floats(0.4, 1.0))
def test_it_is_exact(seed: int, exact: bool, fewest: int, limit: float) -> None:
    shape = replace(SMALL, read_tokens=1) if exact else SMALL
    cost = MacsCost(shape, exact)
    sensitivity = table(random.Random(seed), shape, shape.blocks - exact)
    found = solve(cost, sensitivity, COUNTS, lambda n: n - fewest, limit=limit)
    known = brute(cost, sensitivity, fewest, limit)
    assert bool(found) == bool(known)
    for solution in found:
        spent = total(cost, "evit", solution.tokens)
        assert spent == pytest.approx(solution.cost, rel=1e-9)
        shape.check(solution.tokens)
        best = min(lost for spent, lost in known if spent <= solution.cost * (1 + 1e-12))
        assert solution.loss == pytest.approx(best, abs=1e-12)
    assert [s.loss for s in found] == sorted((s.loss for s in found), reverse=True)
    if found:
        assert found[-1].loss == pytest.approx(min(lost for _, lost in known), abs=1e-12)


@given(seed=st.integers(0, 10**6))
def test_with_a_resolution_the_limit_is_kept(seed: int) -> None:
    cost, sensitivity = MacsCost(SMALL), table(random.Random(seed), SMALL, SMALL.blocks)
    exact = solve(cost, sensitivity, COUNTS, lambda n: 2, limit=0.6)
    coarse = solve(cost, sensitivity, COUNTS, lambda n: 2, limit=0.6, resolution=0.002)
    assert all(total(cost, "evit", s.tokens) <= s.cost <= 0.6 for s in coarse)  # type: ignore[operator]
    within = [s.loss for s in exact if s.cost <= 0.6 - SMALL.blocks * 0.002]
    assert not within or coarse[-1].loss <= min(within)


def test_costs_add_up_to_what_the_model_predicts() -> None:
    shape = replace(NetworkShape.plain(197, 1, 12, 192, 192, 768, 28_901_376, 192_000), read_tokens=1)
    model, rng = fitted(shape, ["evit"]), random.Random(0)
    cost = MeasuredCost(shape, model)
    for _ in range(20):
        counts = sorted((rng.randint(40, 197) for _ in range(11)), reverse=True)
        schedule = (*counts, 1)
        known = model.predict(shape, "evit", schedule)
        assert known is not None
        assert total(cost, "evit", schedule) == pytest.approx(known.value)
        assert total(MacsCost(shape, True), "evit", schedule) == pytest.approx(shape.share(schedule))
    assert total(cost, "tome", (*[100] * 11, 1)) is None
    assert total(cost, "evit", (*[3] * 11, 1)) is None
