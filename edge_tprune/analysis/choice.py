"""Choosing one budget under constraints: a question, then an answer that holds everything it rests on. Nothing is said in words here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_tprune.analysis.contrast import WITHIN_RUN, Contrast, EqualityMargin, contrast
from edge_tprune.analysis.limits import ACCURACY_LIMITS, LIMITS, Headroom, Limit, headroom_of, make_limits
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Group, Row, Rows, describe_differences, find_differences, group_rows
from edge_tprune.errors import UserError, did_you_mean

#: objective -> the metrics that can stand for it; the first that some row has is taken
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "latency": ("p50_ms",),
    "p95": ("p95_ms",),
    "energy": ("energy_mj_per_image",),
    "power": ("mean_power_w",),
    "throughput": ("throughput_images_per_s",),
    "accuracy": ("top1_percent", "agreement_percent", "cosine_distance"),
    "divergence": ("kl_nats", "cosine_distance"),
    "memory": ("peak_memory_mb",),
    "macs": ("macs_g",),
}


@dataclass(frozen=True)
class Question:
    """What is asked of a set of rows."""

    limits: tuple[Limit, ...]
    objective: str  #: a name from OBJECTIVES
    metric: Metric  #: what stands for the objective
    margin: EqualityMargin = WITHIN_RUN

    @property
    def latency(self) -> Metric:
        """The percentile that the answer talks about: p95 where it was asked for, else the median."""
        asked = {self.metric.name, *(limit.metric.name for limit in self.limits)}
        return METRICS["p95_ms" if "p95_ms" in asked and "p50_ms" not in asked else "p50_ms"]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Everything that a row must have measured to be judged."""
        return tuple(dict.fromkeys([*(limit.metric for limit in self.limits), self.metric]))


@dataclass(frozen=True)
class Exclusion:
    """A row that could not be considered, and why."""

    row: Row
    unfit: str | None  #: why it must not be used whatever its numbers
    missing: tuple[Metric, ...]  #: what was not measured


@dataclass(frozen=True)
class Miss:
    """The row that comes nearest to one constraint, of those that keep all the others (of all, where none does)."""

    limit: Limit
    row: Row
    value: float

    @property
    def excess(self) -> float:
        """How far beyond the bound, in the metric's unit; positive."""
        return -self.limit.room(self.value)


@dataclass(frozen=True)
class Front:
    """The rows that no other beats in both of two metrics, best in the first one first."""

    cost: Metric
    accuracy: Metric
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Choice:
    """The answer and what it rests on."""

    question: Question
    row: Row
    rows: tuple[Row, ...]  #: all that were to choose from
    headroom: tuple[Headroom, ...]  #: to each constraint, all kept
    #: Rows that also fit and whose objective equals the best one's; the most accurate of them was taken, or the fastest (see `choose`).
    equals: tuple[Row, ...]
    #: Rows that also fit, of which it is not resolved whether their objective is better.
    unresolved: tuple[tuple[Row, Contrast], ...]
    runner_up: Row | None
    front: Front | None  #: None where accuracy is not known
    exclusions: tuple[Exclusion, ...]
    mixed: Mapping[str, tuple[str, ...]]  #: what differs between the rows, where choosing was forced: label -> values
    warnings: tuple[str, ...] = ()  #: profiles that could not be read, and why


@dataclass(frozen=True)
class NoChoice:
    """No row keeps every constraint, or none can be judged."""

    question: Question
    rows: tuple[Row, ...]
    misses: tuple[Miss, ...]  #: per constraint that nothing keeps; empty where no row can be judged
    exclusions: tuple[Exclusion, ...]


Answer = Choice | NoChoice


def make_question(
    rows: Sequence[Row],
    constraints: Mapping[str, float | None] | None = None,
    objective: str | None = None,
    margin: EqualityMargin = WITHIN_RUN,
) -> Question:
    """The question that constraints and an objective ask of `rows`.

    Args:
        rows: which rows to choose from: what they know decides what stands for accuracy.
        constraints: names from `limits.LIMITS` -> bound; None as a bound means no such constraint.
        objective: a name from OBJECTIVES. By default the lowest latency where accuracy is constrained, the highest accuracy
            where only other things are. Without constraints and objective: the fastest that loses at most
            `limits.DEFAULT_MAX_TOP1_DROP` points of top-1 (or, without labels, gives that many percent of images another class;
            of outputs other than logits, at most `limits.DEFAULT_MAX_COSINE_DISTANCE`).
        margin: the largest difference that counts as equal.

    Raises:
        UserError: an unknown name, or a bound that is no number.
    """
    limits = make_limits(constraints or {}, rows, default=objective is None)
    if objective is None:
        objective = "latency" if any(limit.name in ACCURACY_LIMITS for limit in limits) else "accuracy"
    if objective not in OBJECTIVES:
        near = did_you_mean(objective, OBJECTIVES)
        raise UserError(f"no objective {objective!r} (there are: {', '.join(OBJECTIVES)}).{near}")
    names = OBJECTIVES[objective]
    metric = METRICS[next((name for name in names if any(row.value(name) is not None for row in rows)), names[0])]
    return Question(limits, objective, metric, margin)


