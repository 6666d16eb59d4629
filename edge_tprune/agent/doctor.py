"""Is this machine ready to be measured? Every finding comes with the command that mends it; nothing is ever run or changed here.

A finding is `ok`, a `note` (good to know), a `warning` (a profile will be less certain, or lack something), a `blocker` (a profile
would be invalid), or `unknown` (could not be looked at, and why).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edge_tprune.bundle.engines import machine
from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import installed_bindings, open_cuda
from edge_tprune.runtime.engine import RUNTIMES, runtime_version
from edge_tprune.runtime.tensorrt import library as tensorrt
from edge_tprune.runtime.tensorrt.cache import cache_root, read_record
from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.boards import Board
from edge_tprune.telemetry.gpu import gpu_devfreq, gpu_source
from edge_tprune.telemetry.machine import identify, open_sources, state
from edge_tprune.version import __version__

FORMAT = "edge-tprune-doctor"
VERSION = 1

Level = Literal["ok", "note", "warning", "blocker", "unknown"]

_MEMORY_NEEDED, _MEMORY_WANTED = (
    250e6,
    1e9,
)  #: bytes available: below the first loading an engine fails, below the second it may swap
_DISK_NEEDED, _DISK_WANTED = 50e6, 1e9  #: bytes free where profiles and plans go
_HOT_C = 90.0
#: What JetPack ships as TensorRT, by the first parts of its version; others cannot be expected to run there.
_TENSORRT_OF = {"5": "8.5", "6.0": "8.6", "6": "10.3", "7.2": "10.16", "7": "10.13"}
_SYSTEM_PACKAGES = ("usr/lib/python3/dist-packages", "usr/local/lib/python3*/dist-packages", "usr/lib/python3*/dist-packages")
_GPU_NODES = ("nvhost-gpu", "nvhost-ctrl-gpu", "nvgpu/igpu0/ctrl", "nvmap", "nvidia0", "nvidiactl")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    level: Level
    text: str
    mend: str | None = None  #: the exact command


def examine(root: Path = Path("/"), disk: Path | None = None) -> dict[str, Any]:
    """Looks at everything and returns one JSON-able document: `board`, `findings`, `ready` (no blocker among them).

    Args:
        root: the directory that holds the system's `proc`, `sys`, `etc` ...; with another than `/`, what can only be told of the
            running machine (packages, free disk, groups) is left out or looked for in its files.
        disk: where profiles would be written; by default the current directory. Only with the real root.
    """
    live = root == Path("/")
    board, now = identify(root), state(root)
    findings = [
        *_identity(board),
        *(_runtimes(board) if live else _packaged_tensorrt(root, board)),
        *_rails(root, board, now),
        *_gpu(root, board, live),
        *_jtop(root, now, live),
        *_power_mode(board, now),
        *_clocks(board, now),
        *_memory(now),
        *(_disk(disk or Path.cwd()) if live else ()),
        *_time(root),
        *_throttling(now),
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "tool_version": __version__,
        "root": str(root),
        "board": asdict(board),
        "ready": all(finding.level != "blocker" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _identity(board: Board) -> Iterator[Finding]:
    if board.key == "unknown":
        yield Finding("board", "note", f"{board.name}: not in the table of boards, so no rail is taken for its total")
    else:
        yield Finding("board", "ok", f"{board.name} ({board.module})" if board.module else board.name)
    if board.l4t_release is None:
        yield Finding("JetPack", "note", "no Jetson Linux here")
    elif board.jetpack is None:
        yield Finding("JetPack", "note", f"Jetson Linux {board.l4t_release}, of a JetPack that is not in the table")
    else:
        yield Finding("JetPack", "ok", f"{board.jetpack} (Jetson Linux {board.l4t_release})")


# --- runtimes


def _runtimes(board: Board) -> Iterator[Finding]:
    """Which runtimes can be used, each with its version and where it comes from, or why not."""
    usable = []
    for runtime in RUNTIMES:
        try:
            usable.append((runtime, runtime_version(runtime)))
        except UserError as error:
            if runtime == "tensorrt" and board.l4t_release is not None:
                yield Finding("TensorRT", "warning", str(error), _tensorrt_mend(board))
            elif runtime == "tensorrt":
                yield Finding("TensorRT", "note", "not installed: none is needed away from NVIDIA's GPUs")
    for runtime, version in usable:
        where = _origin(runtime)
        yield Finding("runtime", "ok", f"{runtime} {version}{f' ({where})' if where else ''}")
        if runtime == "tensorrt" and (wrong := _unexpected_tensorrt(board, version)):
            yield wrong
    if not usable:
        yield Finding(
            "runtime",
            "blocker",
            "nothing here can run a graph: neither TensorRT nor ONNX Runtime",
            _pip("onnxruntime"),
        )
    if any(runtime.startswith("tensorrt") for runtime, _ in usable):
        yield from _cuda(board, [runtime for runtime, _ in usable])


def _cuda(board: Board, runtimes: Collection[str]) -> Iterator[Finding]:
    """Whether the GPU can be used for engines, and is one that these runtimes serve."""
    bindings = installed_bindings()
    if not bindings:
        major = {"5": "11", "7": "13"}.get((board.jetpack or "").partition(".")[0], "12")
        yield Finding("CUDA", "warning", "TensorRT is here, but no Python binding of CUDA", _pip(f"cuda-python=={major}.*"))
        return
    try:
        device = open_cuda().device
    except Exception as error:  # whatever a driver may do, the rest must be looked at
        yield Finding("CUDA", "warning", " ".join(str(error).split()), _driver_mend(board))
        return
    yield Finding(
        "CUDA", "ok", f"{device.name}, SM {device.sm}, driver for CUDA {device.driver}, through {' and '.join(bindings)}"
    )
    for runtime in runtimes:
        if runtime.startswith("tensorrt"):
            if why := tensorrt.unserved(tensorrt.load(runtime), device.sm):
                yield Finding("TensorRT", "note", why)
            yield from foreign_plans(runtime, machine(runtime), cache_root() / "plans")


def foreign_plans(runtime: str, here: dict[str, Any], plans: Path) -> Iterator[Finding]:
    """Engines in the cache `plans` that were built for something else than `here` (`edge_tprune.bundle.engines.machine`)."""
    foreign = []
    for plan in sorted(plans.glob("*.plan")):
        key = (read_record(plan) or {}).get("key")
        if isinstance(key, dict) and key.get("runtime") == runtime:
            # Another power mode is this board still, and one day it may be on again.
            differing = [what for what, value in here.items() if what != "power_mode" and key.get(what) != value]
            foreign += [plan] if differing else []
    if foreign:
        size = sum(plan.stat().st_size for plan in foreign)
        mend = (
            f"rm {shlex.join(map(str, foreign))}" if len(foreign) <= 3 else f"rm -r {shlex.quote(str(plans))}   # all of them"
        )
        text = f"{len(foreign)} plans of another device or version in the cache ({size / 1e6:.0f} MB): never run here"
        yield Finding("plans", "note", text, mend)


def _pip(requirement: str) -> str:
    """The command that installs a package into this very environment, which may have no pip of its own (`deploy` leaves it out)."""
    begin = "" if importlib.util.find_spec("pip") else f"{sys.executable} -m ensurepip && "
    return f"{begin}{sys.executable} -m pip install '{requirement}'"


def _driver_mend(board: Board) -> str:
    return "sudo apt-get install nvidia-jetpack" if board.l4t_release else "nvidia-smi"


def _tensorrt_mend(board: Board) -> str:
    """JetPack's bindings are for the system's Python only."""
    if (board.jetpack or "").startswith("5"):
        return "deploy/install.sh   # JetPack 5 has TensorRT for Python 3.8 only; it says what can be done"
    return "sudo apt-get install python3-libnvinfer && edge-tprune doctor"


def _unexpected_tensorrt(board: Board, version: str) -> Finding | None:
    """A TensorRT that is not this JetPack's."""
    if board.jetpack is None:
        return None
    for length in (3, 1):
        expected = _TENSORRT_OF.get(board.jetpack[:length])
        if expected:
            break
    else:
        return None
    if version.startswith(f"{expected}."):
        return None
    return Finding(
        "TensorRT",
        "warning",
        f"JetPack {board.jetpack} has {expected}, and this is {version}: plans may fail to build or to load",
        "pip uninstall tensorrt && sudo apt-get install --reinstall python3-libnvinfer",
    )


