"""The process that reads the sensors while another one measures.

    python -m edge_tprune.agent.sampler --root / --pid 4711

opens every source, prints what it found as one line of JSON, and reads one line of JSON from its standard input: where to write
and which session it is. From then on it samples until its standard input ends, which happens at the latest when its parent dies.

Each source has a thread and a schedule of its own: deadline k lies k periods after the begin, whatever happened before, so nothing
drifts, and a source that stalls delays nobody else. A deadline that passed while a read took too long is skipped. Readings are
handed to the operating system at once and to the disk once a second; the parent's samples are sent to the disk along with
them, so that the parent need never wait for a disk while it measures. No engine and no numpy is loaded here.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from edge_tprune.files import cut_last_line
from edge_tprune.telemetry.machine import open_sources
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import Reading, Source

clock_ns = time.perf_counter_ns

_PERIOD_S = 0.5  #: of what tells no power: load, memory, clocks and temperatures change slowly
_FASTEST_S = 0.1  #: of power sensors: four reads per new value, but no more often than this
_CPU_SHARE = 0.005  #: of one core that reading one source may take: where it would take more, it is read less often
_SYNC_S = 1.0
_COST_S = 10.0  #: between two records of what sampling costs
_STALLED_S = 1.0  #: a source that is silent for this long, and for two periods, is recorded as a gap
_GOLDEN = (5**0.5 - 1) / 2
_FIRST_READ_S = 3.0  #: how long the first reads of all sources may take together


class _Watched:
    """A source, its schedule and its thread."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.metrics: tuple[SensorMetric, ...] = tuple(source.metrics)
        self.period_s = period_s(self.metrics)
        self.undersampled = any(metric.unit == "mW" and (metric.interval_s or 0.0) < self.period_s for metric in self.metrics)
        self.last_ns = 0  #: when it last answered

    def try_out(self) -> None:
        """Two reads, the second of which tells what a read costs."""
        self.source.read()
        begin_ns = time.thread_time_ns()
        self.source.read()
        cost_s = (time.thread_time_ns() - begin_ns) / 1e9
        self.period_s = max(self.period_s, math.ceil(cost_s / _CPU_SHARE * 100) / 100)

    def sample(self, begin_ns: int, stop: threading.Event, out: queue.SimpleQueue[tuple[_Watched, Reading]]) -> None:
        period_ns, tick = round(self.period_s * 1e9), 0
        while not stop.wait(max(0.0, (begin_ns + self.deadline_ns(tick) - clock_ns()) / 1e9)):
            out.put((self, self.source.read()))
            tick = max(tick + 1, -((begin_ns - clock_ns()) // period_ns))  # the next that is still to come

    def deadline_ns(self, tick: int) -> int:
        """When a tick is due, from the begin.

        A sensor that is read more seldom than it has new values sees moments only, and at a fixed distance they would be the same
        moment of every frame (ten reads a second, thirty frames). Its ticks lie anywhere in their period, evenly (multiples
        of the golden ratio).
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


class _Log:
    """The append-only file of readings, and the file of samples beside it, which is only synced."""

    def __init__(self, directory: Path) -> None:
        self._handle = os.open(directory / "sensors.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        fcntl.flock(self._handle, fcntl.LOCK_EX)  # a sampler whose parent was killed needs a moment to notice
        cut_last_line(self._handle)
        self._samples = os.open(directory / "samples.jsonl", os.O_RDONLY)

    def write(self, line: dict[str, Any]) -> None:
        """One line; a full disk loses it whole, and the parent's own writing says so."""
        data = (json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n").encode()
        with suppress(OSError):
            size = os.fstat(self._handle).st_size
            if os.write(self._handle, data) != len(data):
                os.ftruncate(self._handle, size)

    def sync(self) -> None:
        with suppress(OSError):
            os.fsync(self._handle)
            os.fsync(self._samples)


def _watch(root: Path, pid: int) -> list[_Watched]:
    watched = [_Watched(source) for source in open_sources(root, pid=pid)]
    trials = [threading.Thread(target=one.try_out, daemon=True) for one in watched]
    for trial in trials:
        trial.start()
    deadline = time.monotonic() + _FIRST_READ_S
    for trial in trials:  # one that stalls keeps the period that its sensors ask for
        trial.join(max(0.0, deadline - time.monotonic()))
    return watched


def _sample(watched: Sequence[_Watched], log: _Log, session: int, stop: threading.Event) -> None:
    begin_ns, begin_cpu_s = clock_ns(), time.process_time()
    log.write({"kind": "sampler", "t_ns": begin_ns, "session": session, "pid": os.getpid()})
    log.sync()
    answers: queue.SimpleQueue[tuple[_Watched, Reading]] = queue.SimpleQueue()
    for one in watched:
        one.last_ns = begin_ns
        threading.Thread(target=one.sample, args=(begin_ns, stop, answers), daemon=True).start()

    def write(one: _Watched, reading: Reading) -> None:
        log.write({"kind": "sensors", "source": one.source.name, **asdict(reading)})

    def write_cost() -> None:
        elapsed_s, cpu_s = (clock_ns() - begin_ns) / 1e9, time.process_time() - begin_cpu_s
        memory = psutil.Process().memory_info().rss
        log.write({"kind": "cost", "t_ns": clock_ns(), "cpu_s": cpu_s, "elapsed_s": elapsed_s, "memory_bytes": memory})

    synced = cost = time.monotonic()
    while not stop.is_set():
        with suppress(queue.Empty):
            one, reading = answers.get(timeout=_FASTEST_S)
            one.last_ns = clock_ns()
            write(one, reading)
        now = time.monotonic()
        if now - synced >= _SYNC_S:
            synced = now
            for one in watched:
                if (gap := one.gap(clock_ns())) is not None:
                    write(one, gap)
            log.sync()
        if now - cost >= _COST_S:
            cost = now
            write_cost()
    with suppress(queue.Empty):
        while True:
            write(*answers.get_nowait())
    write_cost()
    log.sync()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_tprune.agent.sampler", description="Read every sensor on a schedule.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--pid", type=int, required=True)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent's end is the signal: it still wants the last readings
        signal.signal(number, signal.SIG_IGN)
    watched = _watch(options.root, options.pid)
    sources = [
        {"name": one.source.name, "period_s": one.period_s, "metrics": [asdict(metric) for metric in one.metrics]}
        for one in watched
    ]
    print(json.dumps({"sources": sources}), flush=True)
    text = sys.stdin.readline()
    if text:
        order = json.loads(text)
        log, stop = _Log(Path(order["directory"])), threading.Event()

        def wait_for_the_end() -> None:
            sys.stdin.read()
            stop.set()

        threading.Thread(target=wait_for_the_end, daemon=True).start()
        _sample(watched, log, order["session"], stop)
    for one in watched:
        threading.Thread(target=one.source.close, daemon=True).start()
    time.sleep(0.01)
    os._exit(0)  # a thread may hang in a read that never returns


if __name__ == "__main__":
    _main()
