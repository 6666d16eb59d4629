from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_tprune.record.facts import Facts, Stat, Trend
from edge_tprune.record.lines import Check
from edge_tprune.record.meter import Meter
from edge_tprune.record.reader import Run, State
from edge_tprune.record.spans import IDLE
from edge_tprune.record.summary import Reason, Verdict
from edge_tprune.record.verdict import TurnStatistics, conclude, judge_budget, judge_run
from edge_tprune.telemetry.state import Clocks, ClockState, MachineState, PowerMode

from .tiny_run import document

STEADY = TurnStatistics(10, 0, [5.0, 5.05, 4.95, 5.0])
OK = Check(budget="a", golden_ok=True, golden_max_abs_diff=0.0, load_ms=1.0, peak_memory_bytes=1)
WRONG = Check(budget="a", golden_ok=False, golden_max_abs_diff=0.5, load_ms=1.0, peak_memory_bytes=1)


def stat(*values: float, increase: float = 0.0) -> Stat:
    made = Stat()
    for value in values:
        made.add(value, 0.0)
    made.increase = increase
    return made


def run(states: tuple[State, ...] = (), end: str | None = "complete") -> Run:
    return Run(Path("p"), document(environment={"cpu_count": 4}), {}, (), (), (), end, (), (), states)


def state(which: str, mode: str = "25W", mhz: float = 1000.0, locked: bool = False) -> State:
    gpu, cpu = (ClockState(name, mhz, mhz if locked else 100.0, mhz, None, locked) for name in ("gpu", "0 1 2 3"))
    return State(which, MachineState(power_mode=PowerMode(1, mode), clocks=Clocks(gpu, (cpu,))))


def codes(reasons: list[Reason]) -> list[tuple[str | None, str]]:
    return [(reason.status, reason.code) for reason in reasons]


def test_nothing_seen_is_valid() -> None:
    assert judge_budget("a", OK, STEADY, Facts()) == []
    assert judge_run(run((state("begin"), state("end"))), Facts(), {"a": []}) == []
    assert conclude([]) == Verdict("valid")


@pytest.mark.parametrize(
    ("check", "turns", "facts", "expected"),
    [
        (WRONG, STEADY, {}, ("invalid", "golden_mismatch")),
        (msgspec.structs.replace(WRONG, error="no threads"), STEADY, {}, ("invalid", "cannot_run")),
        (OK, TurnStatistics(0, 0, []), {}, ("invalid", "not_timed")),
        (OK, TurnStatistics(2, 0, [5.0, 5.0]), {}, ("suspect", "few_rounds")),
        (OK, TurnStatistics(4, 0, [5.0, 6.0, 5.0, 6.0]), {}, ("suspect", "latency_unstable")),
        (OK, TurnStatistics(10, 3, [5.0, 5.0]), {}, ("suspect", "warmup_unsteady")),
        (OK, STEADY, {"missing": {"a": 0.11}}, ("suspect", "coverage")),
        (OK, STEADY, {"stats": {"a": {"over_current_3_count": stat(7.0, increase=2)}}}, ("suspect", "over_current")),
        (OK, STEADY, {"stats": {"a": {"cpu_throttle_count": stat(7.0, increase=1)}}}, ("suspect", "throttled")),
        (OK, STEADY, {"stats": {"a": {"throttling_devices_count": stat(0.0, 2.0)}}}, ("suspect", "cooling")),
    ],
)
def test_what_makes_a_budget_suspect(
    check: Check, turns: TurnStatistics, facts: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert codes(judge_budget("a", check, turns, Facts(**facts))) == [expected]


def test_a_gpu_that_is_slowed_down_concerns_what_runs_on_it() -> None:
    facts = Facts(stats={"a": {"gpu_throttled_count": stat(0.0, 1.0)}}, whole={"gpu_throttled_count": stat(1.0)})
    assert judge_budget("a", OK, STEADY, facts) == []
    (reason,) = judge_budget("a", OK, STEADY, facts, on_gpu=True)
    assert (reason.code, reason.text) == (
        "gpu_throttled",
        "the GPU's clock was lowered for heat or power in 50% of the readings",
    )
    on_cpu = run()
    settings = msgspec.structs.replace(on_cpu.document.settings, runtime="tensorrt-rtx")
    on_gpu = replace(on_cpu, document=msgspec.structs.replace(on_cpu.document, settings=settings))
    assert ("suspect", "gpu_throttled") not in codes(judge_run(on_cpu, facts, {"a": []}))
    assert ("suspect", "gpu_throttled") in codes(judge_run(on_gpu, facts, {"a": []}))


def test_just_below_the_thresholds_is_valid() -> None:
    facts = Facts(missing={"a": 0.09}, stats={"a": {"throttling_devices_count": stat(0.0), "over_current_1_count": stat(9.0)}})
    assert judge_budget("a", OK, TurnStatistics(10, 2, [5.0, 5.2, 4.9]), facts) == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"stats": {"a": {"cpu_load_others_percent": stat(10.0)}}}, ("suspect", "other_cpu")),
        ({"stats": {IDLE: {"gpu_load_percent": stat(0.0, 30.0)}}}, ("suspect", "other_gpu")),
        ({"whole": {"swap_used_bytes": stat(0.0, 20e6)}}, ("suspect", "swap")),
        ({"missing_sources": {"rails": 0.2}}, ("suspect", "coverage")),
        ({"slow": {"rails": 2}}, ("valid", "sensor_slow")),
    ],
)
def test_what_makes_a_run_suspect(facts: dict[str, Any], expected: tuple[str, str]) -> None:
    assert codes(judge_run(run(), Facts(cpu_s=0.1, elapsed_s=1.0, **facts), {})) == [expected]