def _origin(runtime: str) -> str | None:
    """Whether a runtime's package is the system's or the virtual environment's."""
    for name in {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "tensorrt": ("tensorrt",)}.get(runtime, ()):
        with suppress(importlib.metadata.PackageNotFoundError):
            place = str(importlib.metadata.distribution(name).locate_file(""))
            if sys.prefix == sys.base_prefix:
                return None
            return "of the virtual environment" if place.startswith(sys.prefix) else "of the system"
    return None


def _packaged_tensorrt(root: Path, board: Board) -> Iterator[Finding]:
    """What the files below another root tell about TensorRT."""
    versions = sorted(_distributions(root, "tensorrt"))
    if versions:
        yield Finding("TensorRT", "ok", f"{', '.join(versions)} for the system's Python")
        for version in versions:
            if wrong := _unexpected_tensorrt(board, version):
                yield wrong
    elif board.l4t_release is not None:
        yield Finding("TensorRT", "warning", "no Python bindings in the system's packages", _tensorrt_mend(board))


def _distributions(root: Path, name: str) -> list[str]:
    """Versions of a distribution in the system's Python directories below `root`."""
    found = []
    for pattern in _SYSTEM_PACKAGES:
        for info in root.glob(f"{pattern}/{name.replace('-', '_')}-*.*-info"):
            found.append(re.sub(r"\.(dist|egg)-info$", "", info.name).split("-")[1])
    return list(dict.fromkeys(found))


