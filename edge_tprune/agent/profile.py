"""The measurement: every budget of a bundle, in rounds, recorded raw.

A round times each budget once, in a new random order. Budgets of the same round saw the same machine (its temperature, its other
programs), so comparisons pair them by round. One engine is alive at a time: the spinning threads of an idle one would slow the next
(on two cores by half). A process of its own reads the sensors all the while.

A run is checks, accuracy (if asked for), idle, rounds, idle. A run that was cut off is resumed at the turns that are missing; its
checks and idle times are made again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_tprune.agent.accuracy import ACCURACY, ACCURACY_BEGINS
from edge_tprune.agent.observer import Observer
from edge_tprune.agent.progress import Progress
from edge_tprune.agent.session import Session, check_space, run_session
from edge_tprune.agent.turns import random_order
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.engines import prepare
from edge_tprune.bundle.manifest import Budget, split_label
from edge_tprune.documents import LARGEST_BYTES
from edge_tprune.errors import UserError
from edge_tprune.files import check_own
from edge_tprune.models.data import Dataset, batches, open_images
from edge_tprune.record.document import RUN, VERSION, ArtifactRecord, BudgetRecord, BundleRecord, RunDocument
from edge_tprune.record.meter import Meter, choose_meter
from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.settings import TOLERANCE, RunInput, RunRequest, RunSettings
from edge_tprune.record.summary import KIND as SUMMARY_KIND
from edge_tprune.record.summary import SUMMARY
from edge_tprune.record.trace import BEGINS as TRACE_BEGINS
from edge_tprune.record.trace import TRACE
from edge_tprune.record.writer import Recorder, directory_name
from edge_tprune.runtime.engine import default_threads, runtime_version
from edge_tprune.runtime.tensorrt.builder import BuildError
from edge_tprune.schedule.latency import KIND as LATENCY_KIND
from edge_tprune.schedule.latency import LATENCY
from edge_tprune.telemetry.environment import Environment, read_environment
from edge_tprune.text import count_of
from edge_tprune.version import __version__

_ORDER_BYTES = LARGEST_BYTES // 2  #: of run.json, for the order of the turns
_ISOLATION = (
    "one engine at a time: each is loaded, warmed up, timed and closed before the next is loaded; the runtime's threads spin "
    "as they do by default; Python's garbage collection is off while timing; a process of its own reads the sensors"
)
_RUNTIME, _FP32 = "onnxruntime", "fp32"
_ROUNDS = 10
_SAME_MEMORY = 0.01  # share by which the size of the memory may differ from one start of a machine to the next
_SECONDS = 1.0  #: of a turn, where no power sensor needs more
_WARMUP_SECONDS = 0.5
_BASELINE_SECONDS = 1.0
_BASELINE_VALUES = 20  #: new values of a power sensor that a baseline should hold
_MOST_IMAGES = 64  #: of `images`, kept decoded in memory
_WRITTEN_AGAIN = {
    SUMMARY: SUMMARY_KIND.begins,
    LATENCY: LATENCY_KIND.begins,
    TRACE: TRACE_BEGINS,
    ACCURACY: ACCURACY_BEGINS,
}
"""Files of a profile that a resumed run removes or writes again, and how ours begin."""


def profile(
    bundle: Bundle,
    out: Path,
    request: RunRequest | None = None,
    *,
    budgets: Sequence[str] | None = None,
    images: Path | None = None,
    data: Dataset | None = None,
    root: Path = Path("/"),
    trace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Checks, then times the budgets of `bundle`, and returns the new profile directory in `out`.

    Args:
        bundle: an opened (and verified) bundle.
        out: where profiles are collected; nothing in it is overwritten.
        request: how to measure; what it leaves open is chosen for the bundle, the machine and its sensors.
        budgets: names of the budgets to run; all by default.
        images: a folder of images to run on instead of the bundle's golden inputs.
        data: images, with labels or without: accuracy is judged on them first, through the engines that are timed.
        root: the directory that holds the system's `proc`, `sys` and `etc`.
        trace: also write `trace.json`.
        progress: shown to the person who waits.

    Raises:
        UserError: a setting or a file is wrong, the runtime is missing, the disk is full (what was recorded stays readable).
        CheckFailed: everything else was timed, but some budgets failed their check.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP.
    """
    request, progress = request or RunRequest(), progress or Progress()
    request.check()
    chosen = list(bundle.budgets) if budgets is None else [bundle.budget(name) for name in dict.fromkeys(budgets)]
    if not chosen:
        raise UserError("no budget to profile: name at least one")
    runtime = request.runtime or _RUNTIME
    runtime_version(runtime)
    chosen, precision = in_precisions(chosen, runtime, request.precision)
    _check_turns(request.rounds, [budget.name for budget in chosen])
    engines = _prepare_engines(bundle, chosen, runtime, precision, progress)
    inputs, described = _open_inputs(bundle, images)
    check_space(out)
    with Observer(root) as observer:
        settings = _settle(request, runtime, precision, described, observer, [budget.name for budget in chosen])
        document = _describe(bundle, chosen, settings, read_environment(root))
        started = datetime.fromisoformat(document.started_utc)
        name = directory_name(started, bundle.name, document.environment.hostname or "")
        with Recorder.create(out, name, document) as recorder:
            session = Session(bundle, settings, engines, recorder, observer, inputs, data, root, progress)
            return run_session(session, trace)