@pytest.mark.parametrize(
    ("per_minute", "expected"), [(1.0, []), (4.0, [("suspect", "temperature")]), (-4.0, [("suspect", "temperature")])]
)
def test_temperature_that_creeps(per_minute: float, expected: list[tuple[str, str]]) -> None:
    trend = Trend()
    for second in range(0, 121, 5):
        trend.add(10**15 + second * 10**9, 50 + per_minute * second / 60 + (second % 2) * 0.5)
    assert trend.rise == pytest.approx(2 * per_minute, abs=0.3)
    assert codes(judge_run(run(), Facts(trends={(0, "gpu_temp_c"): trend}), {})) == expected


def test_mode_and_clocks_must_be_what_they_were() -> None:
    changed = run((state("begin"), state("end", mode="MAXN")))
    assert codes(judge_run(changed, Facts(), {})) == [("invalid", "power_mode_changed")]
    limits = run((state("begin"), state("end", mhz=800.0)))
    assert codes(judge_run(limits, Facts(), {})) == [("invalid", "clock_limits_changed")]
    locked = run((state("begin", locked=True), state("end", locked=True)))
    slow = {"a": {"gpu_frequency_mhz": stat(1000.0, 1000.0), "cpu_frequency_mhz": stat(950.0, 960.0)}}
    (reason,) = judge_run(locked, Facts(stats=slow), {})
    assert (reason.status, reason.code) == ("invalid", "clock_below_lock")
    assert "CPU clock was 955 MHz" in reason.text
    assert judge_run(run((state("begin"), state("end"))), Facts(stats=slow), {}) == []
    off = {"a": {"gpu_frequency_mhz": stat(0.0, 0.0), "cpu_frequency_mhz": stat(1000.0)}}
    assert judge_run(locked, Facts(stats=off), {}) == []


def test_a_run_is_no_better_than_its_budgets_and_its_end() -> None:
    budgets = {"a": [], "b": [Reason("golden_mismatch", "", "invalid")], "c": [Reason("note", "", "valid")]}
    found = judge_run(run(end="interrupted"), Facts(), budgets)
    assert codes(found) == [("suspect", "budget"), ("suspect", "incomplete")]
    assert "budget b is invalid (golden_mismatch)" in found[0].text
    assert found[1].text == "the run was interrupted: not every round was measured"


def test_the_worst_comes_first() -> None:
    verdict = conclude([Reason("n", "note", "valid"), Reason("i", "bad", "invalid"), Reason("s", "hm", "suspect")])
    assert verdict.status == "invalid"
    assert [reason.code for reason in verdict.reasons] == ["i", "s", "n"]


def test_a_guessed_meter_is_said_and_changes_no_status() -> None:
    meter = Meter("total_power_mw", "rails", False, 0.1, 0.4, 0.01, "a guess: VDD_IN is taken for the whole", guess=True)
    (reason,) = judge_run(run(), Facts(), {}, meter)
    assert (reason.code, reason.status) == ("meter_guessed", "valid")
    assert "VDD_IN" in reason.text