# --- sensors


def _rails(root: Path, board: Board, now: dict[str, Any]) -> Iterator[Finding]:
    rails: dict[str, dict[str, Any]] = now["rails"]
    for label, rail in rails.items():
        if rail["power_mw"] is None:
            yield Finding("rails", "warning", f"{label}: {rail['gap']}", _permission_mend(rail["gap"]))
            continue
        interval = (
            "how often it changes is not told"
            if rail["interval_s"] is None
            else f"a new value every {rail['interval_s'] * 1e3:.0f} ms"
        )
        step = "" if rail["step_mw"] is None else f", in steps of {rail['step_mw']:.3g} mW"
        yield Finding("rails", "ok", f"{label} {rail['power_mw'] / 1e3:.2f} W, {interval}{step}")
    missing = [label for label in board.rails if label not in rails]
    if rails and missing:
        yield Finding(
            "rails", "warning", f"missing, though this board should have them: {', '.join(missing)}", "sudo modprobe ina3221"
        )
    total = [
        metric
        for source in open_sources(root)
        for metric in source.metrics
        if metric.name in ("total_power_mw", "total_energy_mj")
    ]
    if total:
        yield Finding("energy", "ok", total[0].help)
    elif rails:
        yield Finding(
            "energy", "warning", "no total: nobody knows which of these rails add up to the whole, so no energy is stated"
        )
    else:
        mend = "sudo modprobe ina3221" if board.l4t_release else None
        yield Finding(
            "energy",
            "warning" if board.l4t_release else "note",
            "no power sensor that this user can read: no energy is stated",
            mend,
        )


def _permission_mend(gap: str | None) -> str | None:
    return "sudo chmod a+r /sys/class/hwmon/hwmon*/{in,curr}*_input" if gap and "ermission" in gap else None


