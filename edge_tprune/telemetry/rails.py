"""Power rails, from the chips that measure them: INA3221 and INA2xx through hwmon, INA3221 through the older iio.

Rails are identified by their label, not by their number: `hwmon3` may be `hwmon2` after the next boot, or after a driver was reloaded
in the middle of a run; then the rail is searched again. Nothing is written to the chip: its settings decide when an over-current
alarm goes off.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.boards import Board, guess_input
from edge_tprune.telemetry.metric import LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S, SensorMetric
from edge_tprune.telemetry.source import NOT_REPORTED, Clock, NoReading, Sensor, SensorSource

_INA3221_SHUNT_STEP_V = 40e-6  #: the smallest change of the voltage across the shunt that the chip can show
INA238_INTERVAL_S = 0.0505  #: 16 times three conversions of 1.052 ms: what its driver sets up; some drivers do not report it
_INA238_STEP_MW_UOHM = 4000.0  #: least power step times shunt, in the chip's coarser range
_LEAST_SHUNT_UOHM = 1.0  #: no shunt has less, and what a driver says then is no resistance
_STEP_MW = 1e-9, 1e6  #: no chip has smaller or larger steps
_LARGEST_MW = 1e6  #: no board draws a kilowatt: a higher reading is implausible
_SEARCH_AGAIN_NS = 10**9
_NOT_CONNECTED = "NC"


@dataclass(frozen=True)
class Rail:
    """One measured rail."""

    label: str  #: "VDD_IN"
    chip: str  #: "ina3221 at 1-0040"
    directory: Path  #: of the chip's files
    power_file: str | None  #: its power in `power_unit_mw`, where the chip computes it ...
    power_unit_mw: float
    voltage_file: str | None  #: ... otherwise millivolt and milliampere, which are multiplied here
    current_file: str | None
    warn_alarm_file: str | None  #: 1 while the current is above the first limit
    critical_alarm_file: str | None
    interval_s: float | None  #: the chip has a new value this often
    step_mw: float | None  #: the least change it can show

    @property
    def metric(self) -> SensorMetric:
        """What reading it gives."""
        return power_metric(self.label, self.chip, self.interval_s, self.step_mw)

    def power_mw(self) -> float:
        """Its power now.

        Raises:
            NoReading: one of the files is absent, cannot be read, or holds no plausible number.
        """
        # Older drivers answer only when a conversion is ready: that wait is theirs, and the time of the read shows it.
        if self.power_file is not None:
            power = sysfs.read_number(self.directory / self.power_file, wait=True) * self.power_unit_mw
        elif self.voltage_file is not None and self.current_file is not None:
            voltage = sysfs.read_number(self.directory / self.voltage_file, wait=True)
            power = voltage * sysfs.read_number(self.directory / self.current_file, wait=True) / 1000
        else:
            raise NoReading("no power file")
        if abs(power) > _LARGEST_MW:
            raise NoReading(f"implausible: {power:.0f} mW")
        return power  # may be one step below zero at idle: the chip's offset, and its mean is right


def power_metric(label: str, chip: str, interval_s: float | None, step_mw: float | None) -> SensorMetric:
    """The metric of a rail's power: `vdd_in_power_mw` for VDD_IN."""
    name = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") or "unnamed"
    return SensorMetric(f"{name}_power_mw", "mW", "lower", "mean", f"power of the rail {label} ({chip})", interval_s, step_mw)


def find_rails(root: Path = Path("/")) -> tuple[Rail, ...]:
    """The connected rails of this machine, in the order of chips and channels, each name once."""
    found: dict[str, Rail] = {}
    for directory, address in _hwmon_directories(root):
        name = sysfs.text_or_none(directory / "name") or ""
        if name.startswith("ina3221"):
            rails: Iterator[Rail] = _ina3221(directory, f"{name} at {address}" if address else name)
        elif name.startswith("ina"):
            rails = _ina2xx(directory, name, address)
        else:
            continue
        for rail in rails:
            found.setdefault(rail.metric.name, rail)
    for directory, address in _iio_directories(root):
        for rail in _iio(directory, address):
            found.setdefault(rail.metric.name, rail)
    return tuple(found.values())


