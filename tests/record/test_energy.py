from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.stats import t as student

from edge_tprune.record.energy import AIM, SpanPower, budget_energy
from edge_tprune.record.idle import Idle, idle_power
from edge_tprune.record.meter import Meter, choose_meter
from edge_tprune.record.power import Power, PowerWindow
from edge_tprune.record.settings import SourceRecord
from edge_tprune.record.spans import Span
from edge_tprune.telemetry.metric import SensorMetric

from .virtual_run import Outcome, Settings, covered, run

SECOND = 10**9


def meter(**changes: Any) -> Meter:
    values: dict[str, Any] = {"metric": "total_power_mw", "source": "rails", "counter": False, "period_s": 0.1}
    return Meter(**{**values, "interval_s": 0.4, "step": 0.01, "made_of": "", **changes})


def error(outcome: Outcome) -> float:
    assert outcome.energy.gross_mj is not None, outcome.energy.reason
    return abs(outcome.energy.gross_mj.value / outcome.gross_mj - 1)


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        (Settings("orin-nano"), 60),
        (Settings("agx-orin"), 60),
        (Settings("nano", drift_per_s=-3e-4), 25),
        (Settings("thor", unrest=0.0, creep=0.0), 25),
        (Settings("orin-nano", unrest=0.0, creep=0.0, drift_per_s=0.0), 60),
        (Settings("orin-nano", counter=True), 100),
    ],
    ids=lambda value: f"{value.board}{' counter' if value.counter else ''}" if isinstance(value, Settings) else str(value),
)
def test_the_interval_holds_the_true_energy_and_recommended_windows_keep_the_promise(settings: Settings, runs: int) -> None:
    needed = run(settings, seed=1000).energy.window_needed_s
    assert needed is not None
    settings.seconds = needed
    outcomes = [run(settings, seed) for seed in range(runs)]
    gross, above = covered(outcomes)
    assert gross >= 0.93 * runs
    assert above >= 0.93 * runs
    assert max(map(error, outcomes)) <= AIM


def test_steps_without_noise_are_told_and_covered() -> None:
    """0.4 W steps and a sensor so quiet that nothing averages them out."""
    outcomes = [
        run(Settings("agx-orin", noise_steps=0.0, unrest=0.0, creep=0.0, load=0.05 + 0.01 * seed), seed) for seed in range(30)
    ]
    assert covered([outcome for outcome in outcomes if outcome.energy.status == "resolved"])[0] >= sum(
        0.93 for outcome in outcomes if outcome.energy.status == "resolved"
    )
    halves = [outcome.energy.mean_w for outcome in outcomes]
    assert all(half is not None and half.high is not None and half.high - half.value > 0.1 for half in halves)


def test_windows_too_short_for_the_sensor_are_not_resolvable_and_longer_ones_are() -> None:
    short = Settings("orin-nano", seconds=0.05, warmup_s=0.1)
    energy = run(short, 0).energy
    assert (energy.status, energy.gross_mj, energy.mean_w) == ("not_resolvable", None, None)
    assert energy.window_needed_s is not None
    assert f"make them {energy.window_needed_s:g} s" in str(energy.reason)
    long = Settings("orin-nano", seconds=energy.window_needed_s, warmup_s=0.1)
    outcomes = [run(long, seed) for seed in range(10)]
    assert {outcome.energy.status for outcome in outcomes} == {"resolved"}
    assert max(map(error, outcomes)) <= AIM


def test_reading_the_power_at_the_edges_is_what_would_be_wrong() -> None:
    """The same readings, taken naively as the power at their time, miss by far more than the estimate."""
    window, naive = PowerWindow(meter(), 0, 2 * SECOND, 4 * SECOND), []
    for tick in range(100):
        t_ns = tick * SECOND // 20
        shown = t_ns // (SECOND * 4 // 10) * 0.4  # the mean over the 0.4 s before: a ramp, where the load began at 0
        value = 10_000.0 if shown - 0.4 >= 0 else 0.0
        if 0 <= t_ns <= 4 * SECOND:
            naive.append(value)
        window.add(t_ns, 0, value)
    power = window.power()
    assert power is not None
    assert power.mean_w == 10.0
    assert sum(naive) / len(naive) < 9_500


