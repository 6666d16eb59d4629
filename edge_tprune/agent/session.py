"""One session of a run: checks, accuracy, idle, the turns that are missing, idle; and a usable profile in any case."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edge_tprune.agent.accuracy import judge_here
from edge_tprune.agent.observer import Observer
from edge_tprune.agent.probe import check_budget, failed_check
from edge_tprune.agent.progress import Progress
from edge_tprune.agent.turns import PlannedTurn, earlier_objects_kept, missing_turns, take_turn
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.fallback import Fallback
from edge_tprune.bundle.manifest import split_label
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.models.data import Dataset
from edge_tprune.processes import delayed_signals, end_signals
from edge_tprune.record.lines import AccuracyLine, BaselineLine, Check, CheckLine, EndLine, NoteLine, PartLine, StateLine
from edge_tprune.record.log import clock_ns
from edge_tprune.record.meter import choose_meter
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunSettings
from edge_tprune.record.summarize import write_summary
from edge_tprune.record.trace import write_trace
from edge_tprune.record.writer import Recorder
from edge_tprune.telemetry.state import read_state
from edge_tprune.text import command_line

_RESERVE_BYTES = 8 << 20  #: of free space that a run leaves alone
_BYTES_PER_SECOND = 10_000  #: of record, generously: 400 inferences and ten readings a second


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP. What was measured so far is in the profile at `path`, summary included. Exit code 130."""

    def __init__(self, path: Path, complete: bool = False) -> None:
        rest = "it is complete" if complete else f"{command_line('--resume', path)} continues"
        super().__init__(f"interrupted. What was measured so far is in {path}; {rest}")
        self.path = path
        self.complete = complete  #: everything was measured, and nothing is left to continue


class CheckFailed(NegativeAnswer):
    """Some budgets could not be timed, because they failed their check. The others are in the profile at `path`."""

    def __init__(self, path: Path, failures: dict[str, str]) -> None:
        what = "; ".join(f"budget {name}: {why}" for name, why in failures.items())
        super().__init__(f"not timed, because of a failed check: {what}. The rest is in {path}")
        self.path = path
        self.failures = failures  #: budget -> why


class NothingRan(UserError):
    """No budget could be run on this machine: none answered wrongly, none answered. The profile at `path` holds why."""

    def __init__(self, path: Path, failures: dict[str, str]) -> None:
        what = "; ".join(f"budget {name}: {why}" for name, why in failures.items())
        super().__init__(f"no budget could be run on this machine: {what}. What was recorded is in {path}")
        self.path = path


@dataclass(frozen=True)
class Session:
    """Everything that a session of a run needs."""

    bundle: Bundle
    settings: RunSettings
    engines: Mapping[str, Path | str]  #: budget -> what its engine is opened from, or why there is none
    recorder: Recorder
    observer: Observer
    inputs: Sequence[np.ndarray]  #: (B, 3, H, W) each
    dataset: Dataset | None  #: to judge accuracy on first
    root: Path
    progress: Progress
    number: int = 0  #: 0 for the first; resumptions count up
    done: frozenset[tuple[int, str]] = frozenset()  #: (round, budget) of the turns that need not be taken again
    fallen_back: frozenset[str] = frozenset()  #: budgets that run in another precision than asked for (`Check.fallback`)

    def note(self, text: str) -> None:
        """Into the record, and to the person who waits."""
        self.recorder.append(NoteLine(t_ns=clock_ns(), text=text))
        self.progress.warn(text)

    def record_state(self, which: Literal["begin", "end"]) -> None:
        """The state the machine is in, into the record."""
        self.recorder.append(StateLine(t_ns=clock_ns(), which=which, values=read_state(self.root)))


