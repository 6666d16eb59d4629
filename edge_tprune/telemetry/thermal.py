"""Temperatures, fans, and what the machine does against heat and too much current."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.rails import Rail, find_rails
from edge_tprune.telemetry.source import Clock, NoReading, Sensor, SensorSource

OFFLINE_C = -256.0  #: what a zone says whose sensor is off
PLAUSIBLE_C = (-100.0, 200.0)
COOLING = SensorMetric(
    "throttling_devices_count",
    "count",
    "lower",
    "max",
    "cooling devices, fans left out, that hold something back at the moment: clocks are lowered for heat",
    step=1.0,
)
ALARMS = SensorMetric(
    "current_alarms_count", "count", "lower", "max", "current limits of power rails that are exceeded at the moment", step=1.0
)
_FAN = SensorMetric("fan_percent", "percent", None, "mean", "how much the fan is driven", step=100 / 255)
_FAN_SPEED = SensorMetric("fan_speed_rpm", "rpm", None, "mean", "speed of the fan")


def thermal_source(root: Path = Path("/"), clock_ns: Clock = time.perf_counter_ns) -> SensorSource:
    """The source "thermal": every zone's temperature, the fan, and how many devices are slowed down."""
    sensors: list[Sensor] = []
    taken: set[str] = set()
    for label, directory in zones(root):
        name = label if label not in taken else f"{label}_{directory.name.removeprefix('thermal_zone')}"
        taken.add(name)
        sensors.append(_ZoneSensor(name, directory / "temp"))
    slowing = [directory for label, directory in cooling_devices(root) if "fan" not in label.lower()]
    if slowing:
        sensors.append(_CoolingSensor(slowing))
    for metric, scale, files in (
        (_FAN, 100 / 255, _fan_files(root, "pwm1", "cur_pwm", "target_pwm")),
        (_FAN_SPEED, 1.0, _fan_files(root, "fan1_input", "rpm", "rpm_measured")),
    ):
        if files:
            sensors.append(_NumberSensor(metric, files[0], scale))
    return SensorSource("thermal", sensors, clock_ns)


def events_source(root: Path = Path("/"), clock_ns: Clock = time.perf_counter_ns) -> SensorSource:
    """The source "events": over-current throttling since boot, and current limits that are exceeded now."""
    sensors: list[Sensor] = [
        _NumberSensor(over_current_metric(number), file) for number, file in over_current_files(root).items()
    ]
    if alarms := alarm_files(find_rails(root)):
        sensors.append(_AlarmSensor(alarms))
    return SensorSource("events", sensors, clock_ns)


def temperature_metric(zone: str) -> SensorMetric:
    """The metric of a thermal zone: `gpu_temp_c`."""
    return SensorMetric(f"{zone}_temp_c", "C", "lower", "max", f"temperature of the thermal zone {zone}")


def over_current_metric(number: str) -> SensorMetric:
    """The metric of an over-current counter: `over_current_1_count`."""
    help_text = f"times since boot that over-current condition {number} slowed the board down"
    return SensorMetric(f"over_current_{number}_count", "count", "lower", "increase", help_text, step=1.0)


def zone_name(kind: str) -> str:
    """'gpu' for the types 'gpu-thermal' (JetPack 6) and 'GPU-therm' (JetPack 5)."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"[-_](thermal|therm)$", "", kind.lower())).strip("_")


def zones(root: Path = Path("/")) -> list[tuple[str, Path]]:
    """(name, directory) of every thermal zone."""
    return [
        (zone_name(sysfs.text_or_none(directory / "type") or "") or directory.name, directory)
        for directory in sysfs.directories(root / "sys/class/thermal", "thermal_zone*")
    ]


def cooling_devices(root: Path = Path("/")) -> list[tuple[str, Path]]:
    """(type, directory) of every cooling device."""
    return [
        (sysfs.text_or_none(directory / "type") or directory.name, directory)
        for directory in sysfs.directories(root / "sys/class/thermal", "cooling_device*")
    ]


def over_current_files(root: Path = Path("/")) -> dict[str, Path]:
    """The over-current counters by their number."""
    found: dict[str, Path] = {}
    for directory in sysfs.directories(root / "sys/devices/platform/soctherm-oc-event/hwmon", "hwmon*"):
        for file in sorted(directory.glob("oc*_event_cnt")):
            found.setdefault(file.name.removeprefix("oc").removesuffix("_event_cnt"), file)
    return found


def alarm_files(rails: Sequence[Rail]) -> dict[str, Path]:
    """The current alarms by what they mean ('VDD_IN warn')."""
    named = {
        f"{rail.label} {what}": rail.directory / file
        for rail in rails
        for what, file in (("warn", rail.warn_alarm_file), ("critical", rail.critical_alarm_file))
        if file is not None
    }
    return {name: file for name, file in named.items() if sysfs.is_there(file)}


def read_celsius(file: Path | str) -> float:
    """A zone's temperature.

    Raises:
        NoReading: its power is off (EAGAIN), it is offline (-256 C), or the file is not what it should be.
    """
    milli = sysfs.read_number(file)
    if milli / 1000 <= OFFLINE_C:
        raise NoReading("offline")
    if not PLAUSIBLE_C[0] <= milli / 1000 <= PLAUSIBLE_C[1]:
        raise NoReading(f"implausible: {milli / 1000:g} C")
    return milli / 1000


class _ZoneSensor:
    def __init__(self, name: str, file: Path) -> None:
        self.metrics = (temperature_metric(name),)
        self._file = str(file)

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        values[self.metrics[0].name] = read_celsius(self._file)


class _CoolingSensor:
    metrics = (COOLING,)

    def __init__(self, directories: list[Path]) -> None:
        self._files = [str(directory / "cur_state") for directory in directories]

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        states = [state for file in self._files if (state := sysfs.number_or_none(file)) is not None]
        if not states:
            raise NoReading("no cooling device reports its state")
        values[COOLING.name] = float(sum(state > 0 for state in states))


class _AlarmSensor:
    metrics = (ALARMS,)

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = [str(file) for file in files.values()]

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        values[ALARMS.name] = float(sum(sysfs.read_number(file) > 0 for file in self._files))


class _NumberSensor:
    """A file with one number from 0 on."""

    def __init__(self, metric: SensorMetric, file: Path, scale: float = 1.0) -> None:
        self.metrics = (metric,)
        self._file = str(file)
        self._scale = scale

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        number = sysfs.read_number(self._file)
        if number < 0:
            raise NoReading(f"implausible: {number:g}")
        values[self.metrics[0].name] = number * self._scale


def _fan_files(root: Path, *names: str) -> list[Path]:
    """The files of fans with one of these names. Half of a fan may be one device ("pwmfan") and half another ("pwm_tach")."""
    directories = [root / "sys/devices/pwm-fan"]
    for directory in sysfs.directories(root / "sys/class/hwmon", "hwmon*"):
        if re.search(r"fan|tach", sysfs.text_or_none(directory / "name") or ""):
            directories.append(directory)
    return [file for directory in directories for name in names if sysfs.is_there(file := directory / name)]
