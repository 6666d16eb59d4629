from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

import edge_tprune
from edge_tprune.telemetry.environment import read_environment


def write(root: Path, name: str, data: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(data)


def test_a_jetson(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    write(tmp_path, "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
    write(
        tmp_path,
        "etc/nv_tegra_release",
        "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n# KERNEL\n",
    )
    write(tmp_path, "etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n')
    write(tmp_path, "proc/sys/kernel/osrelease", "5.15.148-tegra\n")
    core = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n"
    write(tmp_path, "proc/cpuinfo", core * 6)
    for index in range(6):
        write(tmp_path, f"sys/devices/system/cpu/cpu{index}/cpufreq/scaling_governor", "schedutil\n")
    found = read_environment(tmp_path)
    assert found.board_model == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.board_compatible == ("nvidia,p3768-0000+p3767-0005", "nvidia,tegra234")
    assert found.l4t_release == "36.4.0"
    assert found.os == "Ubuntu 22.04.5 LTS"
    assert found.kernel == "5.15.148-tegra"
    assert found.cpu_model == "Cortex-A78AE"
    assert found.cpu_governor == "schedutil"


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("model name\t: Intel(R) Xeon(R)\n\nmodel name\t: Intel(R) Xeon(R)\n", "Intel(R) Xeon(R)"),
        (
            "CPU implementer : 0x4e\nCPU part : 0x003\nCPU implementer : 0x41\nCPU part : 0xd07\n",
            "Denver 2 + Cortex-A57",
        ),
        ("CPU implementer : 0x99\nCPU part : 0x123\n", "ARM implementer 0x99 part 0x123"),
        ("", None),
    ],
)
def test_cpu_models(tmp_path: Path, cpuinfo: str, model: str | None) -> None:
    write(tmp_path, "proc/cpuinfo", cpuinfo)
    assert read_environment(tmp_path).cpu_model == model


def test_an_unknown_release_is_kept_and_governors_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "etc/nv_tegra_release", "# R99, something new\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n")
    write(tmp_path, "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n")
    found = read_environment(tmp_path)
    assert found.l4t_release == "R99, something new"
    assert found.cpu_governor == "performance, schedutil"


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    found = read_environment(tmp_path)
    for key in ("cpu_model", "cpu_governor", "board_model", "board_compatible", "l4t_release"):
        assert getattr(found, key) is None
    assert found.os
    assert found.kernel


def test_this_machine() -> None:
    found = read_environment()
    json.dumps(asdict(found), allow_nan=False)
    assert found.python == platform.python_version()
    assert found.cpu_count >= 1
    assert found.memory_total_bytes > 1 << 20
    assert found.versions["edge-tprune"] == edge_tprune.__version__
    assert found.versions["numpy"] == version("numpy")
    assert found.versions["onnxruntime"] == version("onnxruntime")
