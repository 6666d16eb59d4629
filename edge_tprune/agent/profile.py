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
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edge_tprune.agent.observer import Observer
from edge_tprune.agent.probe import TOLERANCE
from edge_tprune.agent.progress import Progress
from edge_tprune.agent.rounds import random_order
from edge_tprune.agent.session import Job, check_space, see_through
from edge_tprune.bundle.bundle import Budget, Bundle
from edge_tprune.bundle.engines import prepare
from edge_tprune.errors import UserError
from edge_tprune.models.data import batches, open_dataset, open_images
from edge_tprune.models.preprocess import Preprocess
from edge_tprune.record.energy import choose_sensor
from edge_tprune.record.reader import read_run
from edge_tprune.record.writer import FORMAT, VERSION, Recorder, directory_name
from edge_tprune.runtime.engine import runtime_version
from edge_tprune.runtime.tensorrt.builder import BuildError
from edge_tprune.telemetry.environment import environment
from edge_tprune.telemetry.machine import identify, state
from edge_tprune.version import __version__

_ISOLATION = (
    "one engine at a time: each is loaded, warmed up, timed and closed before the next is loaded; the runtime's threads spin "
    "as they do by default; Python's garbage collection is off while timing; a process of its own reads the sensors"
)
_SECONDS = 1.0  #: of a turn, where no power sensor asks for more
_WARMUP_SECONDS = 0.5
_BASELINE_SECONDS = 1.0
_BASELINE_VALUES = 20  #: new values of a power sensor that a baseline should hold
_MOST_IMAGES = 64  #: of `images`, kept decoded in memory


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
    check_space(out)
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
            job = Job(bundle, chosen, plan, recorder, observer, inputs, dataset, root, progress)
            return see_through(job, trace)


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
    check_space(path)
    done = {(turn.round, turn.budget) for turn in before.rounds if turn.complete}
    with Observer(root) as observer, Recorder.reopen(path) as recorder:
        job = Job(
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
        return see_through(job, trace)


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
