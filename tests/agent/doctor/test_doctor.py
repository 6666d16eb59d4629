"""The doctor on simulated boards: whole screens against golden ones, and every kind of trouble by itself.

    UPDATE_GOLDEN=1 python -m pytest tests/agent/doctor/test_doctor.py

writes the golden screens again; read their difference before committing it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_tprune.agent.doctor import examine, runtimes, sensors
from edge_tprune.agent.doctor.finding import Diagnosis, Finding
from edge_tprune.cli import main
from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import Device
from edge_tprune.runtime.engine import runtime_version
from edge_tprune.runtime.tensorrt.record import Platform
from edge_tprune.simulator.boards import BOARDS
from edge_tprune.simulator.faults import FileFault
from edge_tprune.simulator.tree import Tree
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import CallSensor, SensorSource
from tests.runtime.tensorrt.engine_files import write_engine_file

GOLDEN = Path(__file__).with_name("golden")
MEMINFO = "MemTotal: 7800000 kB\nMemFree: 4000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 3900000 kB\nSwapFree: 3900000 kB\n"


def make(directory: Path, key: str, **options: Any) -> Tree:
    """A simulated board at rest, whose memory is not this machine's."""
    tree = Tree(directory, key, 10**9, noise_steps=0, **options)
    (directory / "proc/meminfo").write_text(MEMINFO)
    return tree


@pytest.fixture
def nano(tmp_path: Path) -> Tree:
    return make(tmp_path / "board", "orin-nano")


def finding(diagnosis: Diagnosis, topic: str, level: str) -> Finding:
    found = [entry for entry in diagnosis.findings if entry.topic == topic and entry.level == level]
    assert found, diagnosis.findings
    return found[0]


@pytest.mark.parametrize("key", BOARDS)
def test_the_screen_of_every_simulated_board(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    make(tmp_path / "board", key)
    assert main(["doctor", "--sysroot", str(tmp_path / "board")]) == 0
    screen = capsys.readouterr().out
    golden = GOLDEN / f"doctor-{key}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(screen)
    assert screen == golden.read_text()
    assert len(screen.splitlines()) <= 40  # one screen


def test_the_document_is_json_and_says_the_same(nano: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--sysroot", str(nano.directory), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert msgspec.convert(document, Diagnosis) == examine(nano.directory)
    assert document["ready"]
    assert document["board"]["key"] == "orin-nano"
    assert all(entry["level"] in ("ok", "note", "warning", "blocker", "unknown") for entry in document["findings"])


def test_looking_changes_nothing(nano: Tree) -> None:
    def everything() -> dict[str, tuple[int, bytes]]:
        files = [file for file in sorted(nano.directory.rglob("*")) if file.is_file() and os.access(file, os.R_OK)]
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files if not file.is_symlink()}

    before = everything()
    examine(nano.directory)
    assert everything() == before


def test_locked_clocks_are_seen(tmp_path: Path) -> None:
    make(tmp_path / "board", "orin-nano", locked=True)
    assert "GPU 1020 MHz" in finding(examine(tmp_path / "board"), "clocks", "ok").text


def test_free_clocks_come_with_the_command_that_locks_them(nano: Tree) -> None:
    assert finding(examine(nano.directory), "clocks", "warning").fix == "sudo jetson_clocks"


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (FileFault("set", "*/cooling_device*/cur_state", value="3"), "throttled by heat"),
        (FileFault("set", "*/curr1_crit_alarm", value="1"), "over its current limit"),
    ],
)
def test_what_is_throttled_now_must_not_be_measured(
    nano: Tree, capsys: pytest.CaptureFixture[str], fault: FileFault, text: str
) -> None:
    nano.inject(fault)
    assert main(["doctor", "--sysroot", str(nano.directory)]) == 1
    captured = capsys.readouterr()
    assert "STOP" in captured.out
    assert text in captured.out
    assert captured.err == "edge-tprune: a profile made now would be invalid, because of: throttling\n"
    assert finding(examine(nano.directory), "throttling", "blocker").fix


def test_over_current_since_boot_is_a_warning(nano: Tree) -> None:
    nano.inject(FileFault("set", "*/oc2_event_cnt", value="7"))
    diagnosis = examine(nano.directory)
    assert "7" in finding(diagnosis, "throttling", "warning").text
    assert diagnosis.ready


def test_a_rail_that_fails_is_named_with_its_reason(nano: Tree) -> None:
    nano.inject(FileFault("eio", "*/1-0040/*/curr1_input"))
    assert "VDD_IN" in finding(examine(nano.directory), "rails", "warning").text


def test_a_board_without_its_rails_says_that_energy_is_missing(nano: Tree) -> None:
    shutil.rmtree(nano.directory / "sys/bus/i2c")
    for link in (nano.directory / "sys/class/hwmon").glob("hwmon*"):
        link.unlink()
    assert finding(examine(nano.directory), "energy", "warning").fix == "sudo modprobe ina3221"


def test_swap_in_use_and_little_memory(nano: Tree) -> None:
    text = "MemTotal: 7800000 kB\nMemAvailable: 100000 kB\nSwapTotal: 3900000 kB\nSwapFree: 2900000 kB\n"
    (nano.directory / "proc/meminfo").write_text(text)
    diagnosis = examine(nano.directory)
    assert "1024 MB of zram" in finding(diagnosis, "swap", "warning").text
    assert "102 MB available" in finding(diagnosis, "memory", "blocker").text
    assert not diagnosis.ready


def package(root: Path, name: str, version: str) -> None:
    (root / f"usr/lib/python3.10/dist-packages/{name}-{version}.dist-info").mkdir(parents=True)