def resume(
    bundle: Bundle,
    path: Path,
    request: RunRequest | None = None,
    *,
    budgets: Sequence[str] | None = None,
    images: Path | None = None,
    data: Dataset | None = None,
    root: Path = Path("/"),
    trace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Goes on with the run at `path` at the turns that are missing, and returns `path`.

    Args:
        bundle: the bundle that the run measures.
        path: a profile that was interrupted or cut off.
        request: settings that the caller insists on; they must be those of the run.
        budgets: likewise.
        images: the folder that the run was made with, if it was.
        data: as for `profile`, where accuracy is still to be judged.
        root: as for `profile`.
        trace: as for `profile`.
        progress: as for `profile`.

    Raises:
        UserError: nothing is missing, the run is still going on, or bundle, settings or machine are not the same: saying what differs.
        CheckFailed, Interrupted: as for `profile`.
    """
    progress = progress or Progress()
    before = _read_unfinished(path)
    kept = {name for name, wanted in ((TRACE, trace), (ACCURACY, data is not None)) if not wanted}
    _check_own_files(path, kept)
    inputs, described = _open_inputs(bundle, images)
    _refuse_changes(before, bundle, request or RunRequest(), budgets, described, root)
    settings = before.document.settings
    chosen = [msgspec.structs.replace(bundle.budget(split_label(name, None)[0]), name=name) for name in before.budgets]
    runtime_version(settings.runtime)
    engines = _prepare_engines(bundle, chosen, settings.runtime, settings.precision, progress)
    check_space(path)
    with Observer(root) as observer, Recorder.reopen(path) as recorder:
        before = _read_unfinished(path)  # again: what wrote it until now may have gone on
        done = frozenset((turn.round, turn.budget) for turn in before.turns if turn.complete)
        _check_own_files(path, kept)
        recorder.begin_session()
        session = Session(bundle, settings, engines, recorder, observer, inputs, data, root, progress, before.sessions, done)
        return run_session(session, trace)


def _check_own_files(path: Path, kept: Collection[str]) -> None:
    """Refuses to lose a file of somebody's among those that a resumed run removes or writes again."""
    for name, begins in _WRITTEN_AGAIN.items():
        if name not in kept:
            check_own(path / name, begins, "one")


def _read_unfinished(path: Path) -> Run:
    """The run at `path`.

    Raises:
        UserError: it is complete, or of a version that cannot be resumed.
    """
    run = read_run(path, keep=False)
    if run.document.version < VERSION:
        raise UserError(f"profile {path} has format version {run.document.version}, which cannot be resumed. Profile again")
    if run.end == "complete":
        raise UserError(f"profile {path} is complete: there is nothing to resume")
    if not {name for names in run.document.settings.order for name in names} <= set(run.budgets):
        raise UserError(f"profile {path}: {RUN} plans budgets that the run does not have. Profile again")
    return run


def in_precisions(chosen: Sequence[Budget], runtime: str, wanted: str | None) -> tuple[list[Budget], str]:
    """The rows of a run, named as results are ("0.65", in another precision than float32 "0.65@int8"), and the precisions with commas.

    Raises:
        UserError: a budget has no graph in one of them; several without float32, which the others are compared with.
    """
    precisions = list(dict.fromkeys((chosen[0].artifact(runtime).precision if wanted is None else wanted).split(",")))
    if len(precisions) > 1 and _FP32 not in precisions:
        raise UserError(f"--precision {wanted}: of several precisions one must be {_FP32}, which the others are compared with")
    for budget in chosen:
        for precision in precisions:
            budget.artifact(runtime, precision)
    if len(precisions) == 1:
        return list(chosen), precisions[0]
    precisions.sort(key=lambda precision: precision != _FP32)
    rows = [
        budget if precision == _FP32 else msgspec.structs.replace(budget, name=f"{budget.name}@{precision}")
        for precision in precisions
        for budget in chosen
    ]
    return rows, ",".join(precisions)


def _check_turns(rounds: int | None, names: Sequence[str]) -> None:
    """Refuses more turns than run.json can list and be read again.

    Raises:
        UserError: saying how many rounds it can.
    """
    most = _ORDER_BYTES // sum(len(json.dumps(name)) + 10 for name in names)  # each is a line, with blanks before it
    if rounds is not None and rounds > most:
        raise UserError(
            f"--rounds {rounds}: a profile can list the turns of {len(names)} budgets for {most} rounds. Give fewer rounds or budgets"
        )


def _prepare_engines(
    bundle: Bundle, chosen: Sequence[Budget], runtime: str, precision: str | None, progress: Progress
) -> dict[str, Path | str]:
    """Per budget what its engine is opened from, or why there is none, which its check will say.

    Engines that are missing are built now, with progress: it may take minutes, and nothing is recorded yet.
    """
    engines: dict[str, Path | str] = {}
    for number, budget in enumerate(chosen):

        def show(text: str, done: int, of: int, number: int = number, name: str = budget.name) -> None:
            progress.step(number, len(chosen), f"engine of budget {name}: {text.lower()}, {done} of {of}")

        def warn(text: str, name: str = budget.name) -> None:
            progress.warn(f"budget {name}: {text}")

        try:
            name, its_precision = split_label(budget.name, precision)
            engines[budget.name] = prepare(bundle, name, runtime, its_precision, progress=show, warn=warn)
        except BuildError as error:
            engines[budget.name] = str(error)
            warn(str(error))
    return engines


def _settle(
    request: RunRequest, runtime: str, precision: str, described: RunInput, observer: Observer, names: Sequence[str]
) -> RunSettings:
    """The settings of a run: what was asked for, and for the rest what the machine and its power sensor need."""
    seconds, warmup_s, baseline_s = _lengths(choose_meter(observer.sources, runtime))
    settings = msgspec.structs.replace(
        RunSettings(
            seed=0,
            rounds=_ROUNDS,
            seconds_per_round=seconds,
            warmup_seconds=warmup_s,
            baseline_seconds=baseline_s,
            threads=default_threads(),
            runtime=runtime,
            precision=precision,
            golden_tolerance=TOLERANCE,
            isolation=_ISOLATION,
            input=described,
            sources=observer.sources,
            order=(),
        ),
        **request.given(),
    )
    return msgspec.structs.replace(
        settings,
        mode="saturation" if settings.fps is None else "fixed_rate",
        precision=precision,
        order=random_order(names, settings.rounds, settings.seed),
    )


def _lengths(meter: Meter | None) -> tuple[float, float, float]:
    """How long (s) turns, the warm-ups before them and baselines should be."""
    if meter is None:
        return _SECONDS, _WARMUP_SECONDS, _BASELINE_SECONDS
    return (
        max(_SECONDS, meter.turn_s),
        max(_WARMUP_SECONDS, meter.settle_s),
        max(_BASELINE_SECONDS, meter.settle_s + _BASELINE_VALUES * meter.update_s),
    )


def _open_inputs(bundle: Bundle, images: Path | None) -> tuple[list[np.ndarray], RunInput]:
    """What engines are run on, (B, 3, H, W) each, and what the settings say of it."""
    if images is None:
        inputs = list(bundle.golden().images)
        return inputs, RunInput(kind="golden", images=len(inputs) * bundle.batch)
    folder = open_images(images).first(_MOST_IMAGES)
    prepared = batches(folder, bundle.manifest.preprocessing, bundle.batch)
    inputs = [batch for batch, _ in prepared if len(batch) == bundle.batch]
    if not inputs:
        raise UserError(f"image folder {images} holds {count_of(len(folder), 'image')}, fewer than one batch of {bundle.batch}")
    described = RunInput(kind="images", images=len(inputs) * bundle.batch, name=folder.name, sha256=folder.fingerprint)
    return inputs, described


def _refuse_changes(
    before: Run, bundle: Bundle, request: RunRequest, budgets: Sequence[str] | None, described: RunInput, root: Path
) -> None:
    """Refuses to resume where bundle, settings, images or machine are not what they were.

    Raises:
        UserError: naming everything that differs.
    """
    document = before.document
    pairs: dict[str, tuple[Any, Any]] = {
        "bundle fingerprint": (document.bundle.fingerprint, bundle.manifest.fingerprint),
        "images": (_to_builtins(document.settings.input), _to_builtins(described)),
        **request.differences(document.settings),
    }
    if budgets is not None:
        pairs["budgets"] = (list(dict.fromkeys(name.partition("@")[0] for name in before.budgets)), list(budgets))
    was, now = asdict(document.environment), asdict(read_environment(root))
    if was["board"] != now["board"]:  # then everything else differs, too
        there, here = (found["board_model"] or found["board"] for found in (was, now))
        raise UserError(
            f"profile {before.path} cannot be resumed on another board: it was made on {there}, and this is {here}. "
            "Go on there, or give the --sysroot that it was made with"
        )
    totals = was["memory_total_bytes"], now["memory_total_bytes"]
    if None not in totals and abs(totals[1] - totals[0]) < _SAME_MEMORY * totals[0]:
        now["memory_total_bytes"] = totals[0]  # a kernel keeps some pages more or less at each start
    differing = _differences(pairs) + _differences({key: (was[key], now[key]) for key in sorted(now)})
    if differing:
        text = "; ".join(differing)
        raise UserError(f"profile {before.path} cannot be resumed, because conditions have changed: {text}")


def _to_builtins(described: RunInput | None) -> Any:
    return msgspec.to_builtins(described)


def _differences(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what} was {was!r} and is {now!r}" for what, (was, now) in pairs.items() if was != now]


def _describe(bundle: Bundle, chosen: Sequence[Budget], settings: RunSettings, environment: Environment) -> RunDocument:
    """The run.json."""
    return RunDocument(
        run_id=uuid.uuid4().hex,
        started_utc=datetime.now(timezone.utc).isoformat(),
        tool_version=__version__,
        bundle=msgspec.convert(msgspec.to_builtins(bundle.manifest), BundleRecord),
        budgets=tuple(
            BudgetRecord(
                name=budget.name,
                requested=budget.requested,
                schedule=budget.schedule,
                macs=budget.macs,
                macs_share=budget.macs_share,
                accuracy=budget.accuracy_in(_precision_of(budget, settings) or ""),
                artifact=msgspec.convert(
                    msgspec.to_builtins(budget.artifact(settings.runtime, _precision_of(budget, settings))), ArtifactRecord
                ),
                method=budget.method,
                own_pattern=budget.own_pattern,
            )
            for budget in chosen
        ),
        settings=settings,
        environment=environment,
    )


def _precision_of(budget: Budget, settings: RunSettings) -> str | None:
    return split_label(budget.name, settings.precision)[1]
