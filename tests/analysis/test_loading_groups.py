"""Rows of different environments are grouped apart, and the difference is named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.analysis.choice import Choice, choose
from edge_tprune.analysis.comparison import name_columns
from edge_tprune.analysis.loading import load_rows, profile_rows
from edge_tprune.analysis.samples import Samples
from edge_tprune.analysis.table import find_differences, group_rows
from edge_tprune.record.document import RunDocument
from edge_tprune.record.lines import Check
from edge_tprune.record.summary import MeterSummary, Summary
from edge_tprune.record.turn import Turn


def _change(info, key, value):
    section = {"hostname": "environment", "cpu_model": "environment", "l4t_release": "environment", "threads": "plan"}
    section |= {"isolation": "plan", "batch": "bundle", "board_model": "environment", "cpu_governor": "environment"}
    if key == "runtime version":
        info["environment"]["versions"]["onnxruntime"] = value
    elif key == "weights":
        info["bundle"]["model"]["weights_sha256"] = value
    elif key == "model":
        info["bundle"]["model"]["name"] = value
    elif key == "precision":
        for budget in info["budgets"]:
            budget["artifact"]["precision"] = value
    elif key in ("name", "images", "sha256"):
        for budget in info["budgets"]:
            budget["accuracy"]["data"][key] = value
    else:
        info[section[key]][key] = value


CHANGES = {
    "hostname": ("other", "host"),
    "cpu_model": ("Other CPU", "CPU"),
    "board_model": ("Jetson", "board"),
    "l4t_release": ("36.4.0", "L4T"),
    "cpu_governor": ("powersave", "CPU governor"),
    "threads": (4, "threads"),
    "isolation": ("none", "isolation"),
    "batch": (8, "batch"),
    "runtime version": ("1.24.0", "runtime"),
    "weights": ("c" * 64, "weights"),
    "model": ("deit_small_patch16_224", "model"),
    "name": ("other images", "eval data"),
    "sha256": ("e" * 64, "eval data hash"),
    "images": (500, "eval data"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_different_environments_are_grouped_apart_and_the_difference_named(key, profiles, tmp_path):
    value, label = CHANGES[key]
    info = profiles.info()
    profiles.write(tmp_path / "a", info)
    changed = profiles.copy(info)
    _change(changed, key, value)
    profiles.write(tmp_path / "b", changed)
    rows = load_rows([tmp_path / "a", tmp_path / "b"])
    assert [len(members.rows) for members in rows.groups] == [5, 5]
    found = find_differences(rows)
    assert list(found) == [label]
    assert len(found[label]) == 2


def test_precisions_are_compared_as_budgets_are(profiles, tmp_path):
    info = profiles.info()
    profiles.write(tmp_path / "a", info)
    changed = profiles.copy(info)
    _change(changed, "precision", "int8")
    profiles.write(tmp_path / "b", changed)
    rows = load_rows([tmp_path / "a", tmp_path / "b"])
    (group,) = rows.groups
    assert find_differences(rows) == {}
    assert find_differences(rows, ignore=()) == {"precision": ("fp32", "int8")}
    assert "precision" not in group.conditions
    assert load_rows(tmp_path / "b").groups[0].conditions["precision"] == "int8", "what all rows share is said"
    names = [row.name for row in rows]
    assert len(set(names)) == 10
    assert sum(name.endswith("@int8") for name in names) == 5
    columns = {column.name: [column.text(row) for row in rows] for column in name_columns(rows.rows)}
    assert set(columns["precision"]) == {"fp32", "int8"}
    assert isinstance(choose(rows, {"max_p50_ms": 1e6}), Choice)


def test_other_methods_in_the_same_environment_are_comparable(profiles, tmp_path):
    profiles.write(tmp_path / "a", profiles.info("evit"))
    profiles.write(tmp_path / "b", profiles.info("zero_tprune"))
    rows = load_rows(tmp_path)
    assert len(rows.groups) == 1
    assert find_differences(rows) == {}


def test_a_budget_that_was_not_evaluated_stays_with_its_run(profiles, tmp_path):
    info = profiles.info()
    info["budgets"][2]["accuracy"] = None
    assert len(load_rows(profiles.write(tmp_path / "run", info)).groups) == 1


ENVIRONMENTS = st.fixed_dictionaries(
    {
        "board": st.sampled_from([None, "Jetson Orin Nano", "Jetson Xavier NX"]),
        "power mode": st.sampled_from([None, {"id": 0, "name": "15W"}, {"id": 0, "name": "7W"}, {"id": 2, "name": "15W"}]),
        "clocks": st.sampled_from([None, {"gpu": True, "cpu": [True]}, {"gpu": False, "cpu": [True]}]),
        "runtime": st.sampled_from(["1.23.0", "1.24.0"]),
        "precision": st.sampled_from(["fp32", "fp16"]),
        "batch": st.sampled_from([1, 8]),
        "fps": st.sampled_from([None, 30, 60]),
        "tool": st.sampled_from(["0.1.0", "0.2.0"]),
        "sensor": st.sampled_from([None, "VDD_IN", "VDD_GPU_SOC"]),
        "zero copy": st.sampled_from([None, True, False]),
        "data": st.sampled_from(["d" * 64, "e" * 64]),
    }
)


def _turn(number, budget):
    return Turn(
        round=number, position=0, budget=budget, t_ns=number, load_ms=1.0, warmup_inferences=1, warmup_steady=True,
        start_ns=np.array([0]), latency_ns=np.array([10**7]), end_ns=10**7,
    )  # fmt: skip


def _samples_in(profiles, environment):
    """A run in that environment, as it would have been read."""
    info = profiles.info(batch=environment["batch"])
    info["environment"].update(board_model=environment["board"], power_mode=environment["power mode"])
    info["environment"]["clock_locks"] = environment["clocks"]
    info["environment"]["versions"]["onnxruntime"] = environment["runtime"]
    info["tool_version"] = environment["tool"]
    if environment["fps"] is not None:
        info["plan"].update(mode="fixed_rate", fps=environment["fps"])
    for budget in info["budgets"]:
        budget["artifact"]["precision"] = environment["precision"]
        budget["accuracy"]["data"]["sha256"] = environment["data"]
    engine = None if environment["zero copy"] is None else {"zero_copy": environment["zero copy"]}
    sensor = environment["sensor"]
    meter = None if sensor is None else MeterSummary(metric="total_power_mw", source="rails", made_of=sensor)
    turns = {budget["name"]: (_turn(0, budget["name"]), _turn(1, budget["name"])) for budget in info["budgets"]}
    checked = Check(budget="1.0", golden_ok=True, golden_max_abs_diff=0.0, load_ms=1.0, peak_memory_bytes=None, engine=engine)
    checks = {"1.0": checked}
    document = msgspec.convert(info, RunDocument)
    return Samples(Path("run"), document, checks, turns, summary=Summary(meter=meter, budgets={}))


def _fixed(environment):
    """All but the precision, which rows may differ in."""
    return json.dumps({key: value for key, value in environment.items() if key != "precision"}, sort_keys=True)


@settings(max_examples=60)
@given(st.lists(ENVIRONMENTS, min_size=2, max_size=4))
def test_rows_of_different_environments_are_never_in_one_group(profiles, environments):
    of = {}
    for environment in environments:
        for row in profile_rows(_samples_in(profiles, environment)):
            of[id(row)] = (row, environment)
    rows = [row for row, _ in of.values()]
    groups = group_rows(rows)
    for each in groups:
        assert len({_fixed(of[id(row)][1]) for row in each.rows}) == 1
    assert len(groups) == len({_fixed(environment) for environment in environments})
    assert (len(groups) > 1) == bool(find_differences(rows))
