"""The run as a trace that https://ui.perfetto.dev opens: inferences as slices, sensors as counters (Chrome's trace event format)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge_tprune.files import atomic_writer, check_own
from edge_tprune.record.reader import Run

TRACE = "trace.json"
_BEGINNING = b'{"displayTimeUnit":"ms","traceEvents":['
BEGINS = re.compile(re.escape(_BEGINNING))  #: every trace of ours
_MEASUREMENT, _SENSORS = 1, 2  #: what Perfetto shows as processes
_IDLE_THREAD = 1
_COUNTED_UNITS = ("mW", "MHz", "C", "bytes", "percent")


def write_trace(run: Run) -> Path:
    """Writes `trace.json` into the profile's directory, atomically and line by line, and returns its path.

    Times are microseconds on the run's own clock. A budget is a thread with two levels: its turns (warm-up, timed) and in them its
    inferences; a reading that has a gap adds no point to the counter.

    Raises:
        UserError: a file of somebody's lies there.
    """
    path = run.path / TRACE
    check_own(path, BEGINS, "a trace")
    with atomic_writer(path) as stream:
        stream.write(_BEGINNING + b"\n")
        for number, event in enumerate(_events(run)):
            stream.write((",\n" if number else "").encode() + json.dumps(event, allow_nan=False).encode())
        stream.write(b"\n]}\n")
    return path


def _events(run: Run) -> Iterator[dict[str, object]]:
    threads = {name: number for number, name in enumerate(run.budgets, _IDLE_THREAD + 1)}
    yield _name("process_name", _MEASUREMENT, 0, run.document.bundle.name)
    yield _name("process_name", _SENSORS, 0, "sensors")
    yield _name("thread_name", _MEASUREMENT, _IDLE_THREAD, "idle")
    for name, thread in threads.items():
        yield _name("thread_name", _MEASUREMENT, thread, f"budget {name}")
    for idle in run.baselines:
        yield _slice(f"idle {idle.which}", _IDLE_THREAD, idle.t_ns, idle.end_ns)
    for turn in run.turns:
        thread = threads[turn.budget]
        about = {"round": turn.round, "load_ms": turn.load_ms}
        if turn.warmup_begin_ns is not None:
            yield _slice("warm-up", thread, turn.warmup_begin_ns, turn.t_ns, {"inferences": turn.warmup_inferences})
        yield _slice(f"turn {turn.round}", thread, turn.t_ns, turn.end_ns, about)
        for start_ns, latency_ns in zip(turn.start_ns.tolist(), turn.latency_ns.tolist()):
            yield _slice("inference", thread, turn.t_ns + start_ns, turn.t_ns + start_ns + latency_ns)
    units = {metric.name: metric.unit for source in run.document.settings.sources for metric in source.metrics}
    for reading in run.readings:
        for metric, value in reading.values.items():
            if units.get(metric) in _COUNTED_UNITS:
                yield {"ph": "C", "pid": _SENSORS, "name": metric, "ts": reading.t_ns / 1e3, "args": {units[metric]: value}}


def _slice(name: str, thread: int, begin_ns: int, end_ns: int, about: Mapping[str, object] | None = None) -> dict[str, object]:
    event = {
        "ph": "X",
        "pid": _MEASUREMENT,
        "tid": thread,
        "name": name,
        "ts": begin_ns / 1e3,
        "dur": (end_ns - begin_ns) / 1e3,
    }
    return event | ({"args": about} if about else {})


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, object]:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}}