def rails_source(root: Path, board: Board, clock_ns: Clock = time.perf_counter_ns) -> SensorSource:
    """The source "rails": every rail, and the board's total where it is known which rails make it."""
    rails = find_rails(root)
    finder = _RailFinder(root, rails, clock_ns)
    sensors: list[Sensor] = [_RailSensor(rail, finder) for rail in rails]
    if total := total_sensor(board, {rail.label: rail.metric for rail in rails}):
        sensors.append(total)
    return SensorSource("rails", sensors, clock_ns)


def total_sensor(board: Board, rails: Mapping[str, SensorMetric]) -> Sensor | None:
    """The sensor of `total_power_mw`, computed from the rails that were read before it in the same reading.

    Args:
        board: says which rails make its total.
        rails: the metric of each rail there is, by label.

    Returns:
        None where one of the rails of the total does not exist, and where the board is unknown and none of its rails is called as
        an input is. The input of an unknown board is a guess, and its metric says so.
    """
    if not board.total:
        label = guess_input(rails)
        if label is None:
            return None
        text = (
            f"a guess: {label} is taken for the power of the whole board, because of its name; this board is not in the table"
        )
        return _TotalSensor(text, [rails[label]], guess=True)
    labels = board.match_rails(rails)
    if not set(board.total) <= set(labels):
        return None
    own = [labels[rail] for rail in board.total]
    return _TotalSensor(f"power of the whole board: {' + '.join(own)} ({board.remark})", [rails[label] for label in own])


class _TotalSensor:
    def __init__(self, help_text: str, parts: Sequence[SensorMetric], *, guess: bool = False) -> None:
        intervals = [part.interval_s for part in parts if part.interval_s is not None]
        steps = [part.step for part in parts if part.step is not None]
        interval_s = max(intervals) if len(intervals) == len(parts) else None
        # Rounding errors of separate rails are independent: they add as their squares.
        step = math.sqrt(sum(step * step for step in steps)) if len(steps) == len(parts) else None
        self.metrics = (SensorMetric("total_power_mw", "mW", "lower", "mean", help_text, interval_s, step, guess),)
        self._parts = [part.name for part in parts]

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        for part in self._parts:
            if part not in values:
                raise NoReading(f"no {part}: {gaps.get(part, NOT_REPORTED)}")
        values["total_power_mw"] = sum(values[part] for part in self._parts)


class _RailFinder:
    """Where each rail is at the moment. Searched again, at most once a second, when one has moved."""

    def __init__(self, root: Path, rails: tuple[Rail, ...], clock_ns: Clock) -> None:
        self._root = root
        self._rails = {rail.label: rail for rail in rails}
        self._clock_ns = clock_ns
        self._searched_ns: int | None = None

    def __getitem__(self, label: str) -> Rail:
        return self._rails[label]

    def search_again(self) -> bool:
        """Whether it looked."""
        now_ns = self._clock_ns()
        if self._searched_ns is not None and now_ns - self._searched_ns < _SEARCH_AGAIN_NS:
            return False
        self._searched_ns = now_ns
        self._rails |= {rail.label: rail for rail in find_rails(self._root)}
        return True


class _RailSensor:
    def __init__(self, rail: Rail, finder: _RailFinder) -> None:
        self.metrics = (rail.metric,)
        self._label = rail.label
        self._finder = finder

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        rail = self._finder[self._label]
        try:
            power = rail.power_mw()
        except NoReading:
            if sysfs.is_there(rail.directory) or not self._finder.search_again():
                raise
            power = self._finder[self._label].power_mw()
        values[self.metrics[0].name] = power


def _hwmon_directories(root: Path) -> Iterator[tuple[Path, str | None]]:
    """(directory, address of the chip on its bus) of every hwmon device. A chip that is reachable by two ways comes twice."""
    for device in sysfs.directories(root / "sys/bus/i2c/devices", "*-*"):
        for directory in sysfs.directories(device / "hwmon", "hwmon*"):
            yield directory, device.name
    for driver in sysfs.directories(root / "sys/bus/i2c/drivers", "ina*"):
        for device in sysfs.directories(driver, "*-*"):
            for directory in sysfs.directories(device / "hwmon", "hwmon*"):
                yield directory, device.name
    for directory in sysfs.directories(root / "sys/class/hwmon", "hwmon*"):
        address = ""
        with suppress(OSError, RuntimeError):  # links that lead in a circle
            address = (directory / "device").resolve().name
        yield directory, address if re.fullmatch(r"\d+-[0-9a-f]{4}", address) else None


