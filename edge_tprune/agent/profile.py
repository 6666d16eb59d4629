"""The measurement: every budget of a bundle, in rounds, recorded raw.

A round times each budget once, in an order drawn anew for each round. Budgets of the same round saw the same machine (its
temperature, its other programs), so comparisons pair them by round. One engine is alive at a time: an idle one's spinning
threads would slow the next (on two cores by half).
"""

from __future__ import annotations

import gc
import math
import os
import random
import signal
import statistics
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edge_tprune import __version__
from edge_tprune.agent.probe import TOLERANCE, check_budget
from edge_tprune.agent.progress import Progress
from edge_tprune.agent.record import FORMAT, VERSION, Recorder, clock_ns, describe_failure, directory_name, read_run
from edge_tprune.agent.summary import write_summary
from edge_tprune.build.bundle import Budget, Bundle
from edge_tprune.build.engines import prepare
from edge_tprune.errors import HonestNo, UserError
from edge_tprune.runtime.engine import open_engine, runtime_version
from edge_tprune.telemetry.environment import environment
from edge_tprune.telemetry.host import HostSource
from edge_tprune.telemetry.source import Source

_ISOLATION = (
    "one engine at a time: each is loaded, warmed up, timed and closed before the next is loaded; the runtime's threads spin "
    "as they do by default; Python's garbage collection is off while timing; sensors are read between timings"
)
_LEAST_INFERENCES = 10  #: per turn: a slow model gets more than `seconds_per_round`
_WINDOW = 5  #: warming up is over when the medians of two windows of this many inferences ...
_STEADY = 0.05  #: ... differ by less than this share
_WARMUP_LIMIT = 5  #: or when it took this many times `warmup_seconds`


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. What was measured until then is in the profile at `path`, summary included. Exit code 130."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"interrupted. What was measured until then is in {path}")
        self.path = path


class CheckFailed(HonestNo):
    """Some budgets could not be timed, because they failed their check. The others are in the profile at `path`."""

    def __init__(self, path: Path, failures: dict[str, str]) -> None:
        what = "; ".join(f"budget {name}: {why}" for name, why in failures.items())
        super().__init__(f"not timed, because of a failed check: {what}. The rest is in {path}")
        self.path = path
        self.failures = failures  #: budget -> why


def profile(
    bundle: Bundle,
    out: Path,
    *,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    rounds: int = 10,
    seconds_per_round: float = 1.0,
    warmup_seconds: float = 0.5,
    seed: int = 0,
    budgets: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
    root: Path = Path("/"),
    progress: Progress | None = None,
) -> Path:
    """Checks, then times the budgets of `bundle`, and returns the new profile directory in `out`.

    Args:
        bundle: an opened (and verified) bundle.
        out: where profiles are collected; nothing in it is overwritten.
        runtime: which of the bundle's artifacts to run.
        threads: CPU threads per engine; by default one per physical core that this process may use.
        rounds: how often each budget has its turn.
        seconds_per_round: how long one turn is timed, with at least ten inferences.
        warmup_seconds: how long an engine runs at least before it is timed; longer (up to five times) until latency is steady.
        seed: of the order within the rounds.
        budgets: names of the budgets to run; all by default.
        tolerance: how far logits may be from the golden ones, absolute; a budget beyond it is not timed.
        root: the directory that holds the system's `proc`, `sys` and `etc`.
        progress: shown to the person who waits.

    Raises:
        UserError: a setting or a file is wrong, the runtime is missing, the disk is full (what was recorded stays readable).
        CheckFailed: everything else was timed, but some budgets failed their check.
        Interrupted: by Ctrl-C or SIGTERM.
    """
    chosen = list(bundle.budgets) if budgets is None else [bundle.budget(name) for name in dict.fromkeys(budgets)]
    threads = default_threads() if threads is None else threads
    progress = progress or Progress()
    _check_settings(chosen, threads, rounds, seconds_per_round, warmup_seconds, tolerance)
    runtime_version(runtime)
    shuffle = random.Random(seed)
    names = [budget.name for budget in chosen]
    plan = {
        "seed": seed,
        "rounds": rounds,
        "seconds_per_round": seconds_per_round,
        "warmup_seconds": warmup_seconds,
        "threads": threads,
        "runtime": runtime,
        "golden_tolerance": tolerance,
        "isolation": _ISOLATION,
        "order": [shuffle.sample(names, len(names)) for _ in range(rounds)],
    }
    started = datetime.now(timezone.utc)
    run = _describe(bundle, chosen, plan, environment(root), started)
    name = directory_name(started, bundle.name, run["environment"]["hostname"] or "")
    with _sigterm_as_ctrl_c(), Recorder.create(out, name, run) as recorder:
        try:
            failures = _measure(bundle, chosen, plan, recorder, HostSource(root), progress)
        except KeyboardInterrupt:
            with suppress(UserError, OSError):
                _finish(recorder, "interrupted")
            raise Interrupted(recorder.path) from None
        except BaseException:
            with suppress(UserError, OSError):
                _finish(recorder, "failed")
            raise
        _finish(recorder, "complete")
    if failures:
        raise CheckFailed(recorder.path, failures)
    return recorder.path


