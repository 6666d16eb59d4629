"""The process that reads the sensors while another one measures.

    python -m edge_tprune.agent.sampler --root / --pid 4711

opens every source, prints what it found as one line of JSON, and reads one line of JSON from its standard input: where to write
and which session it is. From then on it samples until its standard input ends, which happens at the latest when its parent dies.

Each source has a thread and a schedule of its own: deadline k lies k periods after the begin, whatever happened before, so nothing
drifts, and a source that stalls delays no other. A deadline that passed while a read took too long is skipped. Readings are
given to the operating system at once and to the disk once a second; the parent's samples are sent to the disk along with them, so
that the parent need not wait for a disk while it measures. No engine and no numpy is loaded here.
"""

from __future__ import annotations

import argparse
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from edge_tprune.processes import END_SIGNALS
from edge_tprune.record.lines import CostLine, ReadingLine
from edge_tprune.record.log import clock_ns
from edge_tprune.record.sensor_writer import SensorRecorder
from edge_tprune.record.settings import SourceRecord
from edge_tprune.telemetry.machine import open_sources
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import Reading, Source

_PERIOD_S = 0.5  #: of sources without power: load, memory, clocks and temperatures change slowly
_FASTEST_S = 0.1  #: of power sensors: four reads per new value, but no more often than this
_CPU_SHARE = 0.005  #: of one core that reading one source may take: where it would take more, it is read less often
_SYNC_S = 1.0
_COST_S = 10.0  #: between two records of what sampling costs
_STALLED_S = 1.0  #: a source that is silent for this long, and for two periods, is recorded as a gap
_GOLDEN = (5**0.5 - 1) / 2
_FIRST_READ_S = 3.0  #: how long the first reads of all sources may take together


