"""The governor on a board that heats up: what it draws warms it, and its clocks fall where it is hot."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest

from edge_tprune.errors import UserError
from edge_tprune.runtime.governor import Governor

COOL_MS = {"1.0": 30.0, "0.8": 24.0, "0.65": 19.0, "0.5": 15.0}
ACCURACY = {"1.0": 79.5, "0.8": 79.0, "0.65": 77.5, "0.5": 73.0}
DEADLINE_MS = 34.0


@dataclass
class Board:
    """Latency grows by 2 % per degree above 70; the temperature follows the surroundings and the share of time that the board works."""

    temp_c: float = 40.0

    def run(self, budget: str, surroundings_c: float) -> float:
        latency_ms = COOL_MS[budget] * (1 + 0.02 * max(0.0, self.temp_c - 70))
        goal_c = surroundings_c + 45 * min(1.0, latency_ms / DEADLINE_MS)
        self.temp_c += 0.01 * (goal_c - self.temp_c)
        return latency_ms


def surroundings(frame: int) -> float:
    """A ramp from 25 to 55 degrees and back."""
    return 25 + 30 * max(0.0, 1 - abs(frame - 3000) / 1500)


def missed_and_accuracy(choose: Governor | str, frames: int = 6000) -> tuple[int, float]:
    board, missed, total = Board(), 0, 0.0
    budget = choose if isinstance(choose, str) else choose.budget
    for frame in range(frames):
        latency_ms = board.run(budget, surroundings(frame))
        missed += latency_ms > DEADLINE_MS
        total += ACCURACY[budget]
        if isinstance(choose, Governor):
            budget = choose.update(latency_ms, board.temp_c)
    return missed, total / frames


def test_under_a_thermal_ramp_it_beats_every_fixed_budget() -> None:
    governor = Governor(list(COOL_MS), deadline_ms=DEADLINE_MS)
    missed, accuracy = missed_and_accuracy(governor)
    fixed = {budget: missed_and_accuracy(budget) for budget in COOL_MS}
    assert fixed["1.0"][0] > 1000  # it throttles
    assert missed < 60  # 1 % of the frames
    keeping = [found for found in fixed.values() if found[0] <= missed]
    assert accuracy > max(found[1] for found in keeping)
    assert {decision.budget for decision in governor.decisions} >= {"1.0", "0.8"}
    assert len(governor.decisions) < 30  # it does not swing


def test_decisions_are_recorded_with_their_reason() -> None:
    governor = Governor(["1.0", "0.5"], deadline_ms=20, patience=10)
    for _ in range(5):
        governor.update(25.0)
    (down,) = governor.decisions
    assert (down.frame, down.before, down.budget, down.latency_ms) == (4, "1.0", "0.5", 25.0)
    assert down.reason == "deadline_ms 20 is broken: 25"
    for _ in range(100):
        governor.update(12.0)  # 12 x 25 / 12 would break the deadline again
    assert governor.decisions == [down]
    for _ in range(30):
        governor.update(8.0)  # 8 x 25 / 12 = 16.7 keeps it, with a margin
    assert [decision.budget for decision in governor.decisions] == ["0.5", "1.0"]


def test_one_slow_frame_changes_nothing() -> None:
    governor = Governor(["1.0", "0.5"], deadline_ms=20)
    for frame in range(200):
        assert governor.update(500.0 if frame % 10 == 0 else 15.0) == "1.0"


@pytest.mark.parametrize("limit", ["max_temp_c", "max_power_w"])
def test_other_limits_count_where_there_are_readings(limit: str) -> None:
    name = limit.removeprefix("max_")
    governor = Governor(["1.0", "0.8", "0.5"], **{limit: 10.0})  # type: ignore[arg-type]
    for _ in range(50):
        assert governor.update(5.0) == "1.0"
    for _ in range(5):
        governor.update(5.0, **{name: 11.0})  # type: ignore[arg-type]
    assert governor.budget != "1.0"
    assert governor.decisions[0].reason == f"{limit} 10 is broken: 11"


def test_a_sensor_that_gives_nan_hides_no_other_limit() -> None:
    governor = Governor(["1.0", "0.5"], max_temp_c=60.0, max_power_w=10.0)
    for _ in range(5):
        governor.update(5.0, temp_c=float("nan"), power_w=11.0)
    assert governor.budget == "0.5"
    with pytest.raises(UserError, match="latency_ms is 0: an inference takes more than 0"):
        Governor(["1.0", "0.5"], deadline_ms=8).update(0.0)
    with pytest.raises(UserError, match="latency_ms is not a number"):
        governor.update(float("nan"))


def test_a_step_up_that_failed_makes_the_next_wait_longer() -> None:
    governor = Governor(["1.0", "0.5"], max_power_w=10, window=1, patience=10)
    for _ in range(2000):
        governor.update(5.0, power_w=12.0 if governor.budget == "1.0" else 5.0)
    ups = [decision.frame for decision in governor.decisions if decision.budget == "1.0"]
    waits = [later - earlier for earlier, later in pairwise(ups)]
    assert waits[:4] == sorted(waits[:4])
    assert waits[3] > 3 * waits[0]
    assert len(ups) < 20


@pytest.mark.parametrize(
    ("budgets", "limits"),
    [
        ([], {"deadline_ms": 5}),
        (["1", "1"], {"deadline_ms": 5}),
        (["1"], {}),
        (["1"], {"deadline_ms": 0}),
        (["1"], {"deadline_ms": 5, "margin": 1}),
        *(
            (["1"], {"deadline_ms": 5, name: value})
            for name in ("margin", "window", "patience")
            for value in (float("nan"), None, -1)
        ),
        (["1"], {"deadline_ms": 5, "window": 2.5}),
        (["1"], {"deadline_ms": 5, "window": 10**9}),
    ],
)
def test_what_makes_no_sense_is_refused(budgets: list[str], limits: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Governor(budgets, **limits)  # type: ignore[arg-type]


def test_a_whole_number_may_be_a_float() -> None:
    governor = Governor(["1.0", "0.5"], deadline_ms=10, window=2.0)  # type: ignore[arg-type]
    assert [governor.update(20) for _ in range(2)] == ["1.0", "0.5"]


@pytest.mark.parametrize("value", ["5", [], True, 10**400, float("inf")])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"deadline_ms is .*, which is no number"):
        Governor(["1.0", "0.65"], deadline_ms=value)  # type: ignore[arg-type]
    governor = Governor(["1.0", "0.65"], deadline_ms=5)
    for name in ("latency_ms", "temp_c", "power_w"):
        with pytest.raises(UserError, match=f"{name} is .*, which is no number"):
            governor.update(**{"latency_ms": 1.0, name: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="latency_ms is not a number"):
        governor.update(None)  # type: ignore[arg-type]


def test_limits_and_readings_may_be_fractions() -> None:
    governor = Governor(["1.0", "0.5"], deadline_ms=Fraction(100, 3), window=1)  # type: ignore[arg-type]
    assert governor.update(Fraction(40)) == "0.5"  # type: ignore[arg-type]
    with pytest.raises(UserError, match="deadline_ms -1 is out of range"):
        Governor(["1.0"], deadline_ms=Fraction(-1))  # type: ignore[arg-type]


@pytest.mark.parametrize("budgets", [5, None, [["a"], ["b"]], [1.0], "ab"])
def test_budgets_are_names(budgets: object) -> None:
    with pytest.raises(UserError, match="a governor needs the names of budgets"):
        Governor(budgets, deadline_ms=5)  # type: ignore[arg-type]
