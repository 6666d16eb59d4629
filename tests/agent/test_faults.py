"""Faults injected in the middle of a run on a virtual board: each costs its own samples and no other, and shows in the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_tprune.record.reader import read_run
from edge_tprune.record.summarize import summarize
from edge_tprune.simulator.virtual import KINDS, SensorFault
from tests.record.virtual_run import Settings, write_profile

SETTINGS = Settings(rounds=6, seconds=4.0, baseline_s=5.0, load=0.3)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float, dict[str, int]]:
    return measured(tmp_path_factory.mktemp("healthy"))


def measured(
    out: Path, kind: str | None = None, metric: str = "vdd_in_power_mw", seconds: float = 1.5, amount: float = 0.0
) -> Any:
    """(summary, true mJ per image, readings of each metric) of a run with one fault."""

    def faults(begin_ns: int, end_ns: int) -> Sequence[SensorFault]:
        middle = (begin_ns + end_ns) // 2
        return [] if kind is None else [SensorFault(kind, metric, middle, middle + round(seconds * 1e9), amount)]

    path, truth = write_profile(out, SETTINGS, seed=4, faults=faults)
    run = read_run(path)
    counts: dict[str, int] = {}
    for reading in run.readings:
        for name in reading.values:
            counts[name] = counts.get(name, 0) + 1
    return json.loads(msgspec.json.encode(summarize(run))), truth, counts


def codes(summary: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in summary["verdict"]["reasons"]}


def test_a_healthy_run_is_valid_and_true(healthy: tuple[dict[str, Any], float, dict[str, int]]) -> None:
    summary, truth, _ = healthy
    assert (summary["verdict"], summary["budgets"]["a"]["verdict"]) == (
        {"status": "valid", "reasons": []},
        {"status": "valid", "reasons": []},
    )
    energy = summary["budgets"]["a"]["energy"]
    assert energy["status"] == "resolved"
    assert energy["gross_mj_per_image"]["low"] <= truth <= energy["gross_mj_per_image"]["high"]
    assert energy["gross_mj_per_image"]["value"] == pytest.approx(truth, rel=0.02)
    assert summary["sensor"]["coverage"] == 1.0
    assert summary["idle"]["power_w"]["value"] == pytest.approx(4.1, rel=0.02)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jump"])
def test_a_fault_of_a_rail_costs_only_its_own_samples(
    healthy: tuple[dict[str, Any], float, dict[str, int]], tmp_path: Path, kind: str
) -> None:
    summary, truth, counts = measured(tmp_path, kind)
    energy = summary["budgets"]["a"]["energy"]
    assert energy["gross_mj_per_image"]["low"] <= truth <= energy["gross_mj_per_image"]["high"]
    assert codes(summary) & {"sensor_gaps", "sensor_slow"}, summary["verdict"]
    others = {name: count for name, count in healthy[2].items() if not name.endswith("_power_mw")}
    if kind != "stall":  # on this one clock a stall holds up everybody
        assert {name: counts[name] for name in others} == others
    assert 0 < healthy[2]["total_power_mw"] - counts["total_power_mw"] <= 15


def test_a_rail_that_is_gone_for_most_of_the_time_is_not_believed(tmp_path: Path) -> None:
    summary, _, _ = measured(tmp_path, "eio", seconds=60.0)
    assert summary["verdict"]["status"] == "suspect"
    assert {"coverage", "sensor_gaps"} <= codes(summary)
    assert summary["budgets"]["a"]["verdict"]["reasons"][0]["code"] == "coverage"
    assert summary["sensor"]["coverage"] < 0.9


@pytest.mark.parametrize(
    ("metric", "amount", "code"),
    [
        ("over_current_2_count", 3.0, "over_current"),
        ("throttling_devices_count", 1.0, "cooling"),
        ("current_alarms_count", 1.0, "current_alarm"),
        ("swap_used_bytes", 1e8, "swap"),
    ],
)
def test_what_the_board_does_against_heat_current_and_need_shows(tmp_path: Path, metric: str, amount: float, code: str) -> None:
    summary, truth, _ = measured(tmp_path, "jump", metric, seconds=60.0, amount=amount)
    assert summary["verdict"]["status"] == "suspect"
    assert code in codes(summary)
    gross = summary["budgets"]["a"]["energy"]["gross_mj_per_image"]
    assert gross["low"] <= truth <= gross["high"]