def choose(
    rows: Sequence[Row],
    constraints: Mapping[str, float | None] | None = None,
    objective: str | None = None,
    force: bool = False,
    margin: EqualityMargin = WITHIN_RUN,
) -> Answer:
    """The best row that keeps every constraint, or that there is none.

    Rows whose objective equals the best one's within the margin are ties, of which the most accurate is taken (of equally divergent ones the
    fastest). A row that is not
    resolved from the best is no tie: the better estimate is taken, and the answer names the others.

    Args:
        rows: which rows to choose from.
        constraints, objective, margin: as for `make_question`.
        force: choose among rows that should not be compared; the answer says what differs.

    Raises:
        UserError: a wrong question, nothing to choose from, or rows from different environments without `force`.
    """
    warnings = rows.left_out if isinstance(rows, Rows) else ()
    rows = tuple(rows)
    if not rows:
        raise UserError("there is nothing to choose from. Make a profile with: edge-tprune profile")
    question = make_question(rows, constraints, objective, margin)
    mixed = find_differences(rows)
    if mixed and not force:
        what = describe_differences(mixed)
        raise UserError(f"these profiles are not comparable: they differ in {what}. Name comparable ones, or pass --force")
    judged, exclusions = _judge(rows, question)
    fits = [row for row in judged if all(each.room >= 0 for each in headroom_of(row, question.limits))]
    if not fits:
        return NoChoice(question, rows, _misses(judged, question.limits), exclusions)
    row, equals = _best(fits, question)
    contrasts = [(other, contrast(other, row, question.metric, margin)) for other in fits if other is not row]
    others = [other for other in fits if other is not row]
    return Choice(
        question=question,
        row=row,
        rows=rows,
        headroom=headroom_of(row, question.limits),
        equals=equals,
        unresolved=tuple((other, each) for other, each in contrasts if each.resolution == "not resolved"),
        runner_up=_best(others, question)[0] if others else None,
        front=_front(rows, question),
        exclusions=exclusions,
        mixed=mixed,
        warnings=warnings,
    )


def choose_per_group(
    rows: Sequence[Row],
    constraints: Mapping[str, float | None] | None = None,
    objective: str | None = None,
    margin: EqualityMargin = WITHIN_RUN,
) -> list[tuple[Group, Answer]]:
    """`choose` inside each group of comparable rows."""
    return [(group, choose(group.rows, constraints, objective, margin=margin)) for group in group_rows(rows)]


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


def accuracy_metric(rows: Iterable[Row]) -> Metric | None:
    """What stands for accuracy in `rows`: top-1, else agreement with the unpruned model, else cosine distance from it, else nothing."""
    rows = list(rows)
    return next((METRICS[n] for n in OBJECTIVES["accuracy"] if any(row.value(n) is not None for row in rows)), None)


def _judge(rows: Sequence[Row], question: Question) -> tuple[list[Row], tuple[Exclusion, ...]]:
    """The rows that can be judged at all, and the others."""
    judged, exclusions = [], []
    for row in rows:
        missing = tuple(metric for metric in question.metrics if row.value(metric.name) is None)
        if row.unfit is not None or missing:
            exclusions.append(Exclusion(row, row.unfit, missing))
        else:
            judged.append(row)
    return judged, tuple(exclusions)


def _best(rows: Sequence[Row], question: Question) -> tuple[Row, tuple[Row, ...]]:
    """The row to prefer, and those that equal it in the objective."""
    metric = question.metric
    names = ["p50_ms", metric.name] if question.objective == "divergence" else [*OBJECTIVES["accuracy"], metric.name, "p50_ms"]
    order = [METRICS[name] for name in names]

    def rank(row: Row) -> list[float]:
        return [row.suspect is not None, *(each.cost(row.value(each.name)) for each in order)]

    leader = min(rows, key=lambda row: [metric.cost(row.value(metric.name)), *rank(row)])
    tied = [row for row in rows if row is leader or contrast(row, leader, metric, question.margin).resolution == "equal"]
    best = min(tied, key=rank)
    return best, tuple(row for row in tied if row is not best)


def _misses(judged: Sequence[Row], limits: Sequence[Limit]) -> tuple[Miss, ...]:
    """Per constraint that no row keeps together with the others: the nearest row."""
    misses = []
    for limit in limits if judged else ():
        others = [other for other in limits if other is not limit]
        near = [row for row in judged if all(each.room >= 0 for each in headroom_of(row, others))] or judged
        row = max(near, key=lambda row: headroom_of(row, [limit])[0].room)
        (headroom,) = headroom_of(row, [limit])
        if headroom.room < 0:
            misses.append(Miss(limit, row, headroom.value))
    return tuple(misses)


def _front(rows: Sequence[Row], question: Question) -> Front | None:
    """What is traded for accuracy: what was asked to be best, else what was bounded, else latency."""
    accuracy = accuracy_metric(rows)
    if accuracy is None:
        return None
    loss = {LIMITS[name][0] for name in ACCURACY_LIMITS} | {*OBJECTIVES["accuracy"], *OBJECTIVES["divergence"]}
    accuracy = question.metric if question.metric.name in loss else accuracy
    asked = [metric for metric in (question.metric, *(limit.metric for limit in question.limits)) if metric.name not in loss]
    cost = asked[0] if asked else question.latency
    return Front(cost, accuracy, pareto_front(rows, cost, accuracy))