def _gpu(root: Path, board: Board, live: bool) -> Iterator[Finding]:
    if board.l4t_release is None and gpu_devfreq(root) is None:
        return
    names = [metric.name for metric in gpu_source(root).metrics]
    missing = [what for what, name in (("load", "gpu_load_percent"), ("clock", "gpu_frequency_mhz")) if name not in names]
    if missing:
        yield Finding("GPU", "warning", f"its {' and '.join(missing)} cannot be read: no such file for this board")
    else:
        yield Finding("GPU", "ok", f"load and clock can be read ({getattr(gpu_devfreq(root), 'name', '')})")
    if "emc_frequency_mhz" not in names:
        yield Finding("GPU", "note", "the memory's clock is for root alone: it is left out")
    nodes = [path for name in _GPU_NODES if (path := root / "dev" / name).exists()]
    closed = [path for path in nodes if not os.access(path, os.R_OK | os.W_OK)] if live else []
    if closed:
        yield Finding(
            "permissions",
            "warning",
            f"this user may not use {', '.join(map(str, closed))}",
            'sudo usermod -aG video,render "$USER"   # then log in again',
        )


def _jtop(root: Path, now: dict[str, Any], live: bool) -> Iterator[Finding]:
    """jtop is optional: what it would tell is mostly read directly."""
    socket, system = now["jtop"]["socket"], _distributions(root, "jetson-stats")
    client = _installed("jetson-stats") if live else (system[0] if system else None)
    restart = "sudo systemctl restart jtop.service"
    if socket is None and client is None:
        yield Finding("jtop", "note", "not installed: nothing here depends on it")
    elif socket is None:
        yield Finding("jtop", "warning", f"jetson-stats {client} is installed, but its service does not run", restart)
    elif live and not os.access(socket, os.R_OK | os.W_OK):
        yield Finding(
            "jtop",
            "warning",
            f"this user may not talk to its service at {socket}",
            'sudo usermod -aG jtop "$USER"   # then log in again',
        )
    elif client is None:
        yield Finding("jtop", "note", "its service runs, and there is no client of it here", _client_mend(system))
    elif system and _minor(client) != _minor(system[0]):
        text = f"its service is {system[0]} and the client here is {client}: they talk only within one minor version"
        yield Finding("jtop", "warning", text, _client_mend(system))
    else:
        yield Finding("jtop", "ok", f"service runs, client {client}")


def _client_mend(system: list[str]) -> str:
    return _pip(f"jetson-stats=={system[0]}" if system else "jetson-stats")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


# --- modes, memory, time, heat


def _power_mode(board: Board, now: dict[str, Any]) -> Iterator[Finding]:
    mode = now["power_mode"]
    if mode is not None:
        name = mode["name"] or "without a name"
        yield Finding("power mode", "ok", f"{name} (id {mode['id']}); its name is a cap on clocks, not watts")
    elif board.l4t_release is not None:
        yield Finding("power mode", "unknown", "nvpmodel does not say which one is on", "sudo nvpmodel -q")


def _clocks(board: Board, now: dict[str, Any]) -> Iterator[Finding]:
    clocks = [("GPU", now["clocks"]["gpu"]), *(("CPU", clock) for clock in now["clocks"]["cpu"])]
    free = [(kind, clock) for kind, clock in clocks if clock is not None and clock["locked"] is False]
    locked = [(kind, clock) for kind, clock in clocks if clock is not None and clock["locked"]]
    if free:
        ranges = dict.fromkeys(f"{kind} {clock['min_mhz']:.0f} to {clock['max_mhz']:.0f} MHz" for kind, clock in free)
        mend = "sudo jetson_clocks" if board.l4t_release else "sudo cpupower frequency-set --governor performance"
        yield Finding("clocks", "warning", f"not locked ({', '.join(ranges)}): latency depends on what the governor does", mend)
    elif locked:
        at = dict.fromkeys(f"{kind} {clock['max_mhz']:.0f} MHz" for kind, clock in locked)
        yield Finding("clocks", "ok", f"locked: {', '.join(at)}")
    else:
        yield Finding("clocks", "unknown", "this machine does not tell whether its clocks may move")