def test_only_readings_that_saw_nothing_else_are_used() -> None:
    window = PowerWindow(meter(), load_begin_ns=SECOND, begin_ns=SECOND * 3 // 2, end_ns=3 * SECOND)
    for t_ns, value in (
        (SECOND * 179 // 100, 1e6),
        (SECOND * 2, 5000.0),
        (SECOND * 5 // 2, 7000.0),
        (SECOND * 301 // 100, 1e6),
    ):
        window.add(t_ns, 1000, value)
    window.add(SECOND * 5 // 2, SECOND // 2, 1e6)  # a read that took so long may be of any time
    power = window.power()
    assert power is not None
    assert (power.mean_w, power.levels, power.seconds) == (6.0, 2, 0.5)
    assert power.values == 2  # no more than were read, however long it took
    assert PowerWindow(meter(), 0, 0, SECOND).power() is None


def test_a_counter_that_leaps_or_runs_backwards_loses_only_that_step() -> None:
    counter = meter(metric="total_energy_mj", counter=True, interval_s=0.1, step=0.001)
    window = PowerWindow(counter, 0, SECOND, 11 * SECOND)
    total = 0.0
    for tick in range(115):
        total += 500.0  # 5 W
        total += {50: 1e9, 80: -2e9}.get(tick, 0.0)
        window.add(tick * SECOND // 10, 0, total)
    power = window.power()
    assert power is not None
    assert power.mean_w == pytest.approx(5.0)
    assert power.leaps == 2


def span(index: int = 0, images: int = 100, seconds: float = 4.0) -> Span:
    """A turn with a warm-up of a second whose middle is `index` times ten seconds."""
    begin_ns = round((10 * index - seconds / 2) * SECOND)
    return Span("a", begin_ns - SECOND, begin_ns, begin_ns + round(seconds * SECOND), 0, images)


def turns(watts: list[float], seconds: float = 4.0) -> list[SpanPower]:
    return [
        SpanPower(span(index, seconds=seconds), Power(watt, 0.01, 9.0, 4, seconds, 0, 1)) for index, watt in enumerate(watts)
    ]


def test_energy_by_hand() -> None:
    idle = Idle({0: [(0.0, 1.0), (30e9, 2.0)]}, half_w=0.0)
    energy = budget_energy(meter(step=None), turns([10.9, 11.0, 11.1, 11.0]), idle)
    assert energy.gross_mj is not None
    assert energy.gross_mj.value == pytest.approx(11 * 4 / 100 * 1e3)
    half = student.ppf(0.975, 3) * math.sqrt(0.02 / 3 / 4)
    assert energy.mean_w is not None
    assert energy.mean_w.high == pytest.approx(11 + half, rel=1e-3)
    assert energy.above_idle_w is not None
    assert energy.above_idle_w.value == pytest.approx(11 - 1.5)


def test_turns_of_equal_power_that_hold_different_numbers_of_images_are_told_in_the_energy() -> None:
    idle = Idle({0: [(0.0, 1.0)]}, half_w=0.0)
    steady = Power(11.0, 0.0, 9.0, 4, 4.0, 0, 1)
    uneven = budget_energy(meter(step=None), [SpanPower(span(images=count), steady) for count in (90, 110, 100, 100)], idle)
    half = student.ppf(0.975, 3) * math.sqrt(4 / 3 * (0.1**2 + 0.1**2)) / 4
    for energy, mj in ((uneven.gross_mj, 440.0), (uneven.above_idle_mj, 400.0)):
        assert energy is not None
        assert (energy.low, energy.value, energy.high) == pytest.approx((mj * (1 - half), mj, mj * (1 + half)), rel=1e-3)
    even = budget_energy(meter(step=0.3), turns([10.9, 11.0, 11.1, 11.0]), idle)
    for energy, power in ((even.gross_mj, even.mean_w), (even.above_idle_mj, even.above_idle_w)):
        assert energy is not None
        assert power is not None
        assert (energy.low, energy.high) == pytest.approx((40 * power.low, 40 * power.high))  # type: ignore[operator]


def test_what_is_missing_is_said() -> None:
    assert budget_energy(None, turns([1.0]), Idle()).status == "no_sensor"
    assert budget_energy(meter(), [], Idle()).status == "not_resolvable"
    one_value = [SpanPower(span(), Power(5.0, 0.0, 1.0, 1, 0.0, 0, 1))]
    energy = budget_energy(meter(), one_value, Idle())
    assert (energy.status, energy.gross_mj) == ("not_resolvable", None)
    assert energy.mean_w is not None
    assert energy.mean_w.low is None
    steady = budget_energy(meter(), turns([5.0, 5.0, 5.01]), Idle())
    assert (steady.status, steady.above_idle_mj) == ("resolved", None)
    assert "idle power was not measured" in str(steady.reason)
    restless = budget_energy(meter(), turns([5.0, 9.0, 5.0, 9.0]), Idle())
    assert restless.window_needed_s is None
    assert "rounds would give 2%" in str(restless.reason)
    coarse = budget_energy(meter(step=2.0), [SpanPower(span(images=9), Power(5.0, 0.0, 9.0, 1, 4.0, 0, 1))] * 3, Idle())
    assert "no length would be enough" in str(coarse.reason)


def test_idle_is_interpolated_and_its_drift_is_an_error() -> None:
    before, after = Power(4.0, 0.0, 20.0, 4, 9.0, 0, 2 * SECOND), Power(5.0, 0.0, 20.0, 4, 9.0, 10 * SECOND, 12 * SECOND)
    idle = idle_power(meter(step=None), [(0, before), (0, after)])
    assert [idle.at(0, t * 1e9) for t in (0, 1, 6, 11, 99)] == [4.0, 4.0, 4.5, 5.0, 5.0]
    assert (idle.drift_w, idle.at(1, 0.0)) == (1.0, None)
    assert idle.half_w == pytest.approx(0.475)
    cut_off = idle_power(meter(), [(0, before)])
    assert (cut_off.at(0, 5e9), cut_off.drift_w, cut_off.half_w) == (4.0, None, None)
    assert idle_power(meter(), [(0, None)]) == Idle()


def source(name: str, *metrics: str) -> SourceRecord:
    made = tuple(SensorMetric(metric, "", None, "mean", "", step=40.0) for metric in metrics)
    return SourceRecord(name=name, period_s=0.1, metrics=made)


def test_the_meter_of_the_whole_device_is_chosen() -> None:
    rails = source("rails", "vdd_in_power_mw", "total_power_mw")
    nvml, rapl = source("nvml", "total_power_mw", "total_energy_mj"), source("rapl", "total_energy_mj")
    assert choose_meter([source("host", "cpu_load_percent")], "onnxruntime") is None
    chosen = choose_meter([rails], "onnxruntime")
    assert chosen is not None
    assert (chosen.metric, chosen.step, chosen.counter) == ("total_power_mw", 0.04, False)
    for runtime, name in (("onnxruntime", "rapl"), ("tensorrt", "nvml")):
        chosen = choose_meter([nvml, rapl], runtime)
        assert chosen is not None
        assert (chosen.source, chosen.metric) == (name, "total_energy_mj")


@pytest.mark.parametrize(
    ("runtime", "others"),
    [("onnxruntime", ["nvml", "nvml1"]), ("tensorrt", ["rapl"]), ("tensorrt-rtx", ["rapl"])],
)
def test_a_meter_that_does_not_see_the_work_is_none(runtime: str, others: list[str]) -> None:
    assert choose_meter([source(name, "total_power_mw", "total_energy_mj") for name in others], runtime) is None


def test_a_sensor_that_reads_nothing_has_no_energy() -> None:
    """No machine that computes draws 0 W, and a width of 0 around it is no knowledge."""
    dead = turns([0.0, 0.0, 0.0, 0.0])
    energy = budget_energy(meter(step=None), dead, Idle())
    assert (energy.status, energy.gross_mj) == ("not_resolvable", None)
    assert "no machine that computes draws that" in str(energy.reason)
