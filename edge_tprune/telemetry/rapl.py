"""Energy counters of x86 processors (RAPL), from the kernel's powercap files. Most kernels let only root read them."""

from __future__ import annotations

import time
from pathlib import Path

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.counter import Counter
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import NOT_REPORTED, Clock, NoReading, Sensor, SensorSource

_INTERVAL_S = 0.001  #: how often the processor updates its counters


def rapl_source(root: Path = Path("/"), clock_ns: Clock = time.perf_counter_ns) -> SensorSource:
    """The source "rapl": the energy of every package and its memory, and their sum.

    Parts of a package (core, uncore) are left out, because the package includes them; so is psys, which includes all packages.
    """
    domains = _domains(root)
    sensors: list[Sensor] = [_Domain(name, directory) for name, directory in domains.items()]
    if sensors:
        sensors.append(_EnergySum(" + ".join(domains), [sensor.metrics[0].name for sensor in sensors]))
    return SensorSource("rapl", sensors, clock_ns)


def _domains(root: Path) -> dict[str, Path]:
    """Directories by name: 'package-0', 'package-0 dram'."""
    found: dict[str, Path] = {}
    for package in sysfs.directories(root / "sys/class/powercap", "intel-rapl:*"):
        name = sysfs.text_or_none(package / "name") or ""
        if package.name.count(":") == 1 and name.startswith("package"):
            found[name] = package
            for part in sysfs.directories(root / "sys/class/powercap", f"{package.name}:*"):
                if sysfs.text_or_none(part / "name") == "dram":
                    found[f"{name} dram"] = part
    return found


class _Domain:
    def __init__(self, name: str, directory: Path) -> None:
        help_text = f"energy of the processor's {name} since the first reading's counter began"
        metric_name = f"{name.replace('-', '_').replace(' ', '_')}_energy_mj"
        self.metrics = (SensorMetric(metric_name, "mJ", "lower", "increase", help_text, _INTERVAL_S),)
        self._file = str(directory / "energy_uj")
        self._counter = Counter(sysfs.number_or_none(directory / "max_energy_range_uj"))

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        values[self.metrics[0].name] = self._counter.total(sysfs.read_number(self._file)) / 1000


class _EnergySum:
    def __init__(self, made_of: str, parts: list[str]) -> None:
        help_text = f"energy of the processor and its memory, without the rest of the machine: {made_of}"
        self.metrics = (SensorMetric("total_energy_mj", "mJ", "lower", "increase", help_text, _INTERVAL_S),)
        self._parts = parts

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        for part in self._parts:
            if part not in values:
                raise NoReading(f"no {part}: {gaps.get(part, NOT_REPORTED)}")
        values["total_energy_mj"] = sum(values[part] for part in self._parts)
