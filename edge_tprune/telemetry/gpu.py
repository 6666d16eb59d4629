"""Load and clock of the GPU inside a Jetson, and the clock of its memory, from the files that may be read without privileges."""

from __future__ import annotations

import re
import time
from pathlib import Path

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import Clock, NoReading, Sensor, SensorSource

#: Names of GPUs in /sys/class/devfreq; the numbers before the dot are their address and differ.
_DEVFREQ = re.compile(r"[0-9a-f]+\.(ga10b|gpu|gv11b|gp10b|gb10b)|gpu-gpc-0")
_LOAD_FILES = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/17000000.ga10b/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
    "sys/devices/platform/17000000.gv11b/load",
)
_EMC_FILES = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")  # root only; JetPack 4

LOAD = SensorMetric("gpu_load_percent", "percent", None, "mean", "busy share of the GPU", step=0.1)
CLOCK = SensorMetric("gpu_frequency_mhz", "MHz", None, "mean", "clock of the GPU")
EMC_CLOCK = SensorMetric("emc_frequency_mhz", "MHz", None, "mean", "clock of the memory that GPU and CPU share")


def gpu_source(root: Path = Path("/"), clock_ns: Clock = time.perf_counter_ns) -> SensorSource:
    """The source "gpu": load, clock and memory clock, each where this machine has it."""
    devfreq = gpu_devfreq(root)
    sensors: list[Sensor] = []
    if load := _load_file(root, devfreq):
        sensors.append(_LoadSensor(load))
    if devfreq is not None and sysfs.is_there(devfreq / "cur_freq"):
        sensors.append(_ClockSensor(CLOCK, devfreq / "cur_freq"))
    if (emc := _emc_file(root)) is not None:
        sensors.append(_ClockSensor(EMC_CLOCK, emc))
    return SensorSource("gpu", sensors, clock_ns)


def gpu_devfreq(root: Path = Path("/")) -> Path | None:
    """The directory with the GPU's clocks and governor, or None."""
    return next((path for path in sysfs.directories(root / "sys/class/devfreq", "*") if _DEVFREQ.fullmatch(path.name)), None)


def emc_mhz(root: Path = Path("/")) -> float | None:
    """The memory's clock; None without root or on another board."""
    file = _emc_file(root)
    rate = sysfs.number_or_none(file) if file else None
    return rate / 1e6 if rate else None


def _emc_file(root: Path) -> Path | None:
    return next((root / file for file in _EMC_FILES if sysfs.number_or_none(root / file)), None)


def _load_file(root: Path, devfreq: Path | None) -> Path | None:
    candidates = [devfreq / "device/load"] if devfreq is not None else []
    candidates += [root / file for file in _LOAD_FILES]
    return next((file for file in candidates if sysfs.is_there(file)), None)


class _LoadSensor:
    metrics = (LOAD,)

    def __init__(self, file: Path) -> None:
        self._file = str(file)

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        permille = sysfs.read_number(self._file)
        if not 0 <= permille <= 1000:
            raise NoReading(f"implausible: a load of {permille:g} permille")
        values[LOAD.name] = permille / 10


class _ClockSensor:
    def __init__(self, metric: SensorMetric, file: Path) -> None:
        self.metrics = (metric,)
        self._file = str(file)

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        hertz = sysfs.read_number(self._file)
        if hertz == 0:
            raise NoReading("off")  # a power-gated GPU has no clock, and a mean must not count it as slow
        if not 0 < hertz < 1e11:
            raise NoReading(f"implausible: a clock of {hertz:g} Hz")
        values[self.metrics[0].name] = hertz / 1e6
