from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edge_tprune.agent import sampler
from edge_tprune.agent.observer import Observer
from edge_tprune.record.lines import SAMPLES, SENSORS
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import Reading


def power(interval_s: float | None, name: str = "vdd_in_power_mw") -> SensorMetric:
    return SensorMetric(name, "mW", "lower", "mean", "", interval_s)


@pytest.mark.parametrize(("interval_s", "period_s"), [(0.43, 0.1075), (0.05, 0.1), (None, 0.1), (1.0, 0.25), (60.0, 0.5)])
def test_power_is_read_four_times_per_new_value(interval_s: float | None, period_s: float) -> None:
    assert sampler.period_s([power(interval_s)]) == pytest.approx(period_s)
    assert sampler.period_s([SensorMetric("gpu_load_percent", "percent", None, "mean", "")]) == 0.5


class Source:
    """Notes when it was read on a virtual clock."""

    name = "test"

    def __init__(self, clock: Clock, read_s: list[float]) -> None:
        self.metrics = (power(0.4),)
        self.clock = clock
        self.read_s = read_s
        self.times: list[int] = []

    def read(self) -> Reading:
        self.times.append(self.clock.now_ns)
        self.clock.now_ns += round(1e9 * self.read_s[(len(self.times) - 1) % len(self.read_s)])
        return Reading(self.clock.now_ns, 0, {"vdd_in_power_mw": 1.0})

    def close(self) -> None:
        pass


class Clock:
    """Waiting moves it; it wakes up a little late, as timers do."""

    def __init__(self, until_s: float, late_ns: int = 70_000) -> None:
        self.now_ns = 0
        self._until_ns = round(until_s * 1e9)
        self._late_ns = late_ns

    def wait(self, seconds: float) -> bool:
        self.now_ns += round(1e9 * seconds) + (self._late_ns if seconds else 0)
        return self.now_ns >= self._until_ns


def sample(monkeypatch: pytest.MonkeyPatch, clock: Clock, read_s: list[float], metric: SensorMetric | None = None) -> list[int]:
    source = Source(clock, read_s)
    if metric is not None:
        source.metrics = (metric,)
    monkeypatch.setattr(sampler, "clock_ns", lambda: clock.now_ns)
    watched = sampler._SourceSampler(source)
    out: Any = threading.local()
    out.put = lambda item: None
    watched.sample(0, clock, out)  # type: ignore[arg-type]  # a clock that waits like an event
    return source.times


def test_the_schedule_does_not_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    times = sample(monkeypatch, Clock(until_s=1000), [0.003])
    assert len(times) == 10_000
    assert all(0 <= t_ns - tick * 100_000_000 <= 70_000 for tick, t_ns in enumerate(times))


def test_deadlines_that_passed_while_a_read_stalled_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    times = sample(monkeypatch, Clock(until_s=100), [0.003] * 19 + [1.234])
    ticks = [round(t_ns / 1e8) for t_ns in times]
    assert all(abs(t_ns - tick * 100_000_000) <= 70_000 for tick, t_ns in zip(ticks, times))
    assert sorted(set(ticks)) == ticks
    assert {after - before for before, after in pairwise(ticks)} == {1, 13}


def test_a_sensor_that_shows_moments_is_read_at_every_phase_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten reads a second of a camera's thirty frames would all see the same moment."""
    times = sample(monkeypatch, Clock(until_s=60), [0.0], power(None))
    phases = sorted(t_ns * 30 / 1e9 % 1 for t_ns in times)
    gaps = [after - before for before, after in pairwise(phases)]
    assert len(times) == 600
    assert max(gaps) < 0.02
    assert all(0 <= t_ns - tick * 100_000_000 < 101_000_000 for tick, t_ns in enumerate(times))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / SAMPLES).write_text("")
    return tmp_path


@pytest.fixture
def chip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the one rail of a board."""
    chip = tmp_path_factory.mktemp("board") / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    chip.mkdir(parents=True)
    values = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1200", "update_interval": "430"}
    for name, value in values.items():
        (chip / name).write_text(f"{value}\n")
    return chip


def wait_for(file: Path, what: str, count: int = 1, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = file.read_text() if file.exists() else ""
        if text.count(what) >= count:
            return text
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come {count} times: {text[-2000:]}")


def test_a_source_that_stalls_is_a_gap_and_holds_up_nobody(chip: Path, directory: Path) -> None:
    log = directory / SENSORS
    with Observer(chip.parents[6]) as observer:
        assert observer.problem is None
        assert {"rails", "host"} <= {source.name for source in observer.sources}
        observer.begin(directory, session=2)
        wait_for(log, '"source":"rails"', 2)
        os.mkfifo(chip / "pipe")  # whoever opens it for reading waits for a writer
        (chip / "pipe").replace(chip / "curr1_input")
        before = wait_for(log, "no answer: the source stalls").count('"source":"host"')
        wait_for(log, '"source":"host"', before + 2)
        wait_for(log, "no answer: the source stalls", 3)  # it is reported again every second
        (chip / "file").write_text("2000\n")
        with (chip / "curr1_input").open("w") as pipe:
            (chip / "file").replace(chip / "curr1_input")
            pipe.write("1200\n")
        wait_for(log, '"vdd_in_power_mw":10000.0')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert (lines[0]["kind"], lines[0]["session"], lines[-1]["kind"]) == ("sampler", 2, "cost")
    rails = [line for line in lines if line["kind"] == "sensors" and line["source"] == "rails"]
    stalled = [line for line in rails if "no answer: the source stalls" in line["gaps"].values()]
    assert all(line["values"] == {} for line in stalled)
    late = max(line["read_ns"] for line in rails)
    assert late > 0.5e9  # the read that was waiting says how long it took
    assert {line["values"]["vdd_in_power_mw"] for line in rails if line not in stalled} == {6000.0, 10000.0}


PARENT = """
import os, signal, sys, time
from pathlib import Path
from edge_tprune.agent.observer import Observer
observer = Observer()
observer.begin(Path(sys.argv[1]), 0)
print(observer._process.pid, flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_parent_and_leaves_whole_lines(directory: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(directory)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for(directory / SENSORS, '"kind":"sensors"')
    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=60)
    text = wait_for(directory / SENSORS, '"kind":"cost"')  # the last thing it writes
    assert all(json.loads(line)["kind"] for line in text.splitlines())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_a_sampler_that_died_is_started_again_in_the_same_session(directory: Path) -> None:
    with Observer() as observer:
        observer.begin(directory, session=1)
        wait_for(directory / SENSORS, '"kind":"sensors"')
        assert observer.keep_alive() is None
        observer._process.kill()
        observer._process.wait(timeout=60)
        with (directory / SENSORS).open("a") as stream:
            stream.write('{"kind":"sensors","cut')
        assert "ended with -9 and was started again" in str(observer.keep_alive())
        wait_for(directory / SENSORS, '"kind":"sampler"', 2)
    lines = [json.loads(line) for line in (directory / SENSORS).read_text().splitlines()]
    assert [line["session"] for line in lines if line["kind"] == "sampler"] == [1, 1]


def test_it_loads_no_engine_and_no_numpy() -> None:
    code = (
        "import sys, edge_tprune.agent.sampler; print(sorted({'numpy', 'onnxruntime', 'tensorrt', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_sampler_that_cannot_start_leaves_the_measurement_without_sensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_tprune.agent.observer.sys.executable", "/bin/false")
    with Observer() as observer:
        assert observer.sources == ()
        assert "did not start" in str(observer.problem)
        assert observer.keep_alive() is None
