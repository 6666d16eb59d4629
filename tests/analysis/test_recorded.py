from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import pytest

from edge_tprune.analysis.choice import NoChoice, choose
from edge_tprune.analysis.conditions import run_conditions
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.recorded import RowVerdict, read_recorded
from edge_tprune.analysis.wording import describe_no_choice, list_caveats
from edge_tprune.errors import UserError
from edge_tprune.record.document import RunDocument
from edge_tprune.record.summary import BudgetSummary, Summary
from edge_tprune.statistics import Interval
from edge_tprune.telemetry.environment import ClockLocks
from edge_tprune.telemetry.state import Clocks, ClockState, MachineState, PowerMode


def _budget(summary, name="0.65"):
    return summary["budgets"][name]


def test_power_energy_stages_and_memory_become_columns(profiles, tmp_path):
    info = profiles.info()
    summary = profiles.summary(info)
    row = load_rows(profiles.write(tmp_path / "run", info, summary=summary))[3]
    assert row.intervals["mean_power_w"] == Interval.from_json(_budget(summary)["power"]["mean_w"])
    assert row.value("energy_mj_per_image") == 62.0
    assert row.value("energy_above_idle_mj_per_image") == 31.0
    assert row.value("power_above_idle_w") == pytest.approx(4.9)
    assert (row.value("h2d_ms"), row.value("compute_ms"), row.value("d2h_ms")) == (0.2, 6.0, 0.1)
    assert row.value("min_memory_available_mb") == 2100
    assert row.value("missed_deadlines_percent") is None
    assert row.verdict == RowVerdict("valid")
    assert row.conditions["power sensor"] == "VDD_IN"


def test_a_fixed_rate_run_says_what_it_missed_and_is_another_load(profiles, tmp_path):
    info = profiles.info()
    info["plan"].update(mode="fixed_rate", fps=60)
    summary = profiles.summary(info)
    for budget in summary["budgets"].values():
        budget["latency_ms"] = {"mean": 10.0}
        budget["fixed_rate"] = {"fps": 60, "missed_deadlines": 36, "duty_cycle_percent": 50.0}  # 2.4 s busy of 4.8 s: 288 due
    rows = load_rows(profiles.write(tmp_path / "run", info, summary=summary))
    assert rows[0].value("missed_deadlines_percent") == pytest.approx(100 * 36 / 288)
    assert rows[0].intervals["missed_deadlines_percent"].low < 12.5 < rows[0].intervals["missed_deadlines_percent"].high
    assert rows[0].conditions["load"] == "60 images/s"
    assert choose(rows, {"max_missed_percent": 13}).row.budget == "0.9"


def test_energy_that_cannot_be_resolved_is_missing_and_says_why(profiles, tmp_path):
    info = profiles.info()
    summary = profiles.summary(info)
    _budget(summary)["energy"] = {
        "gross_mj_per_image": None, "above_idle_mj_per_image": None, "status": "not_resolvable",
        "reason": "turns of 0.2 s are too short for a sensor that updates every 1 s",
    }  # fmt: skip
    rows = load_rows(profiles.write(tmp_path / "run", info, summary=summary))
    assert rows[3].value("energy_mj_per_image") is None
    choice = choose(rows, {"max_energy_mj": 1000}, "energy")
    assert choice.row.budget == "0.5"
    assert any("0.65: energy per image not measured (turns of 0.2 s are too short" in caveat for caveat in list_caveats(choice))


def test_an_invalid_run_is_never_chosen_and_a_suspect_one_with_a_warning(profiles, tmp_path):
    info = profiles.info()
    summary = profiles.summary(info)
    _budget(summary, "0.5")["verdict"] = {"status": "invalid", "reasons": [{"code": "x", "text": "over-current"}]}
    _budget(summary)["verdict"] = {"status": "suspect", "reasons": [{"code": "y", "text": "throttled twice"}]}
    rows = load_rows(profiles.write(tmp_path / "run", info, summary=summary))
    choice = choose(rows, {"max_top1_drop": 50})
    assert choice.row.budget == "0.65"
    assert "the measurement of budget 0.65 is suspect: throttled twice" in list_caveats(choice)
    assert any("0.5: its run is invalid: over-current" in caveat for caveat in list_caveats(choice))
    everything = profiles.summary(info, verdict={"status": "invalid", "reasons": [{"code": "z", "text": "swapping"}]})
    rows = load_rows(profiles.write(tmp_path / "all", info, summary=everything))
    assert all(row.unfit for row in rows)
    answer = choose(rows)
    assert isinstance(answer, NoChoice)
    assert re.search(r"no budget can be chosen: .*its run is invalid: swapping", describe_no_choice(answer))


