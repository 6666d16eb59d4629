from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.simulator.boards import BOARDS, board_law
from edge_tprune.simulator.law import Load, Physics, RailSensor, StepLoad
from edge_tprune.telemetry import boards

SECOND = 10**9
changes = st.lists(st.tuples(st.integers(1, 2 * SECOND), st.floats(0, 1)), max_size=8)


def stepped(steps: list[tuple[int, float]], first: float = 0.25) -> StepLoad:
    load, t_ns = StepLoad(first), 0
    for wait_ns, share in steps:
        t_ns += wait_ns
        load.set(t_ns, share)
    return load


def riemann(load: Load, begin_ns: int, end_ns: int, parts: int = 4000) -> float:
    """The slow, obviously right integral: the value in the middle of each of many parts."""
    edges = np.linspace(begin_ns, end_ns, parts + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    return float(np.mean([load.at(int(t_ns)) for t_ns in middles])) * (end_ns - begin_ns) / SECOND


@given(changes, st.integers(0, 5 * SECOND), st.integers(1, 10 * SECOND))
def test_the_integral_of_a_load_is_the_sum_of_its_parts(steps: list[tuple[int, float]], begin_ns: int, length_ns: int) -> None:
    load, end_ns = stepped(steps), begin_ns + length_ns
    resolution_s = (len(steps) + 1) * length_ns / SECOND / 4000
    assert load.busy_s(begin_ns, end_ns) == pytest.approx(riemann(load, begin_ns, end_ns), abs=resolution_s + 1e-9)
    middle_ns = (begin_ns + end_ns) // 2
    assert load.busy_s(begin_ns, end_ns) == pytest.approx(
        load.busy_s(begin_ns, middle_ns) + load.busy_s(middle_ns, end_ns), abs=1e-9
    )


@given(changes, st.integers(0, 5 * SECOND))
def test_forgetting_changes_nothing_later(steps: list[tuple[int, float]], before_ns: int) -> None:
    load, forgetful = stepped(steps), stepped(steps)
    forgetful.forget(before_ns)
    for t_ns in (before_ns, before_ns + SECOND, before_ns + 20 * SECOND):
        assert forgetful.at(t_ns) == load.at(t_ns)
        assert forgetful.busy_s(before_ns, t_ns) == pytest.approx(load.busy_s(before_ns, t_ns), abs=1e-9)


def test_time_of_a_load_does_not_run_backwards() -> None:
    load = stepped([(SECOND, 1.0)])
    with pytest.raises(ValueError, match="before the last change"):
        load.set(SECOND - 1, 0.5)


@pytest.mark.parametrize("key", BOARDS)
def test_energy_is_the_integral_of_power(key: str) -> None:
    load = stepped([(SECOND, 0.8), (SECOND // 3, 0.0), (SECOND, 1.0)])
    physics = Physics(BOARDS[key], load, idle_drift_per_s=0.003)
    begin_ns, end_ns, parts = SECOND // 2, 4 * SECOND, 7000
    middles = begin_ns + (np.arange(parts) + 0.5) * (end_ns - begin_ns) / parts
    for rail in BOARDS[key].rails:
        slow_mj = float(np.mean([physics.power_mw(rail, int(t_ns)) for t_ns in middles])) * (end_ns - begin_ns) / SECOND
        assert physics.rail_energy_mj(rail, begin_ns, end_ns) == pytest.approx(slow_mj, rel=2e-3)


@pytest.mark.parametrize("key", BOARDS)
def test_a_board_has_the_rails_of_the_table(key: str) -> None:
    assert {rail.label for rail in BOARDS[key].rails} == set(boards.board(key).rails)
    assert all(rail.voltage_mv % 8 == 0 for rail in BOARDS[key].rails)


@pytest.mark.parametrize("key", BOARDS)
@pytest.mark.parametrize("load", [0.0, 0.37, 1.0])
def test_a_sensor_shows_steps_of_the_mean(key: str, load: float) -> None:
    physics = Physics(BOARDS[key], StepLoad(load))
    for rail in BOARDS[key].rails:
        sensor = RailSensor(rail, physics, noise_steps=0)
        shown = sensor.registers(50 * SECOND)
        true_mw = rail.idle_mw + rail.active_mw * load
        assert abs(shown.power_mw - true_mw) <= rail.step_mw / 2 + rail.voltage_mv / 2000 + 1e-6
        if rail.chip != "ina238":
            assert shown.voltage_mv * shown.current_ma / 1000 == shown.power_mw
            assert shown.current_ma % (40_000 // rail.shunt_uohm) == 0


def test_a_sensor_shows_the_mean_over_the_interval_before_its_conversion() -> None:
    law = BOARDS["orin-nano"]
    rail = law.rails[0]
    load = StepLoad(0.0)
    sensor = RailSensor(rail, Physics(law, load), phase_ns=0, noise_steps=0)
    t_ns = sensor.interval_ns
    assert t_ns == pytest.approx(430.08e6)
    load.set(10 * t_ns + t_ns // 4, 1.0)  # three quarters of the eleventh interval are busy
    before, during, after = (sensor.registers(count * t_ns + 5).power_mw for count in (10, 11, 12))
    assert before == pytest.approx(rail.idle_mw, abs=rail.step_mw)
    assert during == pytest.approx(rail.idle_mw + 0.75 * rail.active_mw, abs=rail.step_mw)
    assert after == pytest.approx(rail.idle_mw + rail.active_mw, abs=rail.step_mw)
    assert {sensor.registers(11 * t_ns + late_ns).power_mw for late_ns in (0, t_ns // 2, t_ns - 1)} == {during}
    assert sensor.conversion_ns(11 * t_ns + 7) == 11 * t_ns


def test_noise_is_the_sensors_not_the_powers_and_averages_out() -> None:
    law = BOARDS["agx-orin"]
    rail = law.rails[0]
    physics = Physics(law, StepLoad(0.5))
    sensor = RailSensor(rail, physics, noise_steps=0.5, seed=3)
    shown = [sensor.registers(count * sensor.interval_ns).power_mw for count in range(1, 2001)]
    true_mw = rail.idle_mw + 0.5 * rail.active_mw
    assert shown == [sensor.registers(count * sensor.interval_ns).power_mw for count in range(1, 2001)]
    assert len(set(shown)) > 2
    deviation_mw = rail.step_mw * math.sqrt(0.25 + 1 / 12)
    assert np.std(shown) == pytest.approx(deviation_mw, rel=0.1)
    assert np.mean(shown) == pytest.approx(true_mw, abs=4 * deviation_mw / math.sqrt(len(shown)))


def test_an_unknown_board_is_named_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no simulated board is called 'orin'.*Did you mean.*orin-nano"):
        board_law("orin")