def default_threads() -> int:
    """One per physical core, or fewer where this process may use fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [count for count in (psutil.cpu_count(logical=False), allowed) if count]
    return min(counts, default=1)


def _check_settings(
    chosen: list[Budget], threads: int, rounds: int, seconds_per_round: float, warmup_seconds: float, tolerance: float
) -> None:
    if not chosen:
        raise UserError("no budget to profile: name at least one")
    if threads < 1:
        raise UserError(f"threads must be 1 or more, not {threads}")
    if rounds < 1:
        raise UserError(f"rounds must be 1 or more, not {rounds}")
    for what, value in (
        ("seconds per round", seconds_per_round),
        ("warm-up seconds", warmup_seconds),
        ("tolerance", tolerance),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{what} must be a number from 0, not {value}")


def _describe(
    bundle: Bundle, chosen: list[Budget], plan: dict[str, Any], where: dict[str, Any], started: datetime
) -> dict[str, Any]:
    """The run.json."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "run_id": uuid.uuid4().hex,
        "started_utc": started.isoformat(),
        "tool_version": __version__,
        "bundle": {key: bundle.manifest[key] for key in ("name", "fingerprint", "batch", "model", "method")},
        "budgets": [
            {
                "name": budget.name,
                "requested": budget.requested,
                "schedule": list(budget.schedule),
                "macs": budget.macs,
                "macs_share": budget.macs_share,
                "accuracy": budget.accuracy,
                "artifact": asdict(budget.artifact(plan["runtime"])),
            }
            for budget in chosen
        ],
        "plan": plan,
        "environment": where,
    }


def _measure(
    bundle: Bundle, chosen: list[Budget], plan: dict[str, Any], recorder: Recorder, source: Source, progress: Progress
) -> dict[str, str]:
    """Checks and times everything, and returns the budgets that failed their check, with why."""
    runtime, threads, order = plan["runtime"], plan["threads"], plan["order"]
    failures: dict[str, str] = {}
    done, total = 0, len(chosen) * (1 + len(order))
    for budget in chosen:
        progress.step(done, total, f"checking budget {budget.name}")
        check = check_budget(bundle, budget.name, runtime=runtime, threads=threads, tolerance=plan["golden_tolerance"])
        recorder.append("check", **asdict(check))
        done += 1
        if not check.golden_ok:
            failures[budget.name] = describe_failure(check)
            total -= len(order)
            progress.warn(f"budget {budget.name} failed its check and is not timed: {failures[budget.name]}")
    images = list(bundle.golden()[0])
    _record_sensors(source, recorder)
    for number, names in enumerate(order):
        for position, name in enumerate(name for name in names if name not in failures):
            progress.step(done, total, f"round {number + 1} of {len(order)}, budget {name}")
            file = prepare(bundle, name, runtime)
            turn = _take_turn(file, runtime, threads, images, plan["seconds_per_round"], plan["warmup_seconds"])
            recorder.append("round", round=number, position=position, budget=name, **turn)
            _record_sensors(source, recorder)
            done += 1
    progress.step(done, total, "done")
    return failures


def _take_turn(
    file: Path, runtime: str, threads: int, images: list[np.ndarray], seconds: float, warmup_seconds: float
) -> dict[str, Any]:
    """Loads, warms up, times and closes one engine."""
    begin_ns = clock_ns()
    with open_engine(file, runtime, threads=threads) as engine:
        load_ms = (clock_ns() - begin_ns) / 1e6
        with _garbage_collection_off():  # already while warming up: collecting empties the caches
            warmup_inferences, steady = _warm_up(engine.run, images, warmup_seconds)
            starts, ends = _time(engine.run, images, seconds)
    return {
        "t_ns": starts[0],
        "load_ms": load_ms,
        "warmup_inferences": warmup_inferences,
        "warmup_steady": steady,
        "start_ns": [start - starts[0] for start in starts],
        "latency_ns": [end - start for start, end in zip(starts, ends)],
    }


def _warm_up(run: Callable[[np.ndarray], np.ndarray], images: list[np.ndarray], seconds: float) -> tuple[int, bool]:
    """Runs until `seconds` are over and latency is steady, or the limit is reached. Returns (inferences, steady)."""
    latency_ns: list[int] = []
    begin_ns = clock_ns()
    for image in cycle(images):
        start_ns = clock_ns()
        run(image)
        end_ns = clock_ns()
        latency_ns.append(end_ns - start_ns)
        elapsed_s = (end_ns - begin_ns) / 1e9
        if len(latency_ns) < 2 * _WINDOW or elapsed_s < seconds:
            continue
        before, now = statistics.median(latency_ns[-2 * _WINDOW : -_WINDOW]), statistics.median(latency_ns[-_WINDOW:])
        steady = abs(now - before) < _STEADY * before
        if steady or elapsed_s >= _WARMUP_LIMIT * seconds:
            return len(latency_ns), steady
    raise UserError("the bundle has no golden inputs: rebuild it")


def _time(run: Callable[[np.ndarray], np.ndarray], images: list[np.ndarray], seconds: float) -> tuple[list[int], list[int]]:
    """(starts, ends) in ns of inferences back to back, for `seconds` and at least `_LEAST_INFERENCES`."""
    starts: list[int] = []
    ends: list[int] = []
    for image in cycle(images):
        start_ns = clock_ns()
        run(image)
        end_ns = clock_ns()
        starts.append(start_ns)
        ends.append(end_ns)
        if end_ns - starts[0] >= seconds * 1e9 and len(ends) >= _LEAST_INFERENCES:
            break
    return starts, ends


def _record_sensors(source: Source, recorder: Recorder) -> None:
    reading = source.read()
    values = {metric.name: reading.values.get(metric.name) for metric in source.metrics}
    begin_ns = reading.t_ns - reading.read_ns // 2
    recorder.append("sensors", begin_ns, source=source.name, read_ns=reading.read_ns, values=values)


def _finish(recorder: Recorder, reason: str) -> None:
    recorder.append("end", reason=reason)
    recorder.close()
    write_summary(read_run(recorder.path))


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM end a run as Ctrl-C does. Python allows that in the main thread only; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the summary short
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
