from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from edge_tprune.errors import UserError
from edge_tprune.simulator.boards import BOARDS
from edge_tprune.simulator.command import main
from edge_tprune.simulator.faults import FileFault
from edge_tprune.simulator.tree import FAULT_LOG, FAULTS, STATE, Tree, run
from edge_tprune.simulator.truth import TRUTH, true_energy_mj
from edge_tprune.simulator.virtual import VirtualClock
from edge_tprune.telemetry.boards import identify
from edge_tprune.telemetry.machine import open_sources
from edge_tprune.telemetry.source import Reading, Source
from edge_tprune.telemetry.state import PowerMode, read_state

SECOND = 10**9
TICK = SECOND // 20


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(SECOND)


@pytest.fixture
def nano(tmp_path: Path, clock: VirtualClock) -> Tree:
    return Tree(tmp_path / "board", "orin-nano", clock())


def go(tree: Tree, clock: VirtualClock, seconds: float, load: float = 0.5) -> None:
    end_ns = clock() + round(seconds * SECOND)
    while clock() < end_ns:
        clock.sleep_until(min(tree.next_ns(), end_ns))
        tree.step(clock(), load)


def source(tree: Tree, clock: VirtualClock, name: str) -> Source:
    return next(source for source in open_sources(tree.directory, clock_ns=clock) if source.name == name)


@pytest.mark.parametrize("key", BOARDS)
def test_the_readers_find_the_board_and_its_rails(tmp_path: Path, clock: VirtualClock, key: str) -> None:
    tree = Tree(tmp_path / "board", key, clock(), noise_steps=0)
    go(tree, clock, 2, load=0.5)
    board, law = identify(tree.directory), BOARDS[key]
    assert board.key == key
    assert board.jetpack is not None
    assert board.model == law.model
    rails = source(tree, clock, "rails")
    reading = rails.read()
    assert reading.gaps == {}
    assert {metric.name for metric in rails.metrics} == {f"{rail.label.lower()}_power_mw" for rail in law.rails} | {
        "total_power_mw"
    }
    for rail in law.rails:
        expected_mw = rail.idle_mw + 0.5 * rail.active_mw
        assert reading.values[f"{rail.label.lower()}_power_mw"] == pytest.approx(expected_mw, abs=rail.step_mw / 2 + 11)
    assert reading.values["total_power_mw"] == pytest.approx(
        sum(reading.values[f"{label.lower()}_power_mw"] for label in board.total)
    )
    for metric in rails.metrics:
        if key == "nano":
            assert (metric.interval_s, metric.step) == (None, None)
        else:
            assert metric.interval_s in (0.43, 0.0505)
            assert metric.step
    found = read_state(tree.directory)
    json.dumps(asdict(found), allow_nan=False)
    assert found.power_mode == PowerMode(law.mode, law.modes[law.mode])
    assert found.clocks.gpu is not None
    assert found.clocks.gpu.name == law.gpu
    assert found.clocks.gpu.locked is False
    assert len(found.over_current_counts) == law.over_current_counters
    assert found.cooling_states
    assert {rail.gap for rail in found.rails.values()} == {None}


@pytest.mark.parametrize("key", BOARDS)
def test_virtual_and_live_form_have_the_same_metrics(tmp_path: Path, clock: VirtualClock, key: str) -> None:
    from edge_tprune.simulator.virtual import VirtualMachine

    tree = Tree(tmp_path / "board", key, clock())
    live = {source.name: source for source in open_sources(tree.directory, clock_ns=clock)}
    for virtual in VirtualMachine(key).sources():
        found = {metric.name: metric for metric in live[virtual.name].metrics}
        for metric in virtual.metrics:
            assert metric.name in found
            assert found[metric.name].interval_s == metric.interval_s
            assert found[metric.name].step == pytest.approx(metric.step)


def test_nc_channels_are_left_out_and_really_refuse(tmp_path: Path, clock: VirtualClock) -> None:
    tree = Tree(tmp_path / "board", "agx-orin", clock())
    chip = tree.directory / "sys/bus/i2c/devices/1-0041/hwmon/hwmon2"
    assert (chip / "in1_label").read_text() == "NC\n"
    with pytest.raises(OSError, match="Input/output error"):
        (chip / "curr1_input").read_bytes()
    assert "nc_power_mw" not in {metric.name for metric in source(tree, clock, "rails").metrics}