def test_jetpacks_own_tensorrt_is_fine_and_another_is_not(nano: Tree) -> None:
    package(nano.directory, "tensorrt", "10.3.0")
    assert "10.3.0" in finding(examine(nano.directory), "TensorRT", "ok").text
    package(nano.directory, "tensorrt", "11.0.0.1")
    wrong = finding(examine(nano.directory), "TensorRT", "warning")
    assert "JetPack 6.2 has 10.3, and this is 11.0.0.1" in wrong.text
    assert "pip uninstall tensorrt" in wrong.fix


def test_jtop_states(nano: Tree) -> None:
    assert finding(examine(nano.directory), "jtop", "note")
    package(nano.directory, "jetson_stats", "4.3.2")
    assert finding(examine(nano.directory), "jtop", "warning").fix == "sudo systemctl restart jtop.service"
    (nano.directory / "run").mkdir()
    (nano.directory / "run/jtop.sock").touch()
    assert "4.3.2" in finding(examine(nano.directory), "jtop", "ok").text


def test_a_clock_that_was_not_set(nano: Tree) -> None:
    service = nano.directory / "run/systemd/timesync"
    service.mkdir(parents=True)
    assert finding(examine(nano.directory), "time", "warning").fix == "sudo timedatectl set-ntp true"
    (service / "synchronized").touch()
    assert finding(examine(nano.directory), "time", "ok")


def test_an_unknown_board_is_welcome(tmp_path: Path) -> None:
    for name in ("sys", "proc"):
        (tmp_path / name).mkdir()
    diagnosis = examine(tmp_path)
    assert diagnosis.board.key == "unknown"
    assert diagnosis.ready


def test_the_total_of_an_unknown_board_is_a_guess_and_says_so(nano: Tree) -> None:
    (nano.directory / "proc/device-tree/compatible").write_text("nvidia,p2597-0000+p3310-1000\0nvidia,tegra186\0")
    found = finding(examine(nano.directory), "energy", "warning")
    assert found.text.startswith("a guess: VDD_IN is taken for the power of the whole board")


def test_the_energy_of_a_graphics_card_and_that_of_the_rest_are_named_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(name: str, text: str) -> SensorSource:
        return SensorSource(name, [CallSensor(SensorMetric("total_energy_mj", "mJ", help=text), lambda: 1.0)])

    found = [source("nvml", "energy of the card"), source("nvml1", "of another"), source("rapl", "energy of the processor")]
    monkeypatch.setattr(sensors, "open_sources", lambda root: found)
    for name in ("sys", "proc"):
        (tmp_path / name).mkdir()
    said = [(entry.level, entry.text) for entry in examine(tmp_path).findings if entry.topic == "energy"]
    assert said == [("ok", "of engines of TensorRT: energy of the card"), ("ok", "energy of the processor")]


def test_this_machine_has_a_runtime_and_a_disk(tmp_path: Path) -> None:
    diagnosis = examine(disk=tmp_path)
    assert "onnxruntime" in finding(diagnosis, "runtime", "ok").text
    assert any(entry.topic == "disk" for entry in diagnosis.findings)


def test_without_any_runtime_nothing_can_be_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(runtime: str) -> str:
        raise UserError(f"{runtime} is not installed")

    monkeypatch.setattr(runtimes, "runtime_version", missing)
    assert finding(examine(), "runtime", "blocker").fix.endswith(" -m pip install onnxruntime")


def test_a_gpu_without_tensorrt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(runtime: str) -> str:
        if runtime != "onnxruntime":
            raise UserError(f"{runtime} is not installed")
        return runtime_version(runtime)

    def none() -> None:
        raise UserError("there is no CUDA driver on this machine")

    class Here:
        device = Device("NVIDIA H200", "9.0", False, 10**11, "13.0")

    monkeypatch.setattr(runtimes, "runtime_version", missing)
    monkeypatch.setattr(runtimes, "open_cuda", none)
    assert finding(examine(), "TensorRT", "note").text == "not installed: not needed without an NVIDIA GPU"
    monkeypatch.setattr(runtimes, "open_cuda", Here)
    found = finding(examine(), "TensorRT", "note")
    assert found.text == "not installed: this NVIDIA H200 is not used"
    assert found.fix is not None
    assert found.fix.endswith("-m pip install tensorrt")


def test_engine_files_of_another_device_are_named(tmp_path: Path) -> None:
    here = Platform(
        runtime="tensorrt",
        version="10.3.0",
        device="Orin",
        module="NVIDIA Jetson Orin Nano",
        power_mode={"id": 1, "name": "25W"},
    )

    def engine_file(name: str, **changes: Any) -> Path:
        return write_engine_file(tmp_path / f"{name}.plan", msgspec.structs.replace(here, **changes))

    engine_file("ours")
    engine_file("other-mode", power_mode={"id": 0, "name": "15W"})
    engine_file("rtx", runtime="tensorrt-rtx", version="1.0")
    assert list(runtimes.check_foreign_engines(here, tmp_path)) == []
    assert list(runtimes.check_foreign_engines(here, tmp_path / "none")) == []
    wrong = engine_file("nx", module="NVIDIA Jetson Orin NX")
    (tmp_path / "broken.plan").write_bytes(b"no record")
    (found,) = runtimes.check_foreign_engines(here, tmp_path)
    assert found.fix == f"rm {wrong}"


def test_a_sysroot_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--sysroot", str(tmp_path)]) == 2
    assert "no sys and proc in it" in capsys.readouterr().err
