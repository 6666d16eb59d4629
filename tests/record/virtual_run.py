"""Runs on a virtual clock: a simulated board whose power and energy are known exactly, sampled and timed like a real one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge_tprune.agent.sampler import period_s
from edge_tprune.record.document import RunDocument
from edge_tprune.record.energy import Energy, SpanPower, budget_energy
from edge_tprune.record.idle import Idle, idle_power
from edge_tprune.record.lines import (
    SENSORS,
    BaselineLine,
    CheckLine,
    CostLine,
    EndLine,
    LogLine,
    ReadingLine,
    SamplerLine,
    TurnLine,
)
from edge_tprune.record.log import encode_line
from edge_tprune.record.meter import Meter, choose_meter
from edge_tprune.record.power import PowerWindow
from edge_tprune.record.settings import SourceRecord
from edge_tprune.record.spans import Span
from edge_tprune.record.writer import Recorder
from edge_tprune.simulator.law import StepLoad
from edge_tprune.simulator.virtual import SensorFault, VirtualMachine
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import NoReading, SensorSource, Source

from .tiny_run import info

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

    meter: Meter
    energy: Energy
    idle: Idle
    gross_mj: float
    above_idle_mj: float
    turns: list[SpanPower] = field(default_factory=list)


class _Counter:
    """Counts what the board dissipates, in whole millijoules, and shows a new value every 100 ms."""

    metrics = (SensorMetric("total_energy_mj", "mJ", "lower", "increase", "whole board, counted", 0.1, 1.0),)

    def __init__(self, machine: VirtualMachine, phase_ns: int) -> None:
        self._machine = machine
        self._phase_ns = phase_ns

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        now_ns = self._machine.clock()
        shown_ns = self._phase_ns + (now_ns - self._phase_ns) // 100_000_000 * 100_000_000
        if shown_ns < 0:
            raise NoReading("not yet")
        values["total_energy_mj"] = 5e6 + int(self._machine.energy_mj(0, shown_ns))


@dataclass
class _Timeline:
    """What the machine does when: (load begin, begin, end) in ns of both idle times and of every turn."""

    before: tuple[int, int, int]
    turns: list[tuple[int, int, int]]
    after: tuple[int, int, int]

    @property
    def all(self) -> list[tuple[int, int, int]]:
        return [self.before, *self.turns, self.after]


def _plan(settings: Settings, chance: random.Random, load: StepLoad) -> _Timeline:
    """Idle, turns with idle time between them, idle; the load of each turn differs a little and creeps."""
    now_ns = 0

    def idle(seconds: float) -> tuple[int, int, int]:
        nonlocal now_ns
        begin_ns, now_ns = now_ns, now_ns + round(seconds * 1e9)
        return begin_ns, begin_ns, now_ns

    before, turns = idle(settings.baseline_s), []
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
        turns.append((begin_ns, begin_ns + round(warmup_s * 1e9), now_ns))
    idle(0.3)
    return _Timeline(before, turns, idle(settings.baseline_s))


def _machine(settings: Settings, seed: int, load: StepLoad, faults: Sequence[SensorFault] = ()) -> VirtualMachine:
    return VirtualMachine(
        settings.board,
        load=load,
        seed=seed,
        noise_steps=settings.noise_steps,
        idle_drift_per_s=settings.drift_per_s,
        faults=faults,
    )


def _described(source: Source) -> SourceRecord:
    return SourceRecord(name=source.name, period_s=period_s(source.metrics), metrics=source.metrics)


def run(settings: Settings, seed: int) -> Outcome:
    """The estimate of a run, without a file."""
    chance, load = random.Random(seed), StepLoad()
    machine = _machine(settings, seed, load)
    source: Source = machine.sources()[0]
    if settings.counter:
        source = SensorSource("counter", [_Counter(machine, chance.randrange(100_000_000))], machine.clock)
    meter = choose_meter([_described(source)], "onnxruntime")
    assert meter is not None
    line = _plan(settings, chance, load)
    windows = [PowerWindow(meter, *span) for span in line.all]
    tick_ns, index = chance.randrange(round(meter.period_s * 1e9)), 0
    while tick_ns < line.after[2]:
        machine.clock.sleep_until(tick_ns)
        reading = source.read()
        while index < len(windows) - 1 and tick_ns > line.all[index][2]:
            index += 1
        if meter.metric in reading.values:
            windows[index].add(reading.t_ns, reading.read_ns, reading.values[meter.metric])
        tick_ns += round(meter.period_s * 1e9)
    powers = [window.power() for window in windows]
    turns = [
        SpanPower(Span("a", load_ns, begin_ns, end_ns, 0, round((end_ns - begin_ns) / 1e9 * IMAGES_PER_SECOND)), power)
        for (load_ns, begin_ns, end_ns), power in zip(line.turns, powers[1:-1])
    ]
    idle = idle_power(meter, [(0, powers[0]), (0, powers[-1])])
    images = sum(span.images for span, _ in turns)
    active_mw = sum(rail.active_mw for rail in machine.law.rails if rail.label in machine.board.total)
    return Outcome(
        meter,
        budget_energy(meter, turns, idle),
        idle,
        sum(machine.energy_mj(begin_ns, end_ns) for _, begin_ns, end_ns in line.turns) / images,
        active_mw * sum(load.busy_s(begin_ns, end_ns) for _, begin_ns, end_ns in line.turns) / images,
        turns,
    )


def write_profile(
    out: Path, settings: Settings, seed: int = 0, faults: Callable[[int, int], Sequence[SensorFault]] | None = None
) -> tuple[Path, float]:
    """A profile directory as the agent writes it, of one budget "a" on a virtual board, and its true energy in mJ per image.

    `faults` is given begin and end of the third turn and says what goes wrong.
    """
    chance, load = random.Random(seed), StepLoad()
    line = _plan(settings, chance, load)
    machine = _machine(settings, seed, load, faults(*line.turns[2][1:]) if faults else ())
    sources = machine.sources()
    described = [_described(source) for source in sources]
    run_info = info(version=2)
    run_info["budgets"] = run_info["budgets"][:1]
    run_info["plan"] |= {"rounds": settings.rounds, "order": [["a"]] * settings.rounds, "mode": "saturation", "fps": None}
    run_info["plan"] |= {"sources": described, "seconds_per_round": settings.seconds}
    sensors: list[LogLine] = [SamplerLine(t_ns=0, session=0, pid=1)]
    due = {source.name: 0 for source in sources}
    while (now_ns := min(due.values())) < line.after[2]:
        for source, about in zip(sources, described):
            if due[source.name] == now_ns:
                machine.clock.sleep_until(now_ns)
                sensors.append(ReadingLine(source=source.name, **asdict(source.read())))
                period_ns = round((about.period_s or 0) * 1e9)
                due[source.name] = max(now_ns // period_ns + 1, -(-machine.clock() // period_ns)) * period_ns
    images = 0
    with Recorder.create(out, "virtual", msgspec.convert(run_info, RunDocument)) as recorder:
        check: dict[str, Any] = {"golden_ok": True, "golden_max_abs_diff": 0.0, "load_ms": 1.0, "peak_memory_bytes": 1}
        recorder.append(CheckLine(t_ns=0, budget="a", **check))
        recorder.append(BaselineLine(t_ns=line.before[0], end_ns=line.before[2], which="before"))
        for number, (load_ns, begin_ns, end_ns) in enumerate(line.turns):
            starts = list(range(0, end_ns - begin_ns - 10**9 // IMAGES_PER_SECOND, 10**9 // IMAGES_PER_SECOND))
            images += len(starts)
            turn = TurnLine(
                t_ns=begin_ns, round=number, position=0, budget="a", load_ms=1.0, warmup_begin_ns=load_ns, warmup_inferences=9,
                warmup_steady=True, end_ns=end_ns, start_ns=starts, latency_ns=[19_000_000] * len(starts),
            )  # fmt: skip
            recorder.append(turn)
        recorder.append(BaselineLine(t_ns=line.after[0], end_ns=line.after[2], which="after"))
        recorder.append(EndLine(t_ns=line.after[2], reason="complete"))
    sensors.append(CostLine(t_ns=line.after[2], cpu_s=0.1, elapsed_s=10.0, memory_bytes=1))
    (recorder.path / SENSORS).write_bytes(b"".join(map(encode_line, sensors)))
    return recorder.path, sum(machine.energy_mj(begin_ns, end_ns) for _, begin_ns, end_ns in line.turns) / images


def covered(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """How many intervals hold the truth: gross, above idle. One that was not given holds nothing."""
    gross = above = 0
    for outcome in outcomes:
        given = outcome.energy.gross_mj
        gross += given is not None and not given.excludes(outcome.gross_mj)
        given = outcome.energy.above_idle_mj
        above += given is not None and not given.excludes(outcome.above_idle_mj)
    return gross, above