def test_truth_is_the_energy_of_the_law_and_means_of_readings_meet_it(nano: Tree, clock: VirtualClock) -> None:
    rails = source(nano, clock, "rails")
    powers: list[float] = []
    begin_ns = clock()
    for load in (0.0, 1.0, 0.25):
        for _ in range(200):
            go(nano, clock, 0.1, load)
            powers.append(rails.read().values["total_power_mw"])
    rail = nano.law.rails[0]
    exact_mj = 60 * rail.idle_mw + 20 * 1.25 * rail.active_mw
    assert nano.energy_mj() == pytest.approx(exact_mj)
    assert true_energy_mj(nano.directory, begin_ns, clock()) == pytest.approx(exact_mj)
    assert true_energy_mj(nano.directory, begin_ns + 20 * SECOND + 777, begin_ns + 40 * SECOND + 777) == pytest.approx(
        20 * (rail.idle_mw + rail.active_mw), rel=1e-6
    )
    assert sum(powers) * 0.1 == pytest.approx(exact_mj, rel=0.02)
    nano.close()
    with pytest.raises(UserError, match="was not running in the whole window"):
        true_energy_mj(nano.directory, begin_ns - 1, clock())
    for window in ((clock(), begin_ns), (10**30, 0)):
        with pytest.raises(UserError, match="ends before it begins"):
            true_energy_mj(nano.directory, *window)


def test_a_rail_changes_when_its_sensor_has_a_new_value_and_not_before(nano: Tree, clock: VirtualClock) -> None:
    file = nano.directory / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_input"
    changed: list[int] = []
    before = file.read_text()
    for load in [0.0, 1.0] * 20:
        for _ in range(10):
            go(nano, clock, 0.0430, load)
            if (now := file.read_text()) != before:
                changed.append(clock())
                before = now
    gaps_s = [(b - a) / SECOND for a, b in pairwise(changed)]
    assert len(gaps_s) > 10
    assert min(gaps_s) > 0.38


FAULTY_FILES = {
    "curr1": "*/1-0040/*/curr1_input",
    "zone": "sys/class/thermal/thermal_zone1/temp",
}


@pytest.mark.parametrize(
    ("kind", "where", "reason"),
    [
        ("vanish", "curr1", "hwmon1/curr1_input is gone"),
        ("eio", "curr1", "EIO from hwmon1/curr1_input"),
        ("empty", "curr1", "hwmon1/curr1_input is empty"),
        ("set", "curr1", "no number in hwmon1/curr1_input: '##'"),
        ("vanish", "zone", "thermal_zone1/temp is gone"),
        ("eio", "zone", "EIO from thermal_zone1/temp"),
        ("eagain", "zone", "EAGAIN from thermal_zone1/temp"),
        ("empty", "zone", "thermal_zone1/temp is empty"),
    ],
)
def test_a_fault_loses_its_own_samples_only(nano: Tree, clock: VirtualClock, kind: str, where: str, reason: str) -> None:
    name, lost = ("rails", {"vdd_in_power_mw", "total_power_mw"}) if where == "curr1" else ("thermal", {"gpu_temp_c"})
    reader = source(nano, clock, name)
    offline = {metric.name for metric in reader.metrics if metric.name.startswith("cv")}
    go(nano, clock, 1)
    assert set(reader.read().gaps) == offline
    nano.inject(FileFault(kind, FAULTY_FILES[where], seconds=1.0, value="##"))
    reading = reader.read()
    assert set(reading.gaps) == lost | offline
    assert reason in {reading.gaps[metric] for metric in lost}
    go(nano, clock, 0.5)
    assert set(reader.read().gaps) == lost | offline
    go(nano, clock, 1)
    after = reader.read()
    assert set(after.gaps) == offline
    if where == "curr1":
        law = nano.law.rails[0]
        assert after.values["total_power_mw"] == pytest.approx(law.idle_mw + 0.5 * law.active_mw, rel=0.02)
    log = [json.loads(line) for line in (nano.directory / FAULT_LOG).read_text().splitlines()]
    assert [(line["event"], line["kind"]) for line in log] == [("begin", kind), ("end", kind)]
    assert log[1]["t_ns"] - log[0]["t_ns"] == pytest.approx(SECOND, abs=TICK)


