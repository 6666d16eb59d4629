"""Runs on a virtual clock: a simulated board whose power and energy are known exactly, sampled and timed like a real one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from edge_tprune.agent.energy import Energy, Idle, PowerWindow, Sensor, Turn, budget_energy, choose_sensor, idle_power
from edge_tprune.agent.sampler import period_s
from edge_tprune.telemetry.metric import Metric
from edge_tprune.telemetry.simulator.law import StepLoad
from edge_tprune.telemetry.simulator.virtual import VirtualMachine
from edge_tprune.telemetry.source import NoReading, SensorSource, Source

IMAGES_PER_SECOND = 50


@dataclass
class Settings:
    """What differs between experiments."""

    board: str = "orin-nano"
    counter: bool = False  #: replace the board's sensors by an exact energy counter with a step, new every 100 ms
    seconds: float = 5.0
    warmup_s: float = 1.0
    baseline_s: float = 10.0
    rounds: int = 8
    load: float = 0.6
    unrest: float = 0.01  #: standard deviation of a turn's load, as a share
    creep: float = 0.01  #: by which the load of a turn grows from its begin to its end, as a share
    drift_per_s: float = 1e-4
    noise_steps: float = 0.5


@dataclass
class Outcome:
    """What was estimated, and what is true."""

    sensor: Sensor
    energy: Energy
    idle: Idle
    gross_mj: float
    above_idle_mj: float
    turns: list[Turn] = field(default_factory=list)


class _Counter:
    """Counts what the board dissipates, in whole millijoules, and shows a new value every 100 ms."""

    metrics = (Metric("total_energy_mj", "mJ", "lower", "increase", "whole board, counted", 0.1, 1.0),)

    def __init__(self, machine: VirtualMachine, phase_ns: int) -> None:
        self._machine = machine
        self._phase_ns = phase_ns

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        now_ns = self._machine.clock()
        shown_ns = self._phase_ns + (now_ns - self._phase_ns) // 100_000_000 * 100_000_000
        if shown_ns < 0:
            raise NoReading("not yet")
        values["total_energy_mj"] = 5e6 + int(self._machine.energy_mj(0, shown_ns))


def run(settings: Settings, seed: int) -> Outcome:
    """Idle, `rounds` turns with idle time between them, idle; the load of each turn differs a little and creeps."""
    chance = random.Random(seed)
    load = StepLoad()
    machine = VirtualMachine(
        settings.board, load=load, seed=seed, noise_steps=settings.noise_steps, idle_drift_per_s=settings.drift_per_s
    )
    source: Source = machine.sources()[0]
    if settings.counter:
        source = SensorSource("counter", [_Counter(machine, chance.randrange(100_000_000))], machine.clock)
    described = {
        "name": source.name,
        "period_s": period_s(source.metrics),
        "metrics": [asdict(metric) for metric in source.metrics],
    }
    sensor = choose_sensor([described], "onnxruntime")
    assert sensor is not None
    # The time line first: what the machine does when. Then the sampler goes along it.
    now_ns = 0
    spans: list[tuple[int, int, int]] = []  # load begin, begin, end

    def idle(seconds: float) -> tuple[int, int, int]:
        nonlocal now_ns
        begin_ns, now_ns = now_ns, now_ns + round(seconds * 1e9)
        return begin_ns, begin_ns, now_ns

    before = idle(settings.baseline_s)
    for _ in range(settings.rounds):
        idle(chance.uniform(0.2, 0.6))
        begin_ns = now_ns
        share = settings.load * (1 + settings.unrest * chance.gauss(0, 1))
        warmup_s = settings.warmup_s * chance.uniform(1, 1.3)
        total_s = warmup_s + settings.seconds * chance.uniform(1, 1.01)
        for step in range(20):
            load.set(begin_ns + round(step / 20 * total_s * 1e9), share * (1 + settings.creep * (step / 20 - 0.5)))
        now_ns = begin_ns + round(total_s * 1e9)
        load.set(now_ns, 0.0)
        spans.append((begin_ns, begin_ns + round(warmup_s * 1e9), now_ns))
    idle(0.3)
    after = idle(settings.baseline_s)
    everything = [before, *spans, after]
    windows = [PowerWindow(sensor, *span) for span in everything]
    tick_ns = chance.randrange(round(sensor.period_s * 1e9))
    index = 0
    while tick_ns < now_ns:
        machine.clock.sleep_until(tick_ns)
        reading = source.read()
        while index < len(windows) - 1 and tick_ns > everything[index][2]:
            index += 1
        if sensor.metric in reading.values:
            windows[index].add(reading.t_ns, reading.read_ns, reading.values[sensor.metric])
        tick_ns += round(sensor.period_s * 1e9)
    powers = [window.power() for window in windows]
    turns = [
        Turn(
            images=round((end_ns - begin_ns) / 1e9 * IMAGES_PER_SECOND),
            seconds=(end_ns - begin_ns) / 1e9,
            warmup_s=(begin_ns - load_ns) / 1e9,
            middle_ns=(begin_ns + end_ns) // 2,
            session=0,
            power=power,
        )
        for (load_ns, begin_ns, end_ns), power in zip(spans, powers[1:-1])
    ]
    found_idle = idle_power(sensor, [(0, powers[0]), (0, powers[-1])])
    images = sum(turn.images for turn in turns)
    active_mw = sum(rail.active_mw for rail in machine.law.rails if rail.label in machine.board.total)
    return Outcome(
        sensor,
        budget_energy(sensor, turns, found_idle),
        found_idle,
        sum(machine.energy_mj(begin_ns, end_ns) for _, begin_ns, end_ns in spans) / images,
        active_mw * sum(load.busy_s(begin_ns, end_ns) for _, begin_ns, end_ns in spans) / images,
        turns,
    )


def covered(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """How many intervals hold the truth: gross, above idle. One that was not given holds nothing."""
    gross = above = 0
    for outcome in outcomes:
        given = outcome.energy.gross_mj
        gross += given is not None and not given.excludes(outcome.gross_mj)
        given = outcome.energy.above_idle_mj
        above += given is not None and not given.excludes(outcome.above_idle_mj)
    return gross, above
