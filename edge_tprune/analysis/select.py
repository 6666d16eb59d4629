"""Choosing one budget under constraints: the answer, the room it leaves, what the runner-up would trade; or an honest no."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from edge_tprune.analysis.compare import describe_differences, metric_text, row_document, say
from edge_tprune.analysis.equality import equal_within_noise
from edge_tprune.analysis.limits import (
    ACCURACY_LIMITS,
    LIMITS,
    Limit,
    Margin,
    exact,
    join_limits,
    limits_from,
    margin_text,
    margins_of,
    option,
    quantity,
)
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Group, Row, Rows, group
from edge_tprune.errors import NegativeAnswer, UserError, did_you_mean

FORMAT = "edge-tprune-choice"
VERSION = 2


#: objective -> the metrics that can stand for it; the first that some row has is taken
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "latency": ("p50_ms",),
    "p95": ("p95_ms",),
    "energy": ("energy_mj_per_image",),
    "power": ("mean_power_w",),
    "throughput": ("throughput_images_per_s",),
    "accuracy": ("top1_percent", "agreement_percent"),
    "memory": ("peak_memory_mb",),
    "macs": ("macs_g",),
}
_SUPERLATIVE = {
    "latency": "fastest",
    "p95": "fastest at p95",
    "energy": "most frugal per image",
    "power": "lowest in power",
    "throughput": "highest-throughput",
    "accuracy": "most accurate",
    "memory": "smallest in memory",
    "macs": "cheapest in MACs",
}
_NO_OTHER = "There is no runner-up: no other budget can be chosen."
_HOW_TO_MEASURE = {
    **dict.fromkeys(("top1_drop_points", "agreement_percent", "top1_percent"), "edge-tprune eval"),
    **dict.fromkeys(("mean_power_w", "energy_mj_per_image"), "edge-tprune doctor, which lists the power sensors of a machine"),
    "missed_deadlines_percent": "edge-tprune profile --fps",
}


@dataclass(frozen=True)
class Choice:
    """The answer and what it rests on."""

    row: Row
    objective: str
    metric: Metric  #: what stood for the objective
    margins: tuple[Margin, ...]  #: to each constraint, all kept
    reason: str
    equals: tuple[Row, ...]  #: rows that also fit and whose objective cannot be told from the chosen row's
    runner_up: Row | None
    trade: str  #: what the runner-up would cost and gain, or why there is none
    pareto: tuple[Row, ...]  #: the rows that no other beats in both of `pareto_metrics`, best in the first one first
    pareto_metrics: tuple[Metric, ...]  #: a cost and accuracy; empty where accuracy is not known
    left_out: tuple[tuple[Row, str], ...]  #: rows that could not be considered, and why
    caveats: tuple[str, ...]  #: what a person should know before acting on this

    def to_document(self) -> dict[str, Any]:
        """The choice as one JSON document."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "chosen": row_document(self.row),
            "objective": {"name": self.objective, "metric": self.metric.name, "better": self.metric.better},
            "constraints": [margin.to_json() for margin in self.margins],
            "reason": self.reason,
            "equal": [row_document(row) for row in self.equals],
            "runner_up": None if self.runner_up is None else {**row_document(self.runner_up), "trade": self.trade},
            "pareto_front": [row_document(row) for row in self.pareto],
            "pareto_metrics": [metric.name for metric in self.pareto_metrics],
            "left_out": [{"method": row.method, "budget": row.budget, "why": why} for row, why in self.left_out],
            "conditions": dict(self.row.conditions),
            "caveats": list(self.caveats),
        }


@dataclass(frozen=True)
class Miss:
    """The row that comes nearest to one constraint, of those that keep all the others (of all, where none does)."""

    limit: Limit
    row: Row
    value: float

    @property
    def short(self) -> float:
        """How far beyond the bound, in the metric's unit; positive."""
        return -self.limit.margin(self.value)