def test_a_doubt_about_one_budget_is_none_about_the_others(profiles):
    summary = profiles.summary(
        profiles.info(), verdict={"status": "suspect", "reasons": [{"code": "budget", "text": "budget 0.5 is suspect"}]}
    )
    assert read_recorded(_typed(summary), "0.65").verdict == RowVerdict("valid")
    summary["verdict"]["reasons"].append({"code": "swap", "text": "swap in use changed"})
    assert read_recorded(_typed(summary), "0.65").verdict == RowVerdict("suspect", ("swap in use changed",))
    _budget(summary)["verdict"] = {"status": "unheard of", "reasons": []}
    assert read_recorded(_typed(summary), "0.65").verdict.status == "suspect"


def test_a_note_beside_a_doubt_about_one_budget_is_no_doubt_about_the_others(profiles):
    reasons = [
        {"code": "budget", "text": "budget 0.5 is suspect", "status": "suspect"},
        {"code": "meter_guessed", "text": "VDD_IN is a guess", "status": "valid"},
    ]
    summary = profiles.summary(profiles.info(), verdict={"status": "suspect", "reasons": reasons})
    assert read_recorded(_typed(summary), "0.65").verdict == RowVerdict("valid", ("VDD_IN is a guess",))


def _typed(summary):
    return msgspec.convert(summary, Summary)


def test_an_older_or_absent_summary_has_no_verdict():
    assert read_recorded(None, "0.65").verdict is None
    old = Summary(budgets={"0.65": BudgetSummary(inferences=3)})
    assert read_recorded(old, "0.65").verdict is None
    assert read_recorded(old, "0.65").values == {}


def _milliwatts(info, summary):
    info["plan"]["sources"] = [{"name": "rails", "metrics": [{"name": "total_power_mw", "unit": "W", "aggregation": "mean"}]}]


def _millijoules(info, summary):
    for budget in summary["budgets"].values():
        budget["energy"]["gross_mj_per_image"] = {"value": 0.062, "low": 0.06, "high": 0.064}  # J


@pytest.mark.parametrize("mix", [_milliwatts, _millijoules])
def test_mixed_units_are_refused_in_one_line(mix, profiles, tmp_path):
    info = profiles.info()
    summary = profiles.summary(info)
    mix(info, summary)
    path = profiles.write(tmp_path / "run", info, summary=summary)
    with pytest.raises(UserError, match="mixed units") as caught:
        load_rows(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_states_and_engines_are_conditions(profiles):
    document = msgspec.convert(profiles.info(), RunDocument)
    gpu, cpu = ClockState(mhz=306, max_mhz=1020, locked=True), ClockState(mhz=1500, max_mhz=1984, locked=False)
    state = MachineState(power_mode=PowerMode(2, "MAXN"), clocks=Clocks(gpu, (cpu,)))
    engine = {"version": "10.3.0", "device": "Orin", "cuda_graph": True, "zero_copy": False}
    found = run_conditions(document, state, engine, None)
    assert found["power mode"] == "MAXN (2)"
    assert found["clocks"] == "GPU locked at 1020 MHz, CPU up to 1984 MHz"
    assert found["runtime"] == "onnxruntime 10.3.0"
    assert (found["device"], found["CUDA graph"], found["zero copy"]) == ("Orin", "yes", "no")
    moved = replace(state, clocks=Clocks(replace(gpu, mhz=1020), (cpu,)))  # what a clock reads at that moment is no condition
    assert run_conditions(document, moved, engine, None) == found
    locks = ClockLocks(gpu=None, cpu=(True, True))
    document = msgspec.structs.replace(document, environment=replace(document.environment, clock_locks=locks))
    assert run_conditions(document, None, {}, None)["clocks"] == "CPU locked"