def test_a_stall_makes_the_read_wait_and_then_gives_the_value(nano: Tree, clock: VirtualClock) -> None:
    began = threading.Event()

    def stamp() -> int:
        began.set()
        return clock()

    reader = next(source for source in open_sources(nano.directory, clock_ns=stamp) if source.name == "rails")
    go(nano, clock, 1)
    nano.inject(FileFault("stall", FAULTY_FILES["curr1"], seconds=1.0))
    began.clear()
    got: list[Reading] = []
    thread = threading.Thread(target=lambda: got.append(reader.read()))
    thread.start()
    assert began.wait(60)
    go(nano, clock, 0.9)
    assert got == []
    go(nano, clock, 0.2)
    thread.join(60)
    assert got[0].gaps == {}
    assert got[0].read_ns >= 0.9 * SECOND
    assert reader.read().gaps == {}


def test_a_stall_that_nobody_waited_for_leaves_nothing_behind(nano: Tree, clock: VirtualClock) -> None:
    reader = source(nano, clock, "rails")
    nano.inject(FileFault("stall", FAULTY_FILES["curr1"], seconds=1.0))
    go(nano, clock, 2)
    assert reader.read().gaps == {}
    nano.inject(FileFault("stall", FAULTY_FILES["curr1"]))
    nano.close()
    assert reader.read().gaps == {}


def test_a_renumbered_chip_is_found_again(nano: Tree, clock: VirtualClock) -> None:
    reader = source(nano, clock, "rails")
    go(nano, clock, 1)
    nano.inject(FileFault("renumber", "*/1-0040/*"))
    assert reader.read().gaps == {}
    go(nano, clock, 2, load=1.0)
    assert reader.read().values["total_power_mw"] == pytest.approx(sum_of(nano, 1.0), rel=0.02)
    nano.inject(FileFault("renumber", "*/1-0040/*"))
    assert (nano.directory / "sys/class/hwmon/hwmon41/curr1_input").exists()
    assert reader.read().gaps == {}
    nano.inject(FileFault("renumber", "*/1-0040/*"))  # again within a second of the last search
    assert set(reader.read().gaps) == {metric.name for metric in reader.metrics}
    go(nano, clock, 1.1)
    assert reader.read().gaps == {}


def sum_of(tree: Tree, load: float) -> float:
    return tree.law.rails[0].idle_mw + load * tree.law.rails[0].active_mw


def test_a_counter_jumps_and_a_mode_changes(nano: Tree, clock: VirtualClock) -> None:
    events = source(nano, clock, "events")
    assert events.read().values["over_current_2_count"] == 0
    nano.inject(FileFault("jump", "*/oc2_event_cnt", value="5"))
    nano.inject(FileFault("set", "var/lib/nvpmodel/status", value="pmode:0003 fmode:fanNull"))
    nano.inject(FileFault("set", "*/devfreq/*/max_freq", value="306000000"))
    nano.inject(FileFault("set", "*/cooling_device1/cur_state", value="3"))
    go(nano, clock, 1)
    assert events.read().values["over_current_2_count"] == 5
    found = read_state(nano.directory)
    assert found.over_current_counts == {"1": 0, "2": 5, "3": 0}
    assert found.power_mode == PowerMode(3, "7W")
    assert found.clocks.gpu is not None
    assert found.clocks.gpu.locked is True
    assert found.cooling_states["cpufreq-cpu0 (cooling_device1)"] == 3
    assert source(nano, clock, "thermal").read().values["throttling_devices_count"] == 1


