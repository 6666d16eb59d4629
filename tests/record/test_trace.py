from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edge_tprune.record.reader import read_run
from edge_tprune.record.trace import write_trace

from .virtual_run import Settings, write_profile


def test_inferences_are_slices_and_sensors_are_counters(tmp_path: Path) -> None:
    path, _ = write_profile(tmp_path, Settings(rounds=3, seconds=1.0, baseline_s=2.0))
    run = read_run(path)
    document = json.loads(write_trace(run).read_text())
    events = document["traceEvents"]
    inferences = [event for event in events if event["ph"] == "X" and event["name"] == "inference"]
    assert len(inferences) == sum(len(turn.latency_ns) for turn in run.turns)
    assert {event["dur"] for event in inferences} == {19_000.0}
    turns = {event["name"]: event for event in events if event["ph"] == "X" and event["name"].startswith("turn")}
    assert len(turns) == 3
    for event in inferences:  # a slice lies within the turn that it is drawn in
        assert any(
            turn["ts"] <= event["ts"] and event["ts"] + event["dur"] <= turn["ts"] + turn["dur"] + 1 for turn in turns.values()
        )
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert {"total_power_mw", "cpu_temp_c", "memory_available_bytes", "gpu_frequency_mhz"} <= counters
    power = [event for event in events if event["ph"] == "C" and event["name"] == "total_power_mw"]
    assert len(power) == sum("total_power_mw" in reading.values for reading in run.readings)
    assert {"idle before", "idle after", "warm-up"} <= {event["name"] for event in events if event["ph"] == "X"}
    named = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert {"budget a", "sensors", "idle"} <= named


def test_a_profile_without_sensors_has_a_trace_too(tmp_path: Path) -> None:
    from .tiny_run import write_run

    run = read_run(write_run(tmp_path))
    events = json.loads(write_trace(run).read_text())["traceEvents"]
    assert np.allclose([event["dur"] for event in events if event.get("name") == "inference"], [5e-3, 7e-3, 6e-3] * 3)