def _interval_s(directory: Path) -> float | None:
    """None where the driver does not say, or says what cannot be."""
    interval_s = (sysfs.number_or_none(directory / "update_interval") or 0.0) / 1000
    return interval_s if SHORTEST_INTERVAL_S <= interval_s <= LONGEST_INTERVAL_S else None


def _ina3221(directory: Path, chip: str) -> Iterator[Rail]:
    interval_s = _interval_s(directory)
    for channel in (1, 2, 3):  # 7 is the sum of the shunt voltages
        label = sysfs.text_or_none(directory / f"in{channel}_label")
        if label is None or label.upper() == _NOT_CONNECTED or sysfs.number_or_none(directory / f"in{channel}_enable") == 0:
            continue
        shunt_uohm = sysfs.number_or_none(directory / f"shunt{channel}_resistor")
        voltage_mv = sysfs.number_or_none(directory / f"in{channel}_input")
        step_mw = None
        if shunt_uohm and shunt_uohm >= _LEAST_SHUNT_UOHM and voltage_mv:
            step_mw = _INA3221_SHUNT_STEP_V / (shunt_uohm * 1e-6) * voltage_mv
        yield Rail(
            label=label,
            chip=chip,
            directory=directory,
            power_file=None,
            power_unit_mw=1.0,
            voltage_file=f"in{channel}_input",
            current_file=f"curr{channel}_input",
            warn_alarm_file=f"curr{channel}_max_alarm",
            critical_alarm_file=f"curr{channel}_crit_alarm",
            interval_s=interval_s,
            step_mw=_plausible_step(step_mw),
        )


def _plausible_step(step_mw: float | None) -> float | None:
    """What a chip's file says of its shunt need not be true."""
    least, largest = _STEP_MW
    return step_mw if step_mw is not None and least <= step_mw <= largest else None


def _ina2xx(directory: Path, name: str, address: str | None) -> Iterator[Rail]:
    """The chips that compute power themselves; they watch one rail each, and few of them have a label."""
    if not sysfs.is_there(directory / "power1_input"):
        return
    unnamed = "VIN" if name.startswith("ina238") else f"{name}_{address or directory.name}"
    label = next((text for file in ("power1_label", "in1_label") if (text := sysfs.text_or_none(directory / file))), unnamed)
    ina238 = name.startswith("ina238")
    shunt_uohm = sysfs.number_or_none(directory / "shunt_resistor")
    step_mw = _INA238_STEP_MW_UOHM / shunt_uohm if ina238 and shunt_uohm and shunt_uohm >= _LEAST_SHUNT_UOHM else None
    yield Rail(
        label=label,
        chip=f"{name} at {address}" if address else name,
        directory=directory,
        power_file="power1_input",
        power_unit_mw=1e-3,
        voltage_file=None,
        current_file=None,
        warn_alarm_file="power1_max_alarm",
        critical_alarm_file=None,
        interval_s=_interval_s(directory) or (INA238_INTERVAL_S if ina238 else None),
        step_mw=_plausible_step(step_mw),
    )


def _iio_directories(root: Path) -> Iterator[tuple[Path, str | None]]:
    for device in sysfs.directories(root / "sys/bus/i2c/devices", "*-*"):
        for directory in sysfs.directories(device, "iio:device*"):
            yield directory, device.name
    for driver in sysfs.directories(root / "sys/bus/i2c/drivers", "ina3221*"):
        for device in sysfs.directories(driver, "*-*"):
            for directory in sysfs.directories(device, "iio:device*"):
                yield directory, device.name
    for directory in sysfs.directories(root / "sys/bus/iio/devices", "iio:device*"):
        yield directory, None


def _iio(directory: Path, address: str | None) -> Iterator[Rail]:
    for channel in (0, 1, 2):
        label = sysfs.text_or_none(directory / f"rail_name_{channel}")
        if label is None or label.upper() == _NOT_CONNECTED:
            continue
        rail = Rail(
            label=label,
            chip=f"ina3221x at {address}" if address else "ina3221x",
            directory=directory,
            power_file=f"in_power{channel}_input",
            power_unit_mw=1.0,
            voltage_file=f"in_voltage{channel}_input",
            current_file=f"in_current{channel}_input",
            warn_alarm_file=None,
            critical_alarm_file=None,
            interval_s=None,
            step_mw=None,
        )
        yield rail if sysfs.is_there(directory / f"in_power{channel}_input") else replace(rail, power_file=None)