def run_session(session: Session, trace: bool) -> Path:
    """Measures, and leaves a usable profile in any case.

    Raises:
        CheckFailed: everything else was timed, but some budgets failed their check.
        NothingRan: none could be run.
        Interrupted: by a signal.
    """
    path = session.recorder.path
    with end_signals():
        measured = False
        try:
            with earlier_objects_kept():
                failures = _measure(session)
            with delayed_signals():  # so that the summary follows
                measured = True
                _finish(session, "complete", trace)
        except KeyboardInterrupt:
            if not measured:
                with suppress(UserError, OSError):
                    _finish(session, "interrupted", trace)
            raise Interrupted(path, measured) from None
        except BaseException:
            if not measured:
                with suppress(UserError, OSError):
                    _finish(session, "failed", trace)
            raise
    reasons = {name: check.describe_failure() for name, check in failures.items()}
    if len(failures) == len(session.engines) and all(check.error is not None for check in failures.values()):
        raise NothingRan(path, reasons)
    if failures:
        raise CheckFailed(path, reasons)
    return path


def _measure(session: Session) -> dict[str, Check]:
    """Checks and times everything that is not done yet, and returns the failed checks by budget."""
    settings, progress = session.settings, session.progress
    session.record_state("begin")
    session.observer.begin(session.recorder.path, session.number)
    if session.observer.problem is not None:
        session.note(f"no sensor is being read: {session.observer.problem}")
    if (guess := _guess_meter(settings)) is not None:
        session.note(f"power and energy come from {guess}")
    failures, session = _check_budgets(session)
    if session.dataset is not None:
        _record_accuracy(session, session.dataset, failures)
    planned = missing_turns(settings.order, session.done, failures)
    total = len(session.engines) + (len(session.engines) - len(failures)) * len(settings.order)
    done = total - len(planned)
    _warn_of_space(session, len(planned))
    progress.step(done, total, "idle")
    _record_baseline(session, "before")
    for turn in planned:
        progress.step(done, total, f"round {turn.round + 1} of {len(settings.order)}, budget {turn.budget}")
        check_space(session.recorder.path)
        session.recorder.check_in_place()
        _record_turn(session, turn)
        done += 1
        if (event := session.observer.keep_alive()) is not None:
            session.note(event)
    progress.step(done, total, "idle")
    _record_baseline(session, "after")
    progress.step(done, total, "done")
    return failures


def _check_budgets(session: Session) -> tuple[dict[str, Check], Session]:
    """Checks every budget in a process of its own; returns the checks that failed, and the session with the engines that passed."""
    settings, progress = session.settings, session.progress
    failures: dict[str, Check] = {}
    engines, fallbacks = dict(session.engines), dict[str, Fallback]()
    total = len(session.engines) * (1 + len(settings.order))
    for number, (name, engine) in enumerate(session.engines.items()):
        progress.step(number, total, f"checking budget {name}")
        if isinstance(engine, str):
            check = failed_check(name, engine)
        else:
            budget, precision = split_label(name, settings.precision)
            check, other = check_budget(
                session.bundle,
                budget,
                runtime=settings.runtime,
                precision=precision,
                threads=settings.threads,
                tolerance=settings.golden_tolerance,
                warn=progress.warn,
            )
            check = msgspec.structs.replace(check, budget=name)
            if other is not None:
                engines[name] = other
        if check.error is not None and any(budget == name for _, budget in session.done):
            raise UserError(
                f"budget {name} was measured before and cannot be run now: {check.error}. What was measured is kept: resume the run again "
                "when that is fixed"
            )
        session.recorder.append(_check_line(check))
        if not check.golden_ok:
            failures[name] = check
            progress.warn(f"budget {name} failed its check and is not timed: {check.describe_failure()}")
        elif check.fallback is not None:
            fallbacks[name] = check.fallback
            session.note(f"budget {name}: {check.fallback.describe()}")
    session.recorder.note_fallbacks(fallbacks)
    return failures, replace(session, engines=engines, fallen_back=frozenset(fallbacks))


def _check_line(check: Check) -> CheckLine:
    return CheckLine(t_ns=clock_ns(), **msgspec.structs.asdict(check))


