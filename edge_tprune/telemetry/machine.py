"""Everything that can be read on this machine: which board it is, its sensors, and the state it is in."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.boards import Board, identify
from edge_tprune.telemetry.gpu import emc_mhz, gpu_devfreq, gpu_source
from edge_tprune.telemetry.host import HostSource, meminfo
from edge_tprune.telemetry.jtop import jtop_source, service_socket
from edge_tprune.telemetry.last_resort import psutil_source
from edge_tprune.telemetry.nvml import nvml_sources
from edge_tprune.telemetry.rails import Rail, find_rails, rails_source
from edge_tprune.telemetry.rapl import rapl_source
from edge_tprune.telemetry.source import Clock, NoReading, Source
from edge_tprune.telemetry.tegrastats import tegrastats_source
from edge_tprune.telemetry.thermal import (
    alarm_files,
    cooling_devices,
    events_source,
    over_current_files,
    read_celsius,
    thermal_source,
    zones,
)

__all__ = ["Board", "identify", "open_sources", "state"]

_NVPMODEL_TIMEOUT_S = 5


def open_sources(root: Path = Path("/"), *, clock_ns: Clock = time.perf_counter_ns, pid: int | None = None) -> list[Source]:
    """Every source found on this machine, the most trusted first: of two that give the same metric, take the first.

    Files come first: they are nearest to the sensors and cost least. tegrastats and jtop are programs that read the same files
    less often, and start only where no file reports a rail. Sources that ask the running system instead of files (these two, NVML, psutil)
    are left out under another root.

    Args:
        root: the directory that holds the system's `proc`, `sys` and `etc`.
        clock_ns: the monotonic clock that stamps the readings.
        pid: the process whose memory and CPU share are the measurement's own; by default this one.
    """
    board = identify(root)
    running = root == Path("/")
    rails = rails_source(root, board, clock_ns)
    sources: list[Source | None] = [
        rails,
        gpu_source(root, clock_ns),
        thermal_source(root, clock_ns),
        events_source(root, clock_ns),
        HostSource(root, clock_ns, pid),
    ]
    if running and not rails.metrics:
        sources.append(_program(board, clock_ns))
    if running:
        sources += nvml_sources(clock_ns)
    sources.append(rapl_source(root, clock_ns))
    if running and not Path("/proc/meminfo").exists():
        sources.append(psutil_source(clock_ns))
    return [source for source in sources if source is not None and source.metrics]


def _program(board: Board, clock_ns: Clock) -> Source | None:
    """The first program that reports something."""
    for open_program in (tegrastats_source, jtop_source):
        source = open_program(board, clock_ns=clock_ns)
        if source is not None and source.metrics:
            return source
    return None


def state(root: Path = Path("/")) -> dict[str, Any]:
    """The state the machine is in, as JSON-able values: what a person should know before measuring, and what must not have
    changed when it is over. What the machine does not report is None; what it does not have is an empty dict.

    Keys:
        power_mode: {id, name} of nvpmodel.
        clocks: {gpu, cpu, emc}; gpu {name, mhz, min_mhz, max_mhz, governor, locked}; cpu: a list of the same, one per group of
            cores that share a clock; emc {mhz}. `locked` is True where lowest and highest clock are the same.
        swap: {total_bytes, used_bytes, zram_devices}.
        over_current_counts: {number: times since boot}. current_alarms: {rail and limit: exceeded now}.
        throttle_counts: {core: times since boot} (x86). cooling_states: {device: state}, fans left out; above 0 is slowed down.
        temperatures_c: {zone: degrees}.
        rails: {label: {power_mw, interval_s, step_mw, chip, gap}}; gap says why power_mw is None.
        memory_available_bytes.
        jtop: {socket: path or None}: whether the service of jetson-stats runs.
    """
    memory = _memory(root)
    swap_total, swap_free = memory.get("SwapTotal"), memory.get("SwapFree")
    rails = find_rails(root)
    return {
        "power_mode": power_mode(root),
        "clocks": {"gpu": _gpu_clock(root), "cpu": _cpu_clocks(root), "emc": {"mhz": emc_mhz(root)}},
        "swap": {
            "total_bytes": swap_total,
            "used_bytes": None if swap_total is None or swap_free is None else swap_total - swap_free,
            "zram_devices": len(list((root / "sys/block").glob("zram*"))),
        },
        "over_current_counts": {name: sysfs.number_or_none(file) for name, file in over_current_files(root).items()},
        "current_alarms": {name: _flag(file) for name, file in alarm_files(rails).items()},
        "throttle_counts": {
            file.parents[1].name: sysfs.number_or_none(file)
            for file in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        },
        "cooling_states": {
            f"{kind} ({directory.name})": sysfs.number_or_none(directory / "cur_state")
            for kind, directory in cooling_devices(root)
            if "fan" not in kind.lower()
        },
        "temperatures_c": {f"{name} ({directory.name})": _celsius(directory / "temp") for name, directory in zones(root)},
        "rails": {rail.label: _rail_state(rail) for rail in rails},
        "memory_available_bytes": memory.get("MemAvailable"),
        "jtop": {"socket": service_socket(root)},
    }


def power_mode(root: Path = Path("/")) -> dict[str, Any] | None:
    """The power mode of nvpmodel as {id, name}: from the files it keeps, or from the program where those are not readable.

    Names are caps on clocks, not watts, and ids mean different modes on different modules: compare both.
    """
    status = re.search(r"pmode:(\d+)", sysfs.text_or_none(root / "var/lib/nvpmodel/status") or "")
    if status:
        number = int(status[1])
        return {"id": number, "name": _mode_names(root).get(number)}
    if root == Path("/") and (program := shutil.which("nvpmodel")):
        return parse_nvpmodel(_output([program, "-q"]))
    return None


def parse_nvpmodel(text: str) -> dict[str, Any] | None:
    """{id, name} from what `nvpmodel -q` prints: 'NV Power Mode: NAME', then the id on a line of its own."""
    name = re.search(r"NV Power Mode: *(\S+)", text)
    if name is None:
        return None
    number = re.search(r"^\s*(\d+)\s*$", text[name.end() :], re.MULTILINE)
    return {"id": int(number[1]) if number else None, "name": name[1]}


def _mode_names(root: Path) -> dict[int, str]:
    text = sysfs.text_or_none(root / "etc/nvpmodel.conf") or ""
    return {
        int(number): name
        for number, name in re.findall(r"^[ \t]*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", text, re.MULTILINE)
    }


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVPMODEL_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout


def _gpu_clock(root: Path) -> dict[str, Any] | None:
    directory = gpu_devfreq(root)
    if directory is None:
        return None
    return _clock(directory.name, directory, "cur_freq", "min_freq", "max_freq", "governor", 1e6)


def _cpu_clocks(root: Path) -> list[dict[str, Any]]:
    return [
        _clock(
            sysfs.text_or_none(directory / "affected_cpus") or directory.name,
            directory,
            "scaling_cur_freq",
            "scaling_min_freq",
            "scaling_max_freq",
            "scaling_governor",
            1e3,
        )
        for directory in sysfs.directories(root / "sys/devices/system/cpu/cpufreq", "policy*")
    ]


def _clock(name: str, directory: Path, now: str, lowest: str, highest: str, governor: str, per_mhz: float) -> dict[str, Any]:
    mhz, least, most = (
        number / per_mhz if (number := sysfs.number_or_none(directory / file)) is not None else None
        for file in (now, lowest, highest)
    )
    return {
        "name": name,
        "mhz": mhz,
        "min_mhz": least,
        "max_mhz": most,
        "governor": sysfs.text_or_none(directory / governor),
        "locked": None if least is None or most is None else least == most,
    }


def _rail_state(rail: Rail) -> dict[str, Any]:
    power, gap = None, None
    try:
        power = rail.power_mw()
    except NoReading as error:
        gap = str(error)
    return {"power_mw": power, "interval_s": rail.interval_s, "step_mw": rail.step_mw, "chip": rail.chip, "gap": gap}


def _memory(root: Path) -> dict[str, int]:
    try:
        return meminfo(root)
    except NoReading:
        return {}


def _flag(file: Path) -> bool | None:
    number = sysfs.number_or_none(file)
    return None if number is None else number > 0


def _celsius(file: Path) -> float | None:
    try:
        return read_celsius(file)
    except NoReading:
        return None