class _SourceSampler:
    """A source, its schedule and its thread."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.metrics: tuple[SensorMetric, ...] = tuple(source.metrics)
        self.period_s = period_s(self.metrics)
        self.undersampled = any(metric.unit == "mW" and (metric.interval_s or 0.0) < self.period_s for metric in self.metrics)
        self.last_ns = 0  #: when it last answered

    def estimate_cost(self) -> None:
        """Reads twice: the CPU time of the second read decides whether the source must be read less often."""
        self.source.read()
        begin_ns = time.thread_time_ns()
        self.source.read()
        cost_s = (time.thread_time_ns() - begin_ns) / 1e9
        self.period_s = max(self.period_s, math.ceil(cost_s / _CPU_SHARE * 100) / 100)

    def sample(self, begin_ns: int, stop: threading.Event, out: queue.SimpleQueue[tuple[_SourceSampler, Reading]]) -> None:
        period_ns, tick = round(self.period_s * 1e9), 0
        while not stop.wait(max(0.0, (begin_ns + self.deadline_ns(tick) - clock_ns()) / 1e9)):
            out.put((self, self.source.read()))
            tick = max(tick + 1, -((begin_ns - clock_ns()) // period_ns))  # the next that is still to come

    def deadline_ns(self, tick: int) -> int:
        """When a tick is due, from the begin.

        A sensor that is read less often than it has new values shows single moments, and at a fixed distance these would be the same
        moment of every frame (ten reads a second, thirty frames). So its ticks are spread evenly over their period (multiples of
        the golden ratio).
        """
        within = tick * _GOLDEN % 1 if self.undersampled else 0.0
        return round((tick + within) * self.period_s * 1e9)

    def gap(self, now_ns: int) -> Reading | None:
        """What to record where it is silent for too long."""
        silent_s = (now_ns - self.last_ns) / 1e9
        if silent_s < max(_STALLED_S, 2 * self.period_s):
            return None
        return Reading(now_ns, 0, {}, {metric.name: "no answer: the source stalls" for metric in self.metrics})


def period_s(metrics: Sequence[SensorMetric]) -> float:
    """How often a source is read: a power sensor four times per new value, so that the age of a value is known."""
    power = [metric.interval_s or 4 * _FASTEST_S for metric in metrics if metric.unit in ("mW", "mJ")]
    return min(_PERIOD_S, max(_FASTEST_S, min(power) / 4)) if power else _PERIOD_S


def _open_samplers(root: Path, pid: int) -> list[_SourceSampler]:
    samplers = [_SourceSampler(source) for source in open_sources(root, pid=pid)]
    trials = [threading.Thread(target=sampler.estimate_cost, daemon=True) for sampler in samplers]
    for trial in trials:
        trial.start()
    deadline = time.monotonic() + _FIRST_READ_S
    for trial in trials:  # one that stalls keeps the period that its sensors ask for
        trial.join(max(0.0, deadline - time.monotonic()))
    return samplers


def _sample(samplers: Sequence[_SourceSampler], recorder: SensorRecorder, stop: threading.Event) -> None:
    """Writes the readings of all sources until `stop` is set."""
    begin_ns, begin_cpu_s = clock_ns(), time.process_time()
    answers: queue.SimpleQueue[tuple[_SourceSampler, Reading]] = queue.SimpleQueue()
    for sampler in samplers:
        sampler.last_ns = begin_ns
        threading.Thread(target=sampler.sample, args=(begin_ns, stop, answers), daemon=True).start()

    def write(sampler: _SourceSampler, reading: Reading) -> None:
        recorder.append(
            ReadingLine(
                t_ns=reading.t_ns,
                source=sampler.source.name,
                read_ns=reading.read_ns,
                values=dict(reading.values),
                gaps=reading.gaps,
            )
        )

    def write_cost() -> None:
        elapsed_s, cpu_s = (clock_ns() - begin_ns) / 1e9, time.process_time() - begin_cpu_s
        memory = psutil.Process().memory_info().rss
        recorder.append(CostLine(t_ns=clock_ns(), cpu_s=cpu_s, elapsed_s=elapsed_s, memory_bytes=memory))

    synced = cost = time.monotonic()
    while not stop.is_set():
        with suppress(queue.Empty):
            sampler, reading = answers.get(timeout=_FASTEST_S)
            sampler.last_ns = clock_ns()
            write(sampler, reading)
        now = time.monotonic()
        if now - synced >= _SYNC_S:
            synced = now
            for sampler in samplers:
                if (gap := sampler.gap(clock_ns())) is not None:
                    write(sampler, gap)
            recorder.sync()
        if now - cost >= _COST_S:
            cost = now
            write_cost()
    with suppress(queue.Empty):
        while True:
            write(*answers.get_nowait())
    write_cost()
    recorder.sync()


class SampleOrder(msgspec.Struct, frozen=True):
    """Where to sample to: the line that the sampler reads."""

    directory: bytes  #: of the profile: a path need not be text
    session: int


class SourceList(msgspec.Struct, frozen=True):
    """What is sampled: the line that the sampler prints."""

    sources: tuple[SourceRecord, ...]


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_tprune.agent.sampler", description="Read every sensor on a schedule.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--pid", type=int, required=True)
    options = parser.parse_args()
    for number in END_SIGNALS:  # the sampler ends when its parent does, which still wants the last readings
        signal.signal(number, signal.SIG_IGN)
    samplers = _open_samplers(options.root, options.pid)
    found = SourceList(
        tuple(SourceRecord(name=each.source.name, period_s=each.period_s, metrics=each.metrics) for each in samplers)
    )
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.buffer.flush()
    if text := sys.stdin.buffer.readline():
        order = msgspec.json.decode(text, type=SampleOrder)
        recorder, stop = SensorRecorder(Path(os.fsdecode(order.directory)), order.session), threading.Event()

        def wait_for_exit() -> None:
            sys.stdin.buffer.read()
            stop.set()

        threading.Thread(target=wait_for_exit, daemon=True).start()
        _sample(samplers, recorder, stop)
    for each in samplers:
        threading.Thread(target=each.source.close, daemon=True).start()
    time.sleep(0.01)
    os._exit(0)  # a thread may hang in a read that never returns


if __name__ == "__main__":
    _main()