def test_faults_asked_for_in_the_file_begin_and_end(nano: Tree, clock: VirtualClock) -> None:
    reader = source(nano, clock, "rails")
    assert main(["fault", str(nano.directory), "vanish", FAULTY_FILES["curr1"]]) == 0
    go(nano, clock, 0.1)
    assert "vdd_in_power_mw" in reader.read().gaps
    counter = "*/oc1_event_cnt"
    for _ in range(2):
        assert main(["fault", str(nano.directory), "jump", counter, "--value", "3", "--seconds", "0.2"]) == 0
    go(nano, clock, 0.1)
    assert source(nano, clock, "events").read().values["over_current_1_count"] == 3
    began = [json.loads(line)["kind"] for line in (nano.directory / FAULT_LOG).read_text().splitlines()]
    assert began == ["vanish", "jump", "jump"]
    go(nano, clock, 0.5)
    assert source(nano, clock, "events").read().values["over_current_1_count"] == 0
    (nano.directory / FAULTS).write_text("[]")
    os.utime(nano.directory / FAULTS, ns=(1, 1))
    go(nano, clock, 0.1)
    assert reader.read().gaps == {}
    mistakes = (
        '[{"kind": "boom", "file": "*"}]',
        '[{"kind": "eio", "file": "*", "seconds": "1"}]',
        '[{"kind": "eio"}]',
        "[3]",
        "{",
        "7",
    )
    for number, mistake in enumerate((*mistakes, '[{"kind": "eio", "file": "nonsense"}]'), start=2):
        (nano.directory / FAULTS).write_text(mistake)
        os.utime(nano.directory / FAULTS, ns=(number, number))
        go(nano, clock, 0.1)
        log = (nano.directory / FAULT_LOG).read_text().splitlines()
        assert len(log) == number + 5
        assert json.loads(log[-1])["event"] == "refused"


def test_mistakes_are_one_clear_line(
    nano: Tree, clock: VirtualClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"no file of the simulated board matches 'nonsense'"):
        nano.inject(FileFault("vanish", "nonsense"))
    with pytest.raises(UserError, match="must be a number"):
        FileFault("jump", "*", value="many")
    with pytest.raises(UserError, match="needs a value"):
        FileFault("set", "*")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    assert main(["orin-nano", str(tmp_path / "mine")]) == 2
    assert main(["fault", str(tmp_path / "mine"), "vanish", "*"]) == 2
    assert main(["orin-nono", str(tmp_path / "other")]) == 2
    assert main(["fault", str(nano.directory), "vanish", "no_such_file"]) == 2
    assert "no file of the simulated board matches 'no_such_file'" in capsys.readouterr().err
    assert main(["orin-nono", str(tmp_path / "other")]) == 2
    assert "Did you mean orin-nano" in capsys.readouterr().err
    assert (tmp_path / "mine/thesis.tex").exists()
    assert main(["orin-nano", str(nano.directory)]) == 2
    assert "runs in" in capsys.readouterr().err
    nano.close()
    assert main(["fault", str(nano.directory), "vanish", "*"]) == 2
    Tree(nano.directory, "thor", clock())  # its own leftovers are no mistake
    assert identify(nano.directory).key == "thor"