class NothingFits(NegativeAnswer):
    """No row keeps every constraint. The message names the nearest miss per constraint."""

    def __init__(self, message: str, misses: tuple[Miss, ...], left_out: tuple[tuple[Row, str], ...]) -> None:
        super().__init__(message)
        self.misses = misses
        self.left_out = left_out

    def to_document(self) -> dict[str, Any]:
        """The no as one JSON document."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "chosen": None,
            "reason": str(self),
            "nearest_misses": [
                {
                    "constraint": miss.limit.name,
                    "bound": miss.limit.bound,
                    "value": miss.value,
                    "beyond": miss.short,
                    "row": row_document(miss.row),
                }
                for miss in self.misses
            ],
            "left_out": [{"method": row.method, "budget": row.budget, "why": why} for row, why in self.left_out],
        }


def choose(
    rows: Sequence[Row],
    constraints: Mapping[str, float | None] | None = None,
    objective: str | None = None,
    force: bool = False,
) -> Choice:
    """The best row that keeps every constraint.

    Rows whose objective cannot be told apart (paired by round where they ran together, by their intervals otherwise) are equal;
    of equal rows the more accurate one is chosen.

    Args:
        rows: which rows to choose from.
        constraints: names from LIMITS -> bound; None as a bound means no such constraint.
        objective: a name from OBJECTIVES. By default the lowest latency where accuracy is constrained, the highest accuracy
            where only other things are. Without constraints and objective: the fastest that loses at most
            DEFAULT_MAX_TOP1_DROP points of top-1 (or, without labels, gives that many percent of images another class).
        force: choose among rows that should not be compared, and say so in the answer.

    Raises:
        UserError: an unknown name, a bound that is no number, rows from different environments without `force`.
        NothingFits: no row keeps every constraint.
    """
    caveats = list(rows.left_out) if isinstance(rows, Rows) else []
    rows = list(rows)
    if not rows:
        raise UserError("there is nothing to choose from. Make a profile with: edge-tprune profile")
    limits = limits_from(constraints or {}, rows, default=objective is None)
    if objective is None:
        accuracy_is_bounded = any(limit.name in ACCURACY_LIMITS for limit in limits)
        objective = "latency" if accuracy_is_bounded else "accuracy"
    if objective not in OBJECTIVES:
        near = did_you_mean(objective, OBJECTIVES)
        raise UserError(f"no objective {objective!r} (there are: {', '.join(OBJECTIVES)}).{near}")
    if len(group(rows)) > 1:
        what = describe_differences(rows)
        if not force:
            raise UserError(f"these profiles are not comparable: they differ in {what}. Name comparable ones, or pass --force")
        caveats.append(f"forced: the rows differ in {what}")
    candidates = OBJECTIVES[objective]
    metric = METRICS[next((name for name in candidates if any(row.value(name) is not None for row in rows)), candidates[0])]
    able, left_out = _able(rows, limits, metric)
    fits = [row for row in able if all(margin.room >= 0 for margin in margins_of(row, limits))]
    if not fits:
        raise _nothing_fits(rows, able, limits, metric, left_out)
    row, equals = _best(fits, metric)
    others = [other for other in fits if other is not row]
    runner_up = _best(others, metric)[0] if others else None
    margins = margins_of(row, limits)
    axes = _pareto_metrics(rows, metric, limits)
    return Choice(
        row=row,
        objective=objective,
        metric=metric,
        margins=margins,
        reason=_reason(row, rows, objective, metric, margins, equals),
        equals=equals,
        runner_up=runner_up,
        trade=_trade(row, runner_up, rows, [metric, *(limit.metric for limit in limits)]) if runner_up else _NO_OTHER,
        pareto=pareto_front(rows, *axes) if axes else (),
        pareto_metrics=axes,
        left_out=left_out,
        caveats=(*caveats, *_caveats(row, margins, left_out, rows)),
    )


def choose_each(
    rows: Sequence[Row], constraints: Mapping[str, float | None] | None = None, objective: str | None = None
) -> list[tuple[Group, Choice | NothingFits]]:
    """`choose` inside each group of comparable rows."""
    answers: list[tuple[Group, Choice | NothingFits]] = []
    for members in group(rows):
        try:
            answers.append((members, choose(members.rows, constraints, objective)))
        except NothingFits as no:
            answers.append((members, no))
    return answers


def pareto_front(rows: Iterable[Row], *metrics: Metric) -> tuple[Row, ...]:
    """The rows that no other beats: none is as good in all metrics and better in one. Best in the first metric first.

    Rows that miss a metric, or must not be used, are not on the front; equal rows are all on it.
    """
    known = [row for row in rows if row.unfit is None and all(row.value(metric.name) is not None for metric in metrics)]
    costs = np.array([[metric.cost(row.value(metric.name)) for metric in metrics] for row in known])
    order = np.lexsort(costs.T[::-1]) if known else ()
    front = []
    for index in order:
        beats = (costs <= costs[index]).all(axis=1) & (costs < costs[index]).any(axis=1)
        if not beats.any():
            front.append(known[index])
    return tuple(front)


def _pareto_metrics(rows: Sequence[Row], objective: Metric, limits: Sequence[Limit]) -> tuple[Metric, ...]:
    """What is traded for accuracy: what was asked to be best, else what was bounded, else latency."""
    accuracy = accuracy_metric(rows)
    if accuracy is None:
        return ()
    loss = {metric for name in ACCURACY_LIMITS for metric in LIMITS[name][:1]} | {accuracy.name, "top1_percent"}
    asked = [metric for metric in (objective, *(limit.metric for limit in limits)) if metric.name not in loss]
    return (asked[0] if asked else METRICS["p50_ms"], accuracy)


def accuracy_metric(rows: Iterable[Row]) -> Metric | None:
    """What stands for accuracy in `rows`: top-1, else agreement with the unpruned model, else nothing."""
    rows = list(rows)
    return next((METRICS[n] for n in OBJECTIVES["accuracy"] if any(row.value(n) is not None for row in rows)), None)


def label(row: Row, among: Iterable[Row]) -> str:
    """What to call a row among others: its budget, with the method or the run where the budget alone does not tell."""
    others = [other for other in among if other is not row]
    text = row.name if any(other.method != row.method for other in others) else f"budget {row.budget}"
    twins = any((other.method, other.budget) == (row.method, row.budget) for other in others)
    return f"{text} of {row.profile.name}" if twins else text


def render_choice(choice: Choice, console: Console) -> None:
    """Prints the answer, the room it leaves, the runner-up and what to beware of."""
    say(console, choice.reason, "bold")
    for margin in choice.margins:
        say(console, f"  {margin_text(margin)}")
    if choice.runner_up is not None:
        say(console, f"Runner-up: {choice.trade}")
    else:
        say(console, choice.trade)
    if choice.pareto:
        names = ", ".join(label(row, choice.pareto).removeprefix("budget ") for row in choice.pareto)
        what = " and ".join(metric.label for metric in choice.pareto_metrics)
        say(console, f"Pareto front: no other budget beats these in both {what}: {names}.", "dim")
    for caveat in choice.caveats:
        say(console, f"warning: {caveat}", "yellow")


def _able(rows: Sequence[Row], limits: Sequence[Limit], metric: Metric) -> tuple[list[Row], tuple[tuple[Row, str], ...]]:
    """The rows that can be judged at all, and the others with the reason."""
    able, left_out = [], []
    for row in rows:
        needed = dict.fromkeys([limit.metric for limit in limits] + [metric])
        absent = [each for each in needed if row.value(each.name) is None]
        if row.unfit is not None:
            left_out.append((row, row.unfit))
        elif absent:
            left_out.append((row, " and ".join(_why_absent(row, metric) for metric in absent)))
        else:
            able.append(row)
    return able, tuple(left_out)


def _best(rows: Sequence[Row], metric: Metric) -> tuple[Row, tuple[Row, ...]]:
    """The row to prefer, and those that are equal to it in `metric`."""
    leader = min(rows, key=lambda row: metric.cost(row.value(metric.name)))
    tied = [row for row in rows if row is leader or equal_within_noise(row, leader, metric)]
    accuracy = [METRICS[name] for name in OBJECTIVES["accuracy"]]
    order = [*accuracy, metric, METRICS["p50_ms"]]
    best = min(tied, key=lambda row: [row.suspect is not None, *(each.cost(row.value(each.name)) for each in order)])
    return best, tuple(row for row in tied if row is not best)


def _nothing_fits(
    rows: Sequence[Row], able: Sequence[Row], limits: Sequence[Limit], metric: Metric, left_out: tuple[tuple[Row, str], ...]
) -> NothingFits:
    what = " and ".join(limit.text for limit in limits)
    if not able:
        needed = dict.fromkeys([limit.metric for limit in limits] + [metric])
        absent = [each for each in needed if all(row.value(each.name) is None for row in rows)]
        if absent:
            hint = next((f" Run: {_HOW_TO_MEASURE[each.name]}" for each in absent if each.name in _HOW_TO_MEASURE), "")
            return NothingFits(
                f"no budget can be chosen: {' and '.join(each.label for each in absent)} was not measured.{hint}", (), left_out
            )
        return NothingFits(f"no budget can be chosen: {_whys(left_out, rows)}", (), left_out)
    misses = []
    for limit in limits:
        others = [other for other in limits if other is not limit]
        near = [row for row in able if all(margin.room >= 0 for margin in margins_of(row, others))] or list(able)
        row = max(near, key=lambda row: margins_of(row, [limit])[0].room)
        margin = margins_of(row, [limit])[0]
        if margin.room < 0:
            misses.append(Miss(limit, row, margin.value))
    parts = [
        f"nearest to {option(miss.limit.name)} {quantity(miss.limit.bound, miss.limit.metric)} is {label(miss.row, rows)} "
        f"with {exact(miss.value, miss.limit)} ({exact(miss.short, miss.limit)} beyond)"
        for miss in misses
    ]
    left = f" Not considered: {_whys(left_out, rows)}." if left_out else ""
    return NothingFits(f"no budget fits ({what}): {'; '.join(parts)}.{left}", tuple(misses), left_out)


def _reason(
    row: Row, rows: Sequence[Row], objective: str, metric: Metric, margins: Sequence[Margin], equals: Sequence[Row]
) -> str:
    condition = f" with {join_limits([margin.limit for margin in margins])}" if margins else ""
    facts = [f"{METRICS['p50_ms'].label} {METRICS['p50_ms'].quantity(row.value('p50_ms'))}"] if row.value("p50_ms") else []
    if metric.name != "p50_ms":
        facts.insert(0, f"{metric.label} {metric.quantity(row.value(metric.name))}")
    facts += _versus_unpruned(row)
    name = label(row, rows)
    if name.startswith("budget "):
        name = name.capitalize()
    text = f"{name} is the {_SUPERLATIVE[objective]}{condition}: {', '.join(facts)}."
    if equals:
        names = ", ".join(label(other, rows) for other in equals)
        text += f" Equal within the noise: {names}; of equal ones the most accurate is taken."
    return text


def _versus_unpruned(row: Row) -> list[str]:
    """Speed-up and accuracy against the unpruned model, with their uncertainty."""
    if row.unpruned:
        return ["nothing is pruned"]
    facts = []
    speedup = row.intervals.get("speedup")
    if speedup is not None:
        text = metric_text(row, METRICS["speedup"])
        facts.append("as fast as unpruned within the noise" if text == "equal" else f"{text}× as fast as unpruned")
    change = row.intervals.get("top1_change_points")
    agreement = row.intervals.get("agreement_percent")
    points = METRICS["top1_change_points"]
    if change is not None:
        reach = points.range(change)
        facts.append(f"top-1 {points.quantity(change.value)}" + (f" (95 % interval {reach})" if reach else ""))
    elif agreement is not None:
        facts.append(f"same class as unpruned for {METRICS['agreement_percent'].quantity(agreement.value)} of the images")
    elif row.value("top1_percent") is None:
        facts.append("accuracy not measured")
    return facts


def _trade(row: Row, runner_up: Row, rows: Sequence[Row], asked: Sequence[Metric]) -> str:
    """What taking the runner-up instead would cost and gain, in latency, accuracy and what was asked for."""
    accuracy = accuracy_metric([row, runner_up])
    shown = dict.fromkeys([METRICS["p50_ms"], *([accuracy] if accuracy else []), *asked])
    shown.pop(METRICS["top1_drop_points"], None)  # top-1 itself says it
    parts = []
    for metric in shown:
        ours, theirs = row.value(metric.name), runner_up.value(metric.name)
        if ours is None or theirs is None or metric.format(ours) == metric.format(theirs):
            continue
        word = "better" if metric.is_better(theirs, ours) else "worse"
        noise = ", within the noise" if equal_within_noise(row, runner_up, metric) else ""
        parts.append(f"{metric.label} {metric.quantity(theirs)} instead of {metric.quantity(ours)} ({word}{noise})")
    return f"{label(runner_up, rows)}: {', '.join(parts)}." if parts else f"{label(runner_up, rows)}, which reads the same."


def _why_absent(row: Row, metric: Metric) -> str:
    why = row.why_missing.get(metric.name)
    return f"{metric.label} not measured" + (f" ({why})" if why else "")


def _whys(left_out: Sequence[tuple[Row, str]], rows: Sequence[Row]) -> str:
    """Rows that share a reason, named together."""
    reasons: dict[str, list[str]] = {}
    for row, why in left_out:
        reasons.setdefault(why, []).append(label(row, rows))
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())


def _caveats(row: Row, margins: Sequence[Margin], left_out: Sequence[tuple[Row, str]], rows: Sequence[Row]) -> list[str]:
    caveats = []
    if row.suspect is not None:
        caveats.append(f"the measurement of {label(row, rows)} is suspect: {row.suspect}")
    for margin in margins:
        if margin.sure is False and margin.interval is not None:
            reach = margin.limit.metric.range(margin.interval)
            caveats.append(
                f"{join_limits([margin.limit])} is kept, but not for sure"
                + (f": the 95 % interval is {reach}" if reach else "")
            )
    if row.rounds == 1:
        caveats.append("only one round was measured: how sure the speed-up is cannot be told")
    if left_out:
        caveats.append(f"not considered: {_whys(left_out, rows)}")
    return [*caveats, *row.profile.warnings]
