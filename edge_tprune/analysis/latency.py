"""A profile of probes becomes a cost model of the board that it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_tprune.analysis.loading import find_profiles, load_rows
from edge_tprune.analysis.table import Row
from edge_tprune.documents import InvalidDocument
from edge_tprune.errors import UserError
from edge_tprune.files import check_own
from edge_tprune.record.document import RunDocument
from edge_tprune.record.reader import Run, read_run
from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency import KIND, LATENCY, SLICE, CostModel, Latency, NetworkRecord
from edge_tprune.schedule.latency_fit import Measured, fit_cost
from edge_tprune.text import command_line

METRICS = ("p50_ms", "p95_ms")
ENERGY = "energy_mj_per_image"


def model_latency(path: Path, *, force: bool = False) -> Latency:
    """The cost models of the profile at `path`, which measured a bundle of `build --probe` (or another with the graphs that it takes).

    Args:
        path: the profile's directory.
        force: also where the run was disturbed.

    Raises:
        UserError: no such profile, one that was disturbed, or graphs that do not make a model.
    """
    places = find_profiles(path)
    # Counted before the rows are read: it may be measured still.
    turns = _count_turns(read_run(places[0], keep=False)) if len(places) == 1 else 0
    rows = list(load_rows(path))
    if len({row.profile.path for row in rows}) != 1:
        raise UserError(f"{path} holds several profiles: name the one of the probe bundle")
    document = rows[0].profile.document
    if len(precisions := dict.fromkeys(row.precision for row in rows)) > 1:
        raise UserError(
            f"profile {path} has graphs in {', '.join(precisions)}, and a model is of one precision: profile with one --precision"
        )
    status, reasons = _verdict(rows)
    if status != "valid" and not force:
        raise UserError(
            f"profile {path} was disturbed while it measured ({status}: {reasons}): profile again on a quiet machine, "
            "or pass --force to take it as it is"
        )
    if untimed := [row.budget for row in rows if not row.rounds]:
        raise UserError(f"profile {path} has no times of {', '.join(untimed)}: a model needs every graph. Profile again")
    shape = _shape(document)
    costs = {metric: _cost(shape, metric, rows) for metric in METRICS}
    if all((row.values.get(ENERGY) or 0.0) > 0 for row in rows):  # a sensor that is dead says 0
        costs[ENERGY] = _energy(shape, rows)
    return _describe(document, rows[0], status, costs, turns)


def read_latency(path: Path) -> Latency:
    """The latency.json of the profile at `path`.

    Raises:
        UserError: there is none, or it is of another run than the profile, or of a part of it.
    """
    found, run = KIND.read(path), read_run(path, keep=False)
    again = f"remove it, and make it again with {command_line('edge-tprune', 'latency', path)}"
    if found.run_id != run.document.run_id:
        raise UserError(
            f"{path / LATENCY} was made of run {found.run_id}, and the profile is of run {run.document.run_id}: {again}"
        )
    if found.turns not in (None, turns := _count_turns(run)):
        raise UserError(f"{path / LATENCY} was made of {found.turns} turns, and the profile has {turns}: {again}")
    return found


def _count_turns(run: Run) -> int:
    return sum(turn.complete for turn in run.turns)


def write_latency(path: Path, *, force: bool = False) -> Latency:
    """`model_latency`, written into the profile as latency.json."""
    found = model_latency(path, force=force)
    profile = find_profiles(path)[0]
    check_own(profile / LATENCY, KIND.begins, "a latency model")
    try:
        KIND.write(profile, found)
    except InvalidDocument as error:
        raise UserError(f"profile {profile}: no model fits its latencies ({error}). Measure again") from error
    return found


def round_effects(by_round: Sequence[Mapping[int, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cost of each graph and its standard error, from costs per round: what a round did to all graphs is taken out of it.

    Additive in logarithms: the graph's median over the rounds of log(cost) minus the round's median over the graphs (one step of Tukey's
    median polish), at the level of the median round. Only rounds with every graph count.

    Raises:
        UserError: fewer than two rounds have every graph.
    """
    common = sorted(set.intersection(*(set(rounds) for rounds in by_round)))
    if len(common) < 2:
        raise UserError("the profile has fewer than two whole rounds: profile with more --rounds")
    logs = np.log(np.array([[rounds[index] for index in common] for rounds in by_round]))
    level = np.median(logs, axis=0)
    relative = logs - level
    centre = np.median(relative, axis=1)
    spread = 1.4826 * np.median(np.abs(relative - centre[:, None]), axis=1)
    values = np.exp(centre + np.median(level))
    return values, values * spread * np.sqrt(np.pi / 2 / len(common))