@pytest.mark.parametrize("option", ["--noise", "--seconds"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e300", "much"])
def test_amounts_out_of_range_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["orin-nano", str(tmp_path / "board"), f"{option}={value}"])
    assert end.value.code == 2
    assert f"argument {option}: '{value}' is not a number from 0 to 1e+09" in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[" * 5000, b'{"t_ns": 1}', b'{"t_ns": "x", "total_mj": 1}', b""])
def test_a_damaged_record_of_the_energy_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes) -> None:
    (tmp_path / "simulator").mkdir()
    (tmp_path / TRUTH).write_bytes(b'{"t_ns": 0, "total_mj": 0}\n' + line + b'\n{"t_ns": 9, "total_mj": 5}\n')
    assert main(["energy", str(tmp_path), "0", "9"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "truth.jsonl: line 2 is damaged: " in said


def test_the_command_follows_this_machine_in_real_time(tmp_path: Path) -> None:
    directory = tmp_path / "board"
    command = [sys.executable, "-m", "edge_tprune.simulator", "orin-nano", str(directory), "--seed", "3"]
    simulation = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert simulation.stdout is not None
        assert "simulated" in simulation.stdout.readline()
        assert json.loads((directory / STATE).read_text())["pid"] == simulation.pid
        begin_ns = time.perf_counter_ns()
        deadline = time.monotonic() + 60
        lines: list[str] = []
        while len(lines) < 12 and time.monotonic() < deadline:
            time.sleep(0.05)
            lines = (directory / TRUTH).read_text().splitlines()
    finally:
        simulation.terminate()
        assert simulation.wait(60) == 0
    truth = [json.loads(line) for line in (directory / TRUTH).read_text().splitlines()]
    assert truth[0]["t_ns"] <= begin_ns  # one clock for all processes
    rail = BOARDS["orin-nano"].rails[0]
    for before, now in pairwise(truth):
        seconds = (now["t_ns"] - before["t_ns"]) / SECOND
        assert 0 <= now["load"] <= 1
        expected_mj = seconds * (rail.idle_mw + rail.active_mw * now["load"])
        assert now["total_mj"] - before["total_mj"] == pytest.approx(expected_mj, rel=1e-6, abs=1e-6)


def test_a_directory_whose_name_is_no_text_is_a_board_too(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/sd\xff"
    command = [sys.executable, "-m", "edge_tprune.simulator", "orin-nano", directory, "--seconds", "0.1"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"simulated" in done.stdout


def test_running_for_a_time(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "board", "xavier-nx", time.perf_counter_ns())
    run(tree, seconds=0.2)
    tree.close()
    assert tree.energy_mj() >= 0.2 * tree.law.rails[0].idle_mw


def test_a_sensor_may_say_bytes_that_are_no_text(nano: Tree) -> None:
    nano.inject(FileFault("set", FAULTY_FILES["curr1"], value="\udcff\udcfe"))
    held = next(file for file in nano.directory.rglob("curr1_input") if file.read_bytes().startswith(b"\xff"))
    assert held.read_bytes() == b"\xff\xfe\n"
    with pytest.raises(UserError, match="stands for no bytes"):
        FileFault("set", "x", value="\ud800")


def test_a_tree_that_goes_away_under_a_fault_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "tree"
    codes: list[int] = []

    def take_away() -> None:
        while not (tree / STATE).exists():
            time.sleep(0.05)
        codes.append(main(["fault", str(tree), "empty", "*temp"]))
        while "begin" not in (tree / FAULT_LOG).read_text():
            time.sleep(0.05)
        tree.rename(tmp_path / "moved")

    thread = threading.Thread(target=take_away)
    thread.start()
    codes.append(main(["orin-nano", str(tree), "--seconds", "20"]))
    thread.join()
    assert codes == [0, 2]
    assert f"cannot write {tree}: No such file or directory" in capsys.readouterr().err


def test_a_pipe_in_the_place_of_the_truth_is_said(tmp_path: Path) -> None:
    (tmp_path / TRUTH).parent.mkdir()
    os.mkfifo(tmp_path / TRUTH)
    with pytest.raises(UserError, match="named pipe"):
        true_energy_mj(tmp_path, 0, 1)


def test_a_persons_files_in_an_old_board_are_not_removed(tmp_path: Path) -> None:
    board = tmp_path / "board"
    for place in (None, "var/profiles/run/run.json", "simulator/notes.md", "sys/class/hwmon/mine"):
        tree = Tree(board, "orin-nano", time.perf_counter_ns())
        tree.inject(FileFault("renumber", "*/1-0040/*"))
        tree.close()
        if place is None:
            continue
        (board / place).parent.mkdir(parents=True, exist_ok=True)
        (board / place).write_text("mine")
        with pytest.raises(UserError, match=f"holds {place}, which no simulation wrote"):
            Tree(board, "xavier-nx", time.perf_counter_ns())
        assert (board / place).read_text() == "mine"
        (board / place).unlink()


def test_a_fault_needs_a_board_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = Tree(tmp_path / "board", "orin-nano", time.perf_counter_ns())
    words = ["fault", str(tmp_path / "board"), "vanish", "*/in1_input"]
    assert main(words) == 0
    (tmp_path / "board" / FAULTS).write_text('{"a": 1}')
    assert main(words) == 2
    assert "is not readable JSON (it is no list of faults): delete it" in capsys.readouterr().err
    state = (tmp_path / "board" / STATE).read_text()
    tree.close()
    (tmp_path / "board" / STATE).write_text(state)  # as kill -9 leaves it
    assert main(words) == 2
    assert "no simulated board runs in" in capsys.readouterr().err
