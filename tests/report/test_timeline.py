from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.record.reader import read_run
from edge_tprune.report.timeline import MAX_POINTS, MAX_TRACES, MAX_TURNS, make_timeline, thinned

SECOND = 1_000_000_000


def _with_readings(profiles, path, readings):
    """A profile with the given (seconds, source, values) among its samples."""
    info = profiles.info()
    lines = profiles.lines(info)
    lines[-1:-1] = [
        {"kind": "sensors", "t_ns": int(seconds * SECOND), "source": source, "read_ns": 1000, "values": values}
        for seconds, source, values in readings
    ]
    return make_timeline(read_run(profiles.write(path, info, lines)))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 60))
def test_thinning_keeps_the_extremes_and_the_mean(values, repeat):
    readings = np.repeat(np.array(values), repeat)
    seconds = np.arange(len(readings)) * 0.1
    trace = thinned("x", seconds, readings, float(seconds[-1]))
    if len(readings) <= MAX_POINTS:
        assert trace.low is None
        assert trace.mean.tolist() == readings.tolist()
        return
    assert len(trace.mean) <= MAX_POINTS
    assert trace.low.min() == readings.min()
    assert trace.high.max() == readings.max()
    slot = np.minimum((seconds / seconds[-1] * MAX_POINTS).astype(int), MAX_POINTS - 1)  # the slow way
    for place, (own, mean, low, high) in enumerate(zip(np.unique(slot), trace.mean, trace.low, trace.high)):
        members = readings[slot == own]
        assert mean == pytest.approx(members.mean(), abs=1e-9)
        assert (low, high) == (members.min(), members.max())
        assert trace.seconds[place] == pytest.approx(seconds[slot == own].mean())


def test_a_pause_breaks_the_line():
    seconds = np.array([0.0, 1, 2, 3, 30, 31, 32])
    trace = thinned("x", seconds, np.ones(7), 32.0)
    assert np.isnan(trace.mean).tolist() == [False] * 4 + [True] + [False] * 3
    assert 3 < trace.seconds[4] < 30


def test_the_largest_readings_are_shown(profiles, tmp_path):
    readings = [(index, "board", {"total_energy_mj": 1e30 * (-1) ** index, "a_power_w": 1e30}) for index in range(700)]
    data = _with_readings(profiles, tmp_path / "run", readings)
    json.dumps(data.to_json(), allow_nan=False)
    assert [trace.name for trace in data.lanes[0].traces] == ["total", "a"]
    with pytest.raises(UserError, match=r"values\.a_power_w is"):
        _with_readings(profiles, tmp_path / "damaged", [(0, "board", {"a_power_w": 1.1e30})])


def test_sensors_find_their_lane_and_unit(profiles, tmp_path):
    values = {
        "total_power_mw": 5000.0, "vdd_cpu_power_mw": 2000.0, "gpu_frequency_mhz": 800.0, "soc_temperature_celsius": 51.5,
        "cpu_load_percent": 90.0, "memory_available_bytes": 1e9,
    }  # fmt: skip
    data = _with_readings(profiles, tmp_path / "run", [(index, "board", values) for index in range(5)])
    lanes = {lane.title: lane for lane in data.lanes}
    assert list(lanes) == ["power", "clocks", "temperature", "load"]
    assert [(trace.name, trace.mean[0]) for trace in lanes["power"].traces] == [("total", 5.0), ("vdd cpu", 2.0)]
    assert lanes["temperature"].traces[0].mean.tolist() == [51.5] * 5
    assert data.absent == ()


def test_what_no_sensor_told_is_named_and_failed_readings_are_not_zero(profiles, tmp_path):
    readings = [(0, "host", {"cpu_frequency_mhz": None, "total_power_mw": 1.0}), (1, "host", {"total_power_mw": 3.0})]
    data = _with_readings(profiles, tmp_path / "run", readings)
    assert data.absent == ("clocks", "temperature", "load")
    assert data.lanes[0].traces[0].mean.tolist() == [0.001, 0.003]


def test_energy_counters_become_power(profiles, tmp_path):
    readings = [(index, "rapl", {"total_energy_mj": 1000.0 * index**2}) for index in range(5)]
    (lane,) = _with_readings(profiles, tmp_path / "run", readings).lanes
    assert lane.traces[0].name == "total"
    assert lane.traces[0].mean.tolist() == pytest.approx([1, 3, 5, 7])  # watts between two squares
    assert lane.traces[0].seconds.tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5])


def test_too_many_sensors_are_counted(profiles, tmp_path):
    values = {f"zone{index}_temperature_c": 40.0 + index for index in range(10)}
    (lane,) = _with_readings(profiles, tmp_path / "run", [(0, "t", values), (1, "t", values)]).lanes
    assert len(lane.traces) == MAX_TRACES
    assert lane.left_out == 4
    assert lane.traces[0].name == "zone9 temperature"


def test_turns_are_those_of_the_run(profile_dir):
    run = read_run(profile_dir)
    data = make_timeline(run)
    assert [(turn.round, turn.budget) for turn in data.turns] == [(turn.round, turn.budget) for turn in run.turns]
    for turn, entry in zip(data.turns, run.turns):
        assert turn.p50_ms == pytest.approx(np.median(entry.latency_ms))
        assert turn.end_s - turn.begin_s == pytest.approx((entry.start_ns[-1] + entry.latency_ns[-1]) / SECOND)
    assert data.lanes == ()
    assert data.absent == ("power", "clocks", "temperature", "load")


def test_a_day_is_thinned_to_what_a_page_can_hold(profiles, tmp_path):
    info = profiles.info(rounds=1000)
    lines = profiles.lines(info, inferences=10)
    for index, line in enumerate(line for line in lines if line["kind"] == "round"):
        line["t_ns"] = index * 17 * SECOND
    values = {"total_power_mw": 5000.0, "cpu_temp_c": 60.0, "gpu_frequency_mhz": 900.0}
    lines[-1:-1] = [
        {"kind": "sensors", "t_ns": 10 * index * SECOND, "source": "board", "read_ns": 1, "values": values}
        for index in range(8640)
    ]
    data = make_timeline(read_run(profiles.write(tmp_path / "run", info, lines), keep=False))
    assert data.every == 2
    assert len(data.turns) <= MAX_TURNS
    assert {turn.round for turn in data.turns} == set(range(0, 1000, 2)), "whole rounds stay"
    assert data.readings == 8640
    assert data.thinned
    assert len(json.dumps(data.to_json())) < 300_000


def test_sessions_are_set_one_after_the_other(profiles, tmp_path):
    """A board that was switched off in between restarts its clock."""
    info = profiles.info(rounds=2)
    lines = profiles.lines(info)
    rounds = [line for line in lines if line["kind"] == "round"]
    for index, line in enumerate(rounds):
        line["t_ns"] = (1000 + index if line["round"] == 0 else index) * SECOND
    place = lines.index(next(line for line in rounds if line["round"] == 1))
    lines.insert(place, {"kind": "resume", "t_ns": 0, "utc": info["started_utc"]})
    data = make_timeline(read_run(profiles.write(tmp_path / "run", info, lines)))
    assert data.sessions == 2
    begins = [turn.begin_s for turn in data.turns]
    assert begins == sorted(begins)
    assert begins[0] == 0
    assert data.seconds < 20
