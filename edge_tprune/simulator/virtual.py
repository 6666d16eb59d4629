"""A simulated board on a virtual clock: sources without files, hundreds of runs in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edge_tprune.simulator.boards import RailLaw, board_law
from edge_tprune.simulator.law import Heat, Load, Physics, StepLoad, rail_sensors
from edge_tprune.telemetry import boards, gpu, host, thermal
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.rails import INA238_INTERVAL_S, power_metric, total_sensor
from edge_tprune.telemetry.source import NoReading, Sensor, SensorSource, Source

#: What a reader of files says of these faults. (A stall is no gap: the read takes as long as the fault lasts.)
_REASONS = {
    "vanish": "the file is gone",
    "eio": "EIO",
    "eagain": "EAGAIN",
    "empty": "the file is empty",
    "garbage": "no number: 'garbage'",
    "renumber": "the file is gone",
}
KINDS = (*_REASONS, "stall", "jump")


class VirtualClock:
    """A monotonic clock that moves only by `advance` and `sleep_until`. Call it for the time in ns."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def __call__(self) -> int:
        """Now, in ns."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.sleep_until(self._now_ns + round(seconds * 1e9))

    def sleep_until(self, t_ns: int) -> None:
        """Lets time pass until then, or none if that is over."""
        self._now_ns = max(self._now_ns, t_ns)


@dataclass(frozen=True)
class SensorFault:
    """Something that is wrong with some sensors for a while."""

    kind: str  #: one of `KINDS`
    metric: str  #: name or pattern: "vdd_in_power_mw", "*_temp_c"
    begin_ns: int
    end_ns: int
    amount: float = 0.0  #: what a jump adds to the value

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are: {', '.join(KINDS)}")


class VirtualMachine:
    """A board whose load is set by `load.set(clock(), share)` as time goes on, and whose true energy is known.

    Args:
        board: a key of `boards.BOARDS`.
        clock: the virtual clock; a new one at 0 by default.
        load: how busy it is; by default a `StepLoad` that is idle until it is set.
        seed: of the sensors' phases and noise.
        noise_steps: standard deviation of a shown value in steps of its sensor.
        idle_drift_per_s: share by which idle power grows per second, from the time of creation on.
        faults: what goes wrong, and when.
        read_s: time that reading one sensor takes.
    """

    def __init__(
        self,
        board: str = "orin-nano",
        *,
        clock: VirtualClock | None = None,
        load: Load | None = None,
        seed: int = 0,
        noise_steps: float = 0.5,
        idle_drift_per_s: float = 0.0,
        faults: Iterable[SensorFault] = (),
        read_s: float = 0.0,
    ) -> None:
        self.law = board_law(board)
        self.board = boards.board(board)
        self.clock = clock or VirtualClock()
        self.load: Load = load or StepLoad(begin_ns=self.clock())
        self.physics = Physics(self.law, self.load, self.clock(), idle_drift_per_s)
        self.faults = list(faults)
        self.set_values: dict[str, float] = {}  #: metric -> value that it has from now on, whatever the law says
        self._read_s = read_s
        self._heat = Heat(self.clock())
        self._warmed_ns = self.clock()
        self._rails = rail_sensors(self.law, self.physics, seed=seed, noise_steps=noise_steps)

    def energy_mj(self, begin_ns: int, end_ns: int) -> float:
        """What the board (its total) dissipated in a window: exact."""
        return sum(self.rail_energy_mj(label, begin_ns, end_ns) for label in self.board.total)

    def rail_energy_mj(self, label: str, begin_ns: int, end_ns: int) -> float:
        """What went through one rail in a window: exact."""
        return self.physics.rail_energy_mj(self._rails[label].rail, begin_ns, end_ns)

    def set_surroundings(self, celsius: float) -> None:
        """From now on the board's surroundings are so warm."""
        self.temperature_c()
        self._heat.ambient_c = celsius

    def temperature_c(self) -> float:
        """Of the chip, now."""
        now_ns = self.clock()
        self._heat.warm(now_ns, self.energy_mj(self._warmed_ns, now_ns))
        self._warmed_ns = now_ns
        return self._heat.celsius

    def sources(self) -> list[Source]:
        """The sources that `open_sources` finds on such a board, as far as the law knows their values."""
        rails = [self._rail(rail) for rail in self.law.rails]
        total = total_sensor(self.board, {rail.label: sensor.metrics[0] for rail, sensor in zip(self.law.rails, rails)})
        busy: Callable[[], float] = lambda: 100 * self.load.at(self.clock())  # noqa: E731
        graphics = [self._sensor(gpu.CLOCK, lambda: self.law.gpu_hz[1] / 1e6)]
        if self.law.gpu_load_file:
            graphics.append(self._sensor(gpu.LOAD, busy))
        heat = [
            self._sensor(thermal.temperature_metric(thermal.zone_name(zone)), self._temperature_c) for zone in self.law.zones
        ]
        events = [
            self._sensor(thermal.over_current_metric(str(number + 1)), lambda: 0.0)
            for number in range(self.law.over_current_counters)
        ]
        if any(rail.chip == "ina3221" for rail in self.law.rails):
            events.append(self._sensor(thermal.ALARMS, lambda: 0.0))
        system = [
            self._sensor(host.LOAD, busy),
            self._sensor(host.OTHER_LOAD, lambda: 0.0),
            self._sensor(host.CLOCK, lambda: self.law.cpu_khz[1] / 1e3),
            self._sensor(host.AVAILABLE, lambda: 0.6 * self.law.memory_kib * 1024),
            self._sensor(host.SWAP, lambda: 0.0),
        ]
        groups: list[tuple[str, Sequence[Sensor]]] = [
            ("rails", [*rails, total] if total else rails),
            ("gpu", graphics),
            ("thermal", [*heat, self._sensor(thermal.COOLING, lambda: 0.0)]),
            ("events", events),
            ("host", system),
        ]
        return [SensorSource(name, sensors, self.clock) for name, sensors in groups if sensors]

    def _rail(self, rail: RailLaw) -> _VirtualSensor:
        stated_s = rail.stated_interval_s or (INA238_INTERVAL_S if rail.chip == "ina238" else None)
        step_mw = None if rail.chip == "ina3221x" else rail.step_mw
        metric = power_metric(rail.label, f"{rail.chip} at {rail.address}, simulated", stated_s, step_mw)
        return self._sensor(metric, lambda: self._rails[rail.label].registers(self.clock()).power_mw)

    def _sensor(self, metric: SensorMetric, value: Callable[[], float]) -> _VirtualSensor:
        return _VirtualSensor(metric, value, self, self._read_s)

    def _temperature_c(self) -> float:
        return round(self.temperature_c(), 3)


class _VirtualSensor:
    """One value, with its faults."""

    def __init__(self, metric: SensorMetric, value: Callable[[], float], machine: VirtualMachine, read_s: float) -> None:
        self.metrics = (metric,)
        self._value = value
        self._machine = machine
        self._read_s = read_s

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        name, machine = self.metrics[0].name, self._machine
        machine.clock.advance(self._read_s)
        now_ns = machine.clock()
        value = machine.set_values[name] if name in machine.set_values else self._value()
        for fault in machine.faults:
            if not fault.begin_ns <= now_ns < fault.end_ns or not fnmatchcase(name, fault.metric):
                continue
            if fault.kind in _REASONS:
                raise NoReading(_REASONS[fault.kind])
            if fault.kind == "stall":
                machine.clock.sleep_until(fault.end_ns)
            else:
                value += fault.amount
        values[name] = value
