"""Where a measurement was made: enough to tell whether two of them may be compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from pathlib import Path
from typing import Any

import psutil

from edge_tprune.telemetry.boards import device_tree, l4t_release
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


def environment(root: Path = Path("/")) -> dict[str, Any]:
    """The environment record of a profile (keys in profiles/README.md). What the machine does not report is None.

    Args:
        root: the directory that holds the system's `proc`, `sys` and `etc`.
    """
    compatible = device_tree(root, "compatible")
    return {
        "hostname": socket.gethostname() or None,
        "machine": platform.machine() or None,
        "os": _os_name(root),
        "kernel": text_or_none(root / "proc/sys/kernel/osrelease") or platform.release() or None,
        "python": platform.python_version(),
        "cpu_model": _cpu_model(root),
        "cpu_count": os.cpu_count(),
        "cpu_count_physical": psutil.cpu_count(logical=False),
        "cpu_governor": _governor(root),
        "memory_total_bytes": psutil.virtual_memory().total,
        "board_model": device_tree(root, "model"),
        "board_compatible": compatible.split("\0") if compatible else None,
        "l4t_release": l4t_release(root),
        "versions": {"edge-tprune": __version__, **{name: _package(name) for name in _PACKAGES}},
    }


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
