"""The measurement: every budget of a bundle, in rounds, recorded raw.

A round times each budget once, in an order drawn anew for each round. Budgets of the same round saw the same machine (its
temperature, its other programs), so comparisons pair them by round. One engine is alive at a time: an idle one's spinning
threads would slow the next (on two cores by half). A process of its own reads the sensors all the while.

The order of things: golden checks, accuracy (if asked for), idle, rounds, idle. A run that was cut off is resumed at the turns
that are missing; its checks and idle times are made anew.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edge_tprune import __version__
from edge_tprune.agent.accuracy import judge_here
from edge_tprune.agent.energy import choose_sensor
from edge_tprune.agent.observer import Observer
from edge_tprune.agent.probe import TOLERANCE, check_budget
from edge_tprune.agent.progress import Progress
from edge_tprune.agent.record import FORMAT, VERSION, Recorder, clock_ns, directory_name
from edge_tprune.agent.rounds import missing_turns, random_order, take_turn
from edge_tprune.agent.run import describe_failure, read_run
from edge_tprune.agent.summary import write_summary
from edge_tprune.agent.trace import write_trace
from edge_tprune.build.bundle import Budget, Bundle
from edge_tprune.build.engines import prepare
from edge_tprune.build.tensorrt import BuildError
from edge_tprune.errors import HonestNo, UserError
from edge_tprune.models.data import Dataset, batches, open_dataset, open_images
from edge_tprune.models.preprocess import Preprocess
from edge_tprune.runtime.engine import runtime_version
from edge_tprune.telemetry.environment import environment
from edge_tprune.telemetry.machine import identify, state

_ISOLATION = (
    "one engine at a time: each is loaded, warmed up, timed and closed before the next is loaded; the runtime's threads spin "
    "as they do by default; Python's garbage collection is off while timing; a process of its own reads the sensors"
)
_SECONDS = 1.0  #: of a turn, where no power sensor asks for more
_WARMUP_SECONDS = 0.5
_BASELINE_SECONDS = 1.0
_BASELINE_VALUES = 20  #: new values of a power sensor that a baseline should hold
_MOST_IMAGES = 64  #: of `images`, kept decoded in memory
_RESERVE_BYTES = 8 << 20  #: of free space that a run leaves alone
_BYTES_PER_SECOND = 10_000  #: of record, generously: 400 inferences and ten readings a second


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. What was measured until then is in the profile at `path`, summary included. Exit code 130."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"interrupted. What was measured until then is in {path}; --resume {path} goes on")
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
    precision: str | None = None,
    threads: int | None = None,
    rounds: int = 10,
    seconds_per_round: float | None = None,
    warmup_seconds: float | None = None,
    baseline_seconds: float | None = None,
    fps: float | None = None,
    seed: int = 0,
    budgets: Sequence[str] | None = None,
    images: Path | None = None,
    data: Path | None = None,
    tolerance: float = TOLERANCE,
    root: Path = Path("/"),
    trace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Checks, then times the budgets of `bundle`, and returns the new profile directory in `out`.

    Args:
        bundle: an opened (and verified) bundle.
        out: where profiles are collected; nothing in it is overwritten.
        runtime: which of the bundle's artifacts to run.
        precision: of the graphs; by default the one that the bundle was built for first.
        threads: CPU threads per engine; by default one per physical core that this process may use.
        rounds: how often each budget has its turn.
        seconds_per_round: how long one turn is timed, with at least ten inferences. By default one second, or ten new values of the
            sensor that measures the whole machine's power, where there is one.
        warmup_seconds: how long an engine runs at least before it is timed; longer (up to five times) until latency is steady. By
            default half a second, or so long that the power sensor has forgotten what was before.
        baseline_seconds: how long the machine is left alone before and after all rounds, for its idle power. By default one
            second, or twenty new values of the power sensor. 0: no baseline.
        fps: run at this fixed rate instead of back to back.
        seed: of the order within the rounds.
        budgets: names of the budgets to run; all by default.
        images: a folder of images to run on instead of the bundle's golden inputs.
        data: a folder of images by class: accuracy is judged on them first, through the engines that are timed.
        tolerance: how far logits of a float32 graph may be from the golden ones, absolute; a budget beyond it is not timed.
        root: the directory that holds the system's `proc`, `sys` and `etc`.
        trace: also write `trace.json`.
        progress: shown to the person who waits.

    Raises:
        UserError: a setting or a file is wrong, the runtime is missing, the disk is full (what was recorded stays readable).
        CheckFailed: everything else was timed, but some budgets failed their check.
        Interrupted: by Ctrl-C or SIGTERM.
    """
    chosen = list(bundle.budgets) if budgets is None else [bundle.budget(name) for name in dict.fromkeys(budgets)]
    threads = default_threads() if threads is None else threads
    progress = progress or Progress()
    _check_settings(chosen, threads, rounds, seconds_per_round, warmup_seconds, baseline_seconds, fps, tolerance)
    runtime_version(runtime)
    graphs = [budget.artifact(runtime, precision) for budget in chosen]
    precision = graphs[0].precision
    _build_engines(bundle, chosen, runtime, precision, progress)
    inputs, described = _inputs(bundle, images)
    dataset = None if data is None else open_dataset(data, bundle.manifest["model"]["classes"])
    _check_space(out)
    with Observer(root) as observer:
        sensor = choose_sensor(observer.sources, runtime)
        settle_s = 0.0 if sensor is None else sensor.settle_s
        plan = {
            "mode": "saturation" if fps is None else "fixed_rate",
            "fps": fps,
            "seed": seed,
            "rounds": rounds,
            "seconds_per_round": _first(seconds_per_round, max(_SECONDS, sensor.turn_s if sensor else 0.0)),
            "warmup_seconds": _first(warmup_seconds, max(_WARMUP_SECONDS, settle_s)),
            "baseline_seconds": _first(
                baseline_seconds, max(_BASELINE_SECONDS, settle_s + _BASELINE_VALUES * sensor.update_s if sensor else 0.0)
            ),
            "threads": threads,
            "runtime": runtime,
            "precision": precision,
            "golden_tolerance": tolerance,
            "isolation": _ISOLATION,
            "input": described,
            "sources": observer.sources,
            "order": random_order([budget.name for budget in chosen], rounds, seed),
        }
        started = datetime.now(timezone.utc)
        run = _describe(bundle, chosen, plan, _environment(root), started)
        name = directory_name(started, bundle.name, run["environment"]["hostname"] or "")
        with Recorder.create(out, name, run) as recorder:
            job = _Job(bundle, chosen, plan, recorder, observer, inputs, dataset, root, progress)
            return _see_through(job, trace)