def _cost(shape: NetworkShape, metric: str, rows: Sequence[Row]) -> CostModel:
    values, errors = round_effects([row.by_round[metric] for row in rows])
    return fit_cost(shape, metric, _measured(rows, values, errors))


def _energy(shape: NetworkShape, rows: Sequence[Row]) -> CostModel:
    values, errors = [], []
    for row in rows:
        interval = row.intervals.get(ENERGY)
        values.append(row.values[ENERGY] or 0.0)
        known = interval is not None and interval.low is not None and interval.high is not None
        errors.append((interval.high - interval.low) / 3.92 if known else 0.0)  # type: ignore[union-attr,operator]
    return fit_cost(shape, ENERGY, _measured(rows, np.array(values), np.array(errors)))


def _measured(rows: Sequence[Row], values: NDArray[np.float64], errors: NDArray[np.float64]) -> list[Measured]:
    return [
        Measured(SLICE if row.unpruned else row.method, tuple(row.schedule), float(value), float(error))
        for row, value, error in zip(rows, values, errors)
    ]


def _verdict(rows: Sequence[Row]) -> tuple[str, str]:
    """The worst of the graphs' verdicts, and its reasons."""
    order = {"valid": 0, "suspect": 1, "invalid": 2}
    worst, reasons = "valid", ""
    for row in rows:
        if row.unfit is not None:
            return "invalid", f"{row.budget}: {row.unfit}"
        verdict = row.verdict
        if verdict is not None and order.get(verdict.status, 1) > order[worst]:
            worst = verdict.status if verdict.status in order else "suspect"
            reasons = f"{row.budget}: {'; '.join(verdict.reasons) or 'not said why'}"
    return worst, reasons


def _shape(document: RunDocument) -> NetworkShape:
    """The sizes that a schedule is checked against: tokens, blocks, and what the head reads as the graphs show. MACs are not needed."""
    model = document.bundle.model
    tokens, prefix, blocks = model.tokens, model.prefix_tokens, model.blocks
    last = {budget.schedule[-1] for budget in document.budgets if budget.schedule[-1] <= prefix}
    return NetworkShape.plain(tokens, prefix, blocks, 1, 1, 1, 1, 1, read_tokens=min(last, default=None))


def _describe(document: RunDocument, row: Row, status: str, costs: dict[str, CostModel], turns: int) -> Latency:
    model, settings, conditions = document.bundle.model, document.settings, row.conditions
    known = [conditions[key] for key in ("board", "CPU", "device") if conditions.get(key, "unknown") != "unknown"]
    return Latency(
        run_id=document.run_id,
        network=NetworkRecord(
            name=model.name,
            weights_sha256=model.weights_sha256,
            tokens=model.tokens,
            blocks=model.blocks,
        ),
        runtime=settings.runtime,
        precision=settings.precision,
        batch=document.bundle.batch,
        threads=settings.threads,
        power_mode=None if conditions.get("power mode", "unknown") == "unknown" else conditions["power mode"],
        machine=", ".join(known) or "unknown",
        status=status,
        costs=costs,
        turns=turns,
    )
