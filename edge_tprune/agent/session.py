"""One session of a run: checks, accuracy, idle, the turns that are missing, idle; and a usable profile whatever happens."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.agent.accuracy import judge_here
from edge_tprune.agent.observer import Observer
from edge_tprune.agent.probe import check_budget
from edge_tprune.agent.progress import Progress
from edge_tprune.agent.rounds import missing_turns, take_turn
from edge_tprune.bundle.bundle import Budget, Bundle
from edge_tprune.bundle.engines import prepare
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.models.data import Dataset
from edge_tprune.record.reader import describe_failure, read_run
from edge_tprune.record.summary import write_summary
from edge_tprune.record.trace import write_trace
from edge_tprune.record.writer import Recorder, clock_ns
from edge_tprune.telemetry.machine import state

_RESERVE_BYTES = 8 << 20  #: of free space that a run leaves alone
_BYTES_PER_SECOND = 10_000  #: of record, generously: 400 inferences and ten readings a second


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. What was measured until then is in the profile at `path`, summary included. Exit code 130."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"interrupted. What was measured until then is in {path}; --resume {path} goes on")
        self.path = path


class CheckFailed(NegativeAnswer):
    """Some budgets could not be timed, because they failed their check. The others are in the profile at `path`."""

    def __init__(self, path: Path, failures: dict[str, str]) -> None:
        what = "; ".join(f"budget {name}: {why}" for name, why in failures.items())
        super().__init__(f"not timed, because of a failed check: {what}. The rest is in {path}")
        self.path = path
        self.failures = failures  #: budget -> why


@dataclass(frozen=True)
class Job:
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


def see_through(job: Job, trace: bool) -> Path:
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


def _measure(job: Job) -> dict[str, str]:
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
        check_space(recorder.path)
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


def _judge(job: Job, names: Sequence[str]) -> None:
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


def _leave_alone(job: Job, which: str) -> None:
    """A time in which nothing of ours runs but the sampler."""
    seconds = job.plan["baseline_seconds"]
    if seconds > 0:
        begin_ns = clock_ns()
        time.sleep(seconds)
        job.recorder.append("baseline", begin_ns, end_ns=clock_ns(), which=which)


def _finish(job: Job, reason: str, trace: bool) -> None:
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


def check_space(path: Path) -> None:
    """Raises UserError: too little space is free to go on."""
    free = _free_bytes(path)
    if free is not None and free < _RESERVE_BYTES:
        raise UserError(
            f"no space left for a record: {free / 1e6:.1f} MB are free at {path}, and {_RESERVE_BYTES / 1e6:.0f} MB must stay free. "
            "Free some space or choose another --out"
        )


def _warn_of_space(job: Job, turns: int) -> None:
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
