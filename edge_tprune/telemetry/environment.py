"""Where a measurement was made: enough to tell whether two of them may be compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from edge_tprune.telemetry.boards import device_tree, identify, l4t_release
from edge_tprune.telemetry.state import PowerMode, read_clocks, read_power_mode
from edge_tprune.telemetry.sysfs import text_or_none
from edge_tprune.version import __version__

_PACKAGES = ("numpy", "psutil", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "jetson-stats")

#: ARM cores do not report a name, only (implementer, part). Those of the boards we know, and of common arm64 hosts.
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}


@dataclass(frozen=True)
class ClockLocks:
    """Which clocks are locked: lowest and highest value are the same."""

    gpu: bool | None = None
    cpu: tuple[bool | None, ...] = ()  #: per group of cores that share a clock


@dataclass(frozen=True)
class Environment:
    """Where a measurement was made: what must be the same for two runs to be compared, and for one to be resumed.

    What the machine does not report is None, and so is what older versions did not record.
    """

    hostname: str | None = None
    machine: str | None = None  #: "aarch64"
    os: str | None = None
    kernel: str | None = None
    python: str | None = None
    cpu_model: str | None = None
    cpu_count: int | None = None
    cpu_count_physical: int | None = None
    cpu_governor: str | None = None
    memory_total_bytes: int | None = None
    board_model: str | None = None  #: from the device tree, as `board_compatible`
    board_compatible: tuple[str, ...] | None = None
    l4t_release: str | None = None  #: Jetson Linux
    versions: dict[str, str | None] = field(default_factory=dict)  #: package -> version; None: not installed
    board: str | None = None  #: `boards.Board.key`
    power_mode: PowerMode | None = None
    clock_locks: ClockLocks | None = None


def read_environment(root: Path = Path("/")) -> Environment:
    """The environment of the machine whose `proc`, `sys` and `etc` are in `root`."""
    compatible = device_tree(root, "compatible")
    clocks = read_clocks(root)
    return Environment(
        hostname=socket.gethostname() or None,
        machine=platform.machine() or None,
        os=_os_name(root),
        kernel=text_or_none(root / "proc/sys/kernel/osrelease") or platform.release() or None,
        python=platform.python_version(),
        cpu_model=_cpu_model(root),
        cpu_count=os.cpu_count(),
        cpu_count_physical=psutil.cpu_count(logical=False),
        cpu_governor=_governor(root),
        memory_total_bytes=psutil.virtual_memory().total,
        board_model=device_tree(root, "model"),
        board_compatible=tuple(compatible.split("\0")) if compatible else None,
        l4t_release=l4t_release(root),
        versions={"edge-tprune": __version__, **{name: _package(name) for name in _PACKAGES}},
        board=identify(root).key,
        power_mode=read_power_mode(root),
        clock_locks=ClockLocks(
            gpu=None if clocks.gpu is None else clocks.gpu.locked, cpu=tuple(clock.locked for clock in clocks.cpu)
        ),
    )


def describe_machine(environment: Environment) -> str:
    """Board or processor, and power mode: what latency depends on most."""
    name = environment.board_model or environment.cpu_model or environment.machine or "unknown"
    return (
        name
        if environment.power_mode is None
        else f"{name}, power mode {environment.power_mode.name or environment.power_mode.id}"
    )


def _os_name(root: Path) -> str | None:
    for line in (text_or_none(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip("\"'")
    return platform.system() or None


def _cpu_model(root: Path) -> str | None:
    """The model of an x86 processor; on ARM the parts of the cores, each kind once."""
    cores: list[str] = []
    implementer = None
    for line in (text_or_none(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and value:
            cores.append(value)
        elif key == "CPU implementer":
            implementer = value
        elif key == "CPU part" and implementer:
            cores.append(_ARM_CORES.get((implementer, value), f"ARM implementer {implementer} part {value}"))
    return " + ".join(dict.fromkeys(cores)) or None


def _governor(root: Path) -> str | None:
    """The frequency governor; where cores differ, all of them."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({text for file in files if (text := text_or_none(file))})) or None


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