def resume(
    bundle: Bundle,
    path: Path,
    *,
    asked: Mapping[str, Any] | None = None,
    data: Path | None = None,
    images: Path | None = None,
    root: Path = Path("/"),
    trace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Goes on with the run at `path` at the turns that are missing, and returns `path`.

    Args:
        bundle: the bundle that the run measures.
        path: a profile that was interrupted or cut off.
        asked: keys of the plan that the caller insists on; they must be those of the run.
        data: as for `profile`, where accuracy is still to be judged.
        images: the folder that the run was made with, if it was.
        root: as for `profile`.
        trace: as for `profile`.
        progress: as for `profile`.

    Raises:
        UserError: nothing is missing, the run is still going on, or bundle, plan or machine are not the same: saying what differs.
        CheckFailed, Interrupted: as for `profile`.
    """
    progress = progress or Progress()
    before = read_run(path, keep=False)
    plan = {"precision": None, **before.info["plan"]}  # runs of the first days of version 2 do not tell it
    if before.info["version"] < VERSION:
        raise UserError(f"profile {path} has format version {before.info['version']}, which cannot be resumed. Profile again")
    if before.end == "complete":
        raise UserError(f"profile {path} is complete: there is nothing to resume")
    inputs, described = _inputs(bundle, images)
    differing = _differences(
        {
            "bundle fingerprint": (before.info["bundle"]["fingerprint"], bundle.manifest["fingerprint"]),
            "images": (plan["input"], described),
            **{key: (({**plan, "budgets": before.budgets}).get(key), value) for key, value in (asked or {}).items()},
        }
    )
    now = _environment(root)
    was = before.info["environment"]
    differing += _differences({key: (was.get(key), now.get(key)) for key in sorted(was.keys() | now.keys())})
    if differing:
        raise UserError(f"profile {path} cannot be resumed, because not everything is as it was: {'; '.join(differing)}")
    chosen = [bundle.budget(name) for name in before.budgets]
    runtime_version(plan["runtime"])
    _build_engines(bundle, chosen, plan["runtime"], plan["precision"], progress)
    dataset = None if data is None else open_dataset(data, bundle.manifest["model"]["classes"])
    _check_space(path)
    done = {(turn.round, turn.budget) for turn in before.rounds if turn.complete}
    with Observer(root) as observer, Recorder.reopen(path) as recorder:
        job = _Job(
            bundle,
            chosen,
            plan,
            recorder,
            observer,
            inputs,
            dataset,
            root,
            progress,
            session=before.sessions,
            done=frozenset(done),
        )
        return _see_through(job, trace)


def _build_engines(bundle: Bundle, chosen: Sequence[Budget], runtime: str, precision: str | None, progress: Progress) -> None:
    """Builds the engines that are missing now, in sight of the person: it may take minutes, and nothing is recorded yet.

    A budget whose engine cannot be built is left to its check, which says so in the record.
    """
    for number, budget in enumerate(chosen):

        def tell(text: str, done: int, of: int, number: int = number, name: str = budget.name) -> None:
            progress.step(number, len(chosen), f"engine of budget {name}: {text.lower()}, {done} of {of}")

        def warn(text: str, name: str = budget.name) -> None:
            progress.warn(f"budget {name}: {text}")

        try:
            prepare(bundle, budget.name, runtime, precision, progress=tell, warn=warn)
        except BuildError as error:
            warn(str(error))


def default_threads() -> int:
    """One per physical core, or fewer where this process may use fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [count for count in (psutil.cpu_count(logical=False), allowed) if count]
    return min(counts, default=1)


@dataclass(frozen=True)
class _Job:
    """Everything a session of a run needs."""

    bundle: Bundle
    chosen: list[Budget]
    plan: dict[str, Any]
    recorder: Recorder
    observer: Observer
    inputs: list[np.ndarray]
    dataset: Dataset | None
    root: Path
    progress: Progress
    session: int = 0
    done: frozenset[tuple[int, str]] = frozenset()  #: (round, budget) of the turns that need not be taken again

    def note(self, text: str) -> None:
        """Into the record, and to the person who waits."""
        self.recorder.append("note", text=text)
        self.progress.warn(text)


def _see_through(job: _Job, trace: bool) -> Path:
    """Measures, and leaves a usable profile whatever happens."""
    path = job.recorder.path
    with _sigterm_as_ctrl_c():
        try:
            failures = _measure(job)
        except KeyboardInterrupt:
            with suppress(UserError, OSError):
                _finish(job, "interrupted", trace)
            raise Interrupted(path) from None
        except BaseException:
            with suppress(UserError, OSError):
                _finish(job, "failed", trace)
            raise
        _finish(job, "complete", trace)
    if failures:
        raise CheckFailed(path, failures)
    return path


def _measure(job: _Job) -> dict[str, str]:
    """Checks and times everything that is not done yet, and returns the budgets that failed their check, with why."""
    plan, recorder, progress = job.plan, job.recorder, job.progress
    recorder.append("state", which="begin", values=state(job.root))
    job.observer.begin(recorder.path, job.session)
    if job.observer.problem is not None:
        job.note(f"no sensor is read: {job.observer.problem}")
    failures: dict[str, str] = {}
    total = len(job.chosen) * (1 + len(plan["order"]))
    for number, budget in enumerate(job.chosen):
        progress.step(number, total, f"checking budget {budget.name}")
        check = check_budget(
            job.bundle,
            budget.name,
            runtime=plan["runtime"],
            precision=plan["precision"],
            threads=plan["threads"],
            tolerance=plan["golden_tolerance"],
        )
        recorder.append("check", **asdict(check))
        if not check.golden_ok:
            failures[budget.name] = describe_failure(check)
            total -= len(plan["order"])
            progress.warn(f"budget {budget.name} failed its check and is not timed: {failures[budget.name]}")
    if job.dataset is not None:
        _judge(job, [budget.name for budget in job.chosen if budget.name not in failures])
    missing = missing_turns(plan["order"], job.done, failures)
    done = total - len(missing)
    _warn_of_space(job, len(missing))
    progress.step(done, total, "idle")
    _leave_alone(job, "before")
    for number, position, name in missing:
        progress.step(done, total, f"round {number + 1} of {len(plan['order'])}, budget {name}")
        _check_space(recorder.path)
        file = prepare(job.bundle, name, plan["runtime"], plan["precision"])
        which: dict[str, Any] = {"round": number, "position": position, "budget": name}

        def keep(t_ns: int, values: dict[str, Any], which: dict[str, Any] = which) -> None:
            recorder.append("part", t_ns, sync=job.observer.problem is not None, **which, **values)  # else the sampler syncs it

        t_ns, turn = take_turn(file, job.inputs, plan, keep)
        recorder.append("round", t_ns, **which, **turn)
        done += 1
        if (happened := job.observer.keep_alive()) is not None:
            job.note(happened)
    progress.step(done, total, "idle")
    _leave_alone(job, "after")
    progress.step(done, total, "done")
    return failures


def _judge(job: _Job, names: Sequence[str]) -> None:
    """Accuracy on this device, into the record."""
    assert job.dataset is not None

    def step(done: int, total: int) -> None:
        job.progress.step(done, total, "judging accuracy, images")

    found = judge_here(
        job.bundle,
        job.dataset,
        runtime=job.plan["runtime"],
        precision=job.plan["precision"],
        threads=job.plan["threads"],
        budgets=names,
        directory=job.recorder.path,
        progress=step,
    )
    for name, accuracy in found.items():
        job.recorder.append("accuracy", budget=name, accuracy=accuracy)


def _leave_alone(job: _Job, which: str) -> None:
    """A time in which nothing of ours runs but the sampler."""
    seconds = job.plan["baseline_seconds"]
    if seconds > 0:
        begin_ns = clock_ns()
        time.sleep(seconds)
        job.recorder.append("baseline", begin_ns, end_ns=clock_ns(), which=which)


def _finish(job: _Job, reason: str, trace: bool) -> None:
    job.recorder.append("state", which="end", values=state(job.root))
    job.recorder.append("end", reason=reason)
    job.recorder.close()
    job.observer.close()
    run = read_run(job.recorder.path, keep=False)
    summary = write_summary(run)
    for name, budget in summary["budgets"].items():
        if budget["energy"]["status"] == "not_resolvable" and budget["rounds"]:
            job.progress.warn(f"budget {name}: energy is not resolvable: {budget['energy']['reason']}")
    if summary["verdict"]["status"] != "valid":
        seen = "; ".join(reason["text"] for reason in summary["verdict"]["reasons"])
        job.progress.warn(f"the run is {summary['verdict']['status']}: {seen}")
    if trace:
        write_trace(run)


def _inputs(bundle: Bundle, images: Path | None) -> tuple[list[np.ndarray], dict[str, Any]]:
    """What engines are run on, (B, 3, H, W) each, and what the plan says of it."""
    if images is None:
        inputs = list(bundle.golden()[0])
        if not inputs:
            raise UserError(f"bundle {bundle.path} has no golden inputs: rebuild it")
        return inputs, {"kind": "golden", "images": len(inputs) * bundle.batch}
    folder = open_images(images).first(_MOST_IMAGES)
    prepared = batches(folder, Preprocess.from_record(bundle.manifest["preprocessing"]), bundle.batch)
    inputs = [batch for batch, _ in prepared if len(batch) == bundle.batch]
    if not inputs:
        raise UserError(f"image folder {images} holds {len(folder)} images, fewer than one batch of {bundle.batch}")
    return inputs, {"kind": "images", "images": len(inputs) * bundle.batch, "name": folder.name, "sha256": folder.fingerprint}


def _environment(root: Path) -> dict[str, Any]:
    """Where it is measured: what must be the same for two runs to be compared, and for one to be resumed."""
    now = state(root)
    board = identify(root)
    return {
        **environment(root),
        "board": board.key,
        "power_mode": now["power_mode"],
        "clock_locks": {
            "gpu": None if now["clocks"]["gpu"] is None else now["clocks"]["gpu"]["locked"],
            "cpu": [clock["locked"] for clock in now["clocks"]["cpu"]],
        },
    }


def _differences(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what} was {was!r} and is {now!r}" for what, (was, now) in pairs.items() if was != now]


def _check_space(path: Path) -> None:
    """Raises UserError: too little space is free to go on."""
    free = _free_bytes(path)
    if free is not None and free < _RESERVE_BYTES:
        raise UserError(
            f"no space left for a record: {free / 1e6:.1f} MB are free at {path}, and {_RESERVE_BYTES / 1e6:.0f} MB must stay free. "
            "Free some space or choose another --out"
        )


def _warn_of_space(job: _Job, turns: int) -> None:
    """Says so where the disk may not hold what is planned."""
    plan, free = job.plan, _free_bytes(job.recorder.path)
    seconds = turns * (plan["seconds_per_round"] + plan["warmup_seconds"]) + 2 * plan["baseline_seconds"]
    needed = _RESERVE_BYTES + seconds * _BYTES_PER_SECOND
    if free is not None and free < needed:
        job.note(f"the disk may fill up: {free / 1e6:.0f} MB are free, and the record may need {needed / 1e6:.0f} MB")


def _free_bytes(path: Path) -> int | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _first(given: float | None, default: float) -> float:
    return default if given is None else given


def _check_settings(
    chosen: list[Budget],
    threads: int,
    rounds: int,
    seconds_per_round: float | None,
    warmup_seconds: float | None,
    baseline_seconds: float | None,
    fps: float | None,
    tolerance: float,
) -> None:
    if not chosen:
        raise UserError("no budget to profile: name at least one")
    if threads < 1:
        raise UserError(f"threads must be 1 or more, not {threads}")
    if rounds < 1:
        raise UserError(f"rounds must be 1 or more, not {rounds}")
    if fps is not None and not (math.isfinite(fps) and 0 < fps <= 10_000):
        raise UserError(f"fps must be a number above 0, up to 10000, not {fps}")
    for what, value in (
        ("seconds per round", seconds_per_round),
        ("warm-up seconds", warmup_seconds),
        ("baseline seconds", baseline_seconds),
        ("tolerance", tolerance),
    ):
        if value is not None and not (math.isfinite(value) and value >= 0):
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
                "accuracy": budget.accuracy_in(plan["precision"]),
                "artifact": asdict(budget.artifact(plan["runtime"], plan["precision"])),
            }
            for budget in chosen
        ],
        "plan": plan,
        "environment": where,
    }


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