def _memory(now: dict[str, Any]) -> Iterator[Finding]:
    swap = now["swap"]
    if swap["total_bytes"] is None:
        yield Finding("swap", "unknown", "the system does not tell")
    elif swap["used_bytes"]:
        kind = "zram" if swap["zram_devices"] else "swap"
        mend = "sudo systemctl disable --now nvzramconfig.service" if swap["zram_devices"] else "sudo swapoff -a"
        yield Finding("swap", "warning", f"{swap['used_bytes'] / 1e6:.0f} MB of {kind} in use: what runs may wait for it", mend)
    else:
        yield Finding("swap", "ok", "none in use" if swap["total_bytes"] else "there is none")
    available = now["memory_available_bytes"]
    if available is None:
        yield Finding("memory", "unknown", "the system does not tell")
        return
    yield _amount(
        "memory",
        available,
        "available",
        _MEMORY_NEEDED,
        _MEMORY_WANTED,
        "sudo systemctl isolate multi-user.target   # ends the desktop",
    )


def _disk(place: Path) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield Finding("disk", "unknown", f"{place}: {error.strerror}")
        return
    yield _amount(
        "disk", free, f"free at {place}", _DISK_NEEDED, _DISK_WANTED, "sudo apt-get clean && sudo journalctl --vacuum-size=50M"
    )


def _amount(topic: str, have: float, what: str, needed: float, wanted: float, mend: str) -> Finding:
    text = f"{have / 1e9:.1f} GB {what}" if have >= 1e9 else f"{have / 1e6:.0f} MB {what}"
    if have < needed:
        return Finding(topic, "blocker", f"{text}, and at least {needed / 1e6:.0f} MB are needed", mend)
    return Finding(topic, "ok", text) if have >= wanted else Finding(topic, "warning", f"{text}: little", mend)


def _time(root: Path) -> Iterator[Finding]:
    """The wall clock dates profiles and nothing else; whether it was set by the network shows in files of the time services."""
    if (root / "run/systemd/timesync/synchronized").exists() or sysfs.text_or_none(root / "run/chrony/chronyd.pid"):
        yield Finding("time", "ok", "set by the network")
    elif (root / "run/systemd/timesync").is_dir():
        yield Finding(
            "time", "warning", "not set by the network yet: profiles may be dated wrongly", "sudo timedatectl set-ntp true"
        )
    else:
        yield Finding("time", "unknown", "no time service that tells whether the clock is right", "timedatectl status")


def _throttling(now: dict[str, Any]) -> Iterator[Finding]:
    slowed = [name for name, level in now["cooling_states"].items() if level and level > 0]
    alarms = [name for name, on in now["current_alarms"].items() if on]
    hot = {name: celsius for name, celsius in now["temperatures_c"].items() if celsius is not None and celsius >= _HOT_C}
    if slowed:
        yield Finding(
            "throttling",
            "blocker",
            f"slowed down by heat now: {', '.join(slowed)}",
            "sudo jetson_clocks --fan   # and let it cool",
        )
    if alarms:
        yield Finding(
            "throttling",
            "blocker",
            f"over its current limit now: {', '.join(alarms)}",
            "sudo nvpmodel -m ID   # a lower power mode",
        )
    if hot:
        yield Finding("throttling", "warning", "hot: " + ", ".join(f"{name} {celsius:.0f} °C" for name, celsius in hot.items()))
    counted = {name: count for name, count in now["over_current_counts"].items() if count}
    counted.update({f"{core} (heat)": count for core, count in now["throttle_counts"].items() if count})
    if counted:
        events = ", ".join(f"{name}: {count:.0f}" for name, count in counted.items())
        yield Finding(
            "throttling", "warning", f"it throttled since boot ({events}); a profile tells whether it does while measuring"
        )
    elif not (slowed or alarms):
        told = now["over_current_counts"] or now["throttle_counts"] or now["cooling_states"]
        yield (
            Finding("throttling", "ok", "none since boot")
            if told
            else Finding("throttling", "unknown", "this machine does not tell")
        )
