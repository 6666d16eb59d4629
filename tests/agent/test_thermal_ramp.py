"""The governor on the simulated thermal ramp: physics that must hold, and the kept record made again."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from edge_tprune.agent.thermal_ramp import BudgetCost, GovernorProfile, ThermalRamp, profile_governor
from edge_tprune.errors import UserError

KEPT = Path(__file__).parents[2] / "profiles/governor-deit_tiny-simulated/governor.json"
SHORT = ThermalRamp(rise_s=60, hold_s=60, fall_s=60)


def cost(budget: str, latency_ms: float, accuracy_percent: float) -> BudgetCost:
    return BudgetCost(budget=budget, latency_ms=latency_ms, accuracy_percent=accuracy_percent)


def test_the_kept_record_is_what_is_computed_now() -> None:
    kept = msgspec.json.decode(KEPT.read_bytes(), type=GovernorProfile)
    costs = [
        cost(name, found.trace[0].latency_ms, found.accuracy_percent) for name, found in kept.fixed.items()
    ]  # cool at first
    now = profile_governor(costs, deadline_ms=kept.deadline_ms, board=kept.board, ramp=kept.ramp)
    assert now.decisions[0].reason == kept.decisions[0].reason
    assert [(d.before, d.budget) for d in now.decisions] == [(d.before, d.budget) for d in kept.decisions]
    for found, before in ((now.governed, kept.governed), *((now.fixed[name], kept.fixed[name]) for name in kept.fixed)):
        assert found.missed_percent == pytest.approx(before.missed_percent, abs=0.1)
        assert found.accuracy_percent == pytest.approx(before.accuracy_percent, abs=0.01)
        assert found.hottest_c == pytest.approx(before.hottest_c, abs=0.1)
    assert now.best_fixed == kept.best_fixed == "0.65@int8"
    assert kept.governed.accuracy_percent > kept.fixed["0.65@int8"].accuracy_percent


def test_a_board_that_stays_cool_keeps_the_most_accurate_budget() -> None:
    ramp = msgspec.structs.replace(SHORT, high_c=25.0)
    found = profile_governor([cost("1.0", 30, 80), cost("0.5", 15, 70)], deadline_ms=40, ramp=ramp)
    assert (found.governed.missed_percent, found.governed.accuracy_percent, found.decisions) == (0.0, 80.0, ())
    assert found.best_fixed == "1.0"
    assert {row.latency_ms for row in found.governed.trace} == {30.0}


def test_heat_follows_surroundings_and_load() -> None:
    found = profile_governor([cost("busy", 30, 80), cost("idle", 1, 70)], deadline_ms=40, ramp=SHORT)
    busy, idle = found.fixed["busy"], found.fixed["idle"]
    assert busy.hottest_c > idle.hottest_c > SHORT.low_c
    assert busy.trace[0].power_w > idle.trace[0].power_w
    assert max(row.surroundings_c for row in busy.trace) == SHORT.high_c
    assert len(busy.trace) == 36
    assert busy.frames == 4500


@pytest.mark.parametrize(
    ("changes", "deadline_ms", "says"),
    [
        ({"rise_s": 0.0}, 40, "rise_s is 0: it must be above 0"),
        ({"fall_s": 0.0}, 40, "fall_s is 0: it must be above 0"),
        ({"hold_s": -1.0}, 40, "hold_s is -1: it must be at least 0"),
        ({"high_c": math.nan}, 40, "high_c is nan: give a finite number"),
        ({}, math.inf, "deadline_ms is inf: give a finite number"),
        ({}, 0, "deadline_ms is 0: it must be above 0"),
    ],
)
def test_a_ramp_that_is_none(changes: dict[str, float], deadline_ms: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        profile_governor([cost("1.0", 30, 80)], deadline_ms=deadline_ms, ramp=msgspec.structs.replace(SHORT, **changes))


def test_every_budget_may_be_too_slow() -> None:
    found = profile_governor([cost("1.0", 60, 80), cost("0.5", 50, 70)], deadline_ms=40, ramp=SHORT)
    assert {outcome.missed_percent for outcome in found.fixed.values()} == {100.0}
    assert found.governed.missed_percent == 100.0
    with pytest.raises(UserError, match="longer than the ramp"):
        profile_governor([cost("1.0", 60, 80)], deadline_ms=1e6, ramp=SHORT)
