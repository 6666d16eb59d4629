"""The state a machine is in: what a person should know before measuring, and what must not have changed when it is over.

What the machine does not report is None; what it does not have is empty. `read_state` reads files only, except for the power mode of a
running system, for which nvpmodel is asked where its files cannot be read.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.gpu import emc_mhz, gpu_devfreq
from edge_tprune.telemetry.host import meminfo
from edge_tprune.telemetry.jtop import service_socket
from edge_tprune.telemetry.rails import Rail, find_rails
from edge_tprune.telemetry.source import NoReading
from edge_tprune.telemetry.thermal import alarm_files, cooling_devices, over_current_files, read_celsius, zones

_NVPMODEL_TIMEOUT_S = 5


@dataclass(frozen=True)
class PowerMode:
    """The power mode of nvpmodel. Names are caps on clocks, not watts, and ids mean different modes on different modules."""

    id: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class ClockState:
    """A clock and its limits."""

    name: str = ""
    mhz: float | None = None
    min_mhz: float | None = None
    max_mhz: float | None = None
    governor: str | None = None
    locked: bool | None = None  #: whether the lowest and the highest clock are the same


@dataclass(frozen=True)
class MemoryClock:
    """The clock of the memory that CPU and GPU share."""

    mhz: float | None = None


@dataclass(frozen=True)
class Clocks:
    """All clocks."""

    gpu: ClockState | None = None
    cpu: tuple[ClockState, ...] = ()  #: one per group of cores that share a clock
    emc: MemoryClock = MemoryClock()


@dataclass(frozen=True)
class SwapState:
    """Swap space."""

    total_bytes: int | None = None
    used_bytes: int | None = None
    zram_devices: int = 0


@dataclass(frozen=True)
class RailState:
    """A power rail now."""

    power_mw: float | None = None
    interval_s: float | None = None  #: it has a new value this often
    step_mw: float | None = None  #: the smallest change it can show
    chip: str = ""
    gap: str | None = None  #: why power_mw is None


@dataclass(frozen=True)
class JtopState:
    """The service of jetson-stats."""

    socket: str | None = None  #: its path; None where the service does not run


@dataclass(frozen=True)
class MachineState:
    """The state a machine is in."""

    power_mode: PowerMode | None = None
    clocks: Clocks = Clocks()
    swap: SwapState = SwapState()
    over_current_counts: dict[str, float | None] = field(default_factory=dict)  #: condition -> times since boot
    current_alarms: dict[str, bool | None] = field(default_factory=dict)  #: rail and limit -> exceeded now
    throttle_counts: dict[str, float | None] = field(default_factory=dict)  #: core -> times since boot (x86)
    cooling_states: dict[str, float | None] = field(default_factory=dict)  #: device, fans left out -> state; above 0 slows down
    temperatures_c: dict[str, float | None] = field(default_factory=dict)  #: zone -> degrees
    rails: dict[str, RailState] = field(default_factory=dict)  #: label -> the rail
    memory_available_bytes: int | None = None
    jtop: JtopState = JtopState()


def read_state(root: Path = Path("/")) -> MachineState:
    """The state of the machine whose `proc`, `sys`, `etc` and `var` are in `root`."""
    memory = _memory(root)
    rails = find_rails(root)
    return MachineState(
        power_mode=read_power_mode(root),
        clocks=read_clocks(root),
        swap=_swap(root, memory),
        over_current_counts={name: sysfs.number_or_none(file) for name, file in over_current_files(root).items()},
        current_alarms={name: _flag(file) for name, file in alarm_files(rails).items()},
        throttle_counts={
            file.parents[1].name: sysfs.number_or_none(file)
            for file in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        },
        cooling_states={
            f"{kind} ({directory.name})": sysfs.number_or_none(directory / "cur_state")
            for kind, directory in cooling_devices(root)
            if "fan" not in kind.lower()
        },
        temperatures_c={f"{name} ({directory.name})": _celsius(directory / "temp") for name, directory in zones(root)},
        rails={rail.label: _rail_state(rail) for rail in rails},
        memory_available_bytes=memory.get("MemAvailable"),
        jtop=JtopState(service_socket(root)),
    )


def read_clocks(root: Path = Path("/")) -> Clocks:
    """The clocks and their limits."""
    return Clocks(_gpu_clock(root), _cpu_clocks(root), MemoryClock(emc_mhz(root)))


def read_power_mode(root: Path = Path("/")) -> PowerMode | None:
    """The power mode: from the files that nvpmodel keeps, or from the program where those are not readable."""
    status = re.search(r"pmode:(\d{1,9})(?!\d)", sysfs.text_or_none(root / "var/lib/nvpmodel/status") or "")
    if status:
        number = int(status[1])
        return PowerMode(number, _mode_names(root).get(number))
    if root == Path("/") and (program := shutil.which("nvpmodel")):
        return parse_nvpmodel(_output([program, "-q"]))
    return None


def parse_nvpmodel(text: str) -> PowerMode | None:
    """The mode from what `nvpmodel -q` prints: 'NV Power Mode: NAME', then the id on a line of its own."""
    name = re.search(r"NV Power Mode:[ \t]*(\S.*?)\s*$", text, re.MULTILINE)
    if name is None:
        return None
    number = re.search(r"^\s*(\d{1,9})\s*$", text[name.end() :], re.MULTILINE)
    return PowerMode(int(number[1]) if number else None, name[1])


def _mode_names(root: Path) -> dict[int, str]:
    text = sysfs.text_or_none(root / "etc/nvpmodel.conf") or ""
    found = re.findall(r"^[ \t]*<\s*POWER_MODEL\s+ID=(\d{1,9})\s+NAME=([^>\n#]*[^>\s#])", text, re.MULTILINE)
    return {int(number): name for number, name in found}


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVPMODEL_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout


def _gpu_clock(root: Path) -> ClockState | None:
    directory = gpu_devfreq(root)
    if directory is None:
        return None
    return _clock(directory.name, directory, ("cur_freq", "min_freq", "max_freq"), "governor", per_mhz=1e6)


def _cpu_clocks(root: Path) -> tuple[ClockState, ...]:
    files = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")
    return tuple(
        _clock(
            sysfs.text_or_none(directory / "affected_cpus") or directory.name,
            directory,
            files,
            "scaling_governor",
            per_mhz=1e3,
        )
        for directory in sysfs.directories(root / "sys/devices/system/cpu/cpufreq", "policy*")
    )


def _clock(name: str, directory: Path, files: tuple[str, str, str], governor: str, *, per_mhz: float) -> ClockState:
    """A clock from the files of its value, its lowest and its highest value."""
    mhz, lowest, highest = (
        number / per_mhz if (number := sysfs.number_or_none(directory / file)) is not None else None for file in files
    )
    locked = None if lowest is None or highest is None else lowest == highest
    return ClockState(name, mhz, lowest, highest, sysfs.text_or_none(directory / governor), locked)


def _swap(root: Path, memory: dict[str, int]) -> SwapState:
    total, free = memory.get("SwapTotal"), memory.get("SwapFree")
    used = None if total is None or free is None else total - free
    return SwapState(total, used, len(list((root / "sys/block").glob("zram*"))))


def _rail_state(rail: Rail) -> RailState:
    power, gap = None, None
    try:
        power = rail.power_mw()
    except NoReading as error:
        gap = str(error)
    return RailState(power, rail.interval_s, rail.step_mw, rail.chip, gap)


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