def _record_accuracy(session: Session, dataset: Dataset, failures: Collection[str]) -> None:
    """Accuracy on this device, into the record: of the engines that are timed, also where one runs in a higher precision than asked for."""
    names = [name for name in session.engines if name not in failures]
    files = {name: Path(session.engines[name]) for name in session.fallen_back}
    if files:
        session.note(f"accuracy is that of what runs instead, for: {', '.join(sorted(files))}")

    def step(done: int, total: int) -> None:
        session.progress.step(done, total, "judging accuracy, images")

    try:
        found = judge_here(
            session.bundle,
            dataset,
            runtime=session.settings.runtime,
            precision=session.settings.precision,
            threads=session.settings.threads,
            budgets=names,
            directory=session.recorder.path,
            files=files,
            progress=step,
            warn=session.note,
        )
    except NegativeAnswer as error:  # the unpruned budget, with which all are compared, may have failed its check
        session.note(f"accuracy could not be judged here: {error}")
        return
    for name, accuracy in found.items():
        session.recorder.append(AccuracyLine(t_ns=clock_ns(), budget=name, accuracy=msgspec.to_builtins(accuracy)))


def _record_turn(session: Session, turn: PlannedTurn) -> None:
    """Takes one turn; its parts are written as they come."""
    file = session.engines[turn.budget]
    assert isinstance(file, Path)  # a budget without an engine fails its check
    sync = session.observer.problem is not None  # otherwise the sampler syncs the samples too

    def write(part: PartLine) -> None:
        session.recorder.append(part, sync=sync)

    session.recorder.append(take_turn(session.bundle, file, session.inputs, session.settings, turn, write))


def _record_baseline(session: Session, which: Literal["before", "after"]) -> None:
    """A time in which only the sampler runs."""
    seconds = session.settings.baseline_seconds
    if seconds > 0:
        begin_ns = clock_ns()
        time.sleep(seconds)
        session.recorder.append(BaselineLine(t_ns=begin_ns, end_ns=clock_ns(), which=which))


def _finish(session: Session, reason: str, trace: bool) -> None:
    """Ends the record and derives the summary from it."""
    session.record_state("end")
    session.recorder.append(EndLine(t_ns=clock_ns(), reason=reason))
    session.recorder.check_in_place()
    session.recorder.close()
    session.observer.close()
    run = read_run(session.recorder.path, keep=False)
    summary = write_summary(run)
    for name, budget in summary.budgets.items():
        if budget.energy.status == "not_resolvable" and budget.rounds:
            session.progress.warn(f"budget {name}: energy is not resolvable: {budget.energy.reason}")
    if summary.verdict is not None and summary.verdict.status != "valid":
        seen = "; ".join(reason.text for reason in summary.verdict.reasons)
        session.progress.warn(f"the run is {summary.verdict.status}: {seen}")
    if trace:
        write_trace(run)


def _guess_meter(settings: RunSettings) -> str | None:
    """What the meter is made of, where that is a guess."""
    meter = choose_meter(settings.sources, settings.runtime)
    return meter.made_of if meter is not None and meter.guess else None


def check_space(path: Path) -> None:
    """Raises UserError: too little space is free to go on."""
    free = _free_bytes(path)
    if free is not None and free < _RESERVE_BYTES:
        raise UserError(
            f"no space left for a record: {free / 1e6:.1f} MB are free at {path}, and {_RESERVE_BYTES / 1e6:.0f} MB must stay free. "
            "Free some space, or choose another place"
        )


def _warn_of_space(session: Session, turns: int) -> None:
    """Says so where the disk may not hold what is planned."""
    settings, free = session.settings, _free_bytes(session.recorder.path)
    seconds = turns * (settings.seconds_per_round + settings.warmup_seconds) + 2 * settings.baseline_seconds
    needed = _RESERVE_BYTES + seconds * _BYTES_PER_SECOND
    if free is not None and free < needed:
        session.note(f"the disk may fill up: {free / 1e6:.0f} MB are free, and the record may need {needed / 1e6:.0f} MB")


def _free_bytes(path: Path) -> int | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
