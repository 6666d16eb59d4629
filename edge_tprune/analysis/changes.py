"""Two points in time: what got slower, less efficient or less accurate from one set of profiles to another, beyond the noise.

Two runs share no rounds, so their intervals are combined instead of paired; accuracy on the same images is paired image by image. Many
budgets and metrics are judged at once, so the intervals are widened until all of them together are of 95 % (Bonferroni). A change is

- worse (or better): its interval leaves out "no change" and its value is beyond the margin;
- equal: its whole interval is inside the margin;
- not resolved: anything else. Where the interval's bad end is inside the margin, it is at least no regression.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_tprune.analysis.conditions import FIXED
from edge_tprune.analysis.contrast import (
    ACCURACY,
    BETWEEN_RUNS,
    SIGNIFICANCE,
    EqualityMargin,
    combine,
    count_to_resolve,
    image_bits,
    interval_of,
    is_same_evaluation,
    is_yardstick,
    resolve,
)
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Row, find_differences
from edge_tprune.errors import UserError
from edge_tprune.statistics import Interval, bonferroni, mcnemar, paired_share_difference

ChangeVerdict = Literal["worse", "better", "equal", "not resolved"]
VERDICTS: tuple[ChangeVerdict, ...] = ("worse", "better", "equal", "not resolved")

#: What is judged, in the order of the table. Throughput says again what latency says.
JUDGED = (
    "p50_ms", "p95_ms", "speedup", "missed_deadlines_percent", "mean_power_w", "energy_mj_per_image", "peak_memory_mb",
    "top1_percent", "agreement_percent", "cosine_distance",
)  # fmt: skip
#: Least change that counts, in points: misses come in bursts, which their interval knows nothing of.
_LEAST_POINTS = {"missed_deadlines_percent": 1.0}
_POWER = ("mean_power_w", "energy_mj_per_image")
_ACCURACY = ("top1_percent", "agreement_percent", "cosine_distance")


@dataclass(frozen=True)
class Change:
    """One metric of one budget, then and now."""

    metric: Metric
    old: float
    new: float
    interval: Interval  #: new over old, or new less old, as `metric.scale` says; widened for the family; ends None where they are unknown
    verdict: ChangeVerdict
    no_worse: bool  #: whether a regression beyond the margin is ruled out
    count: int  #: rounds, or images, that it rests on
    needed: int | None  #: how many would resolve it at the noise seen; None where it is resolved, or nobody can tell
    unit: Literal["rounds", "images"]


@dataclass(frozen=True)
class BudgetChange:
    """One budget, then and now."""

    old: Row
    new: Row
    changes: tuple[Change, ...]
    unfit: str | None  #: why it cannot be judged

    @property
    def broken(self) -> bool:
        """Whether it worked then and gives wrong outputs now, which no measurement is needed for to call worse."""
        return self.old.unfit is None and self.new.failed_check


@dataclass(frozen=True)
class Changes:
    """What became of every budget that was measured at both times."""

    budgets: tuple[BudgetChange, ...]
    gone: tuple[Row, ...]  #: measured then, not now
    added: tuple[Row, ...]  #: measured now, not then
    differences: dict[str, tuple[str, ...]]  #: what else is not the same: label -> then and now
    margin: EqualityMargin
    remarks: tuple[str, ...]

    def select(self, verdict: ChangeVerdict) -> list[tuple[BudgetChange, Change]]:
        """All changes with this verdict."""
        return [(budget, change) for budget in self.budgets for change in budget.changes if change.verdict == verdict]

    @property
    def undecided(self) -> list[tuple[BudgetChange, Change]]:
        """Changes of which nobody can tell whether they are regressions."""
        return [(budget, change) for budget, change in self.select("not resolved") if not change.no_worse]


def find_changes(old: Sequence[Row], new: Sequence[Row], margin: EqualityMargin = BETWEEN_RUNS, force: bool = False) -> Changes:
    """What changed from `old` to `new`, budget by budget of the same model and method.

    Args:
        old, new: rows of either time; of a budget that was measured several times, the newest run counts.
        margin: the largest change that counts as equal.
        force: compare although machine, power mode, load, model or batch differ, and say so.

    Raises:
        UserError: no budget in common, or the two were measured under different conditions and `force` is not given.
    """
    then, now = _newest(old), _newest(new)
    common = {key: partner for key in now if (partner := _partner(key, now, then)) is not None}
    if not common:
        raise UserError(
            f"these profiles have no budget of the same model and method in common: then {_names(then.values())}; "
            f"now {_names(now.values())}"
        )
    differences = find_differences([row for key, partner in common.items() for row in (then[partner], now[key])], ignore=())
    foreign = [label for label in FIXED if label in differences]
    if foreign and not force:
        what = ", ".join(f"{label} ({', '.join(differences[label])})" for label in foreign)
        raise UserError(
            f"these profiles are not two points in time of one thing: they differ in {what}. Pass --force to compare anyway"
        )
    remarks = [f"forced: they differ in {', '.join(foreign)}"] if foreign else []
    remarks += _list_incomparable(differences)
    drafts = [(then[partner], now[key], _common_metrics(then[partner], now[key])) for key, partner in common.items()]
    family = sum(len(metrics) for _, _, metrics in drafts)
    budgets = []
    for before, after, metrics in drafts:
        unfit = next((f"{when}: {row.unfit}" for when, row in (("then", before), ("now", after)) if row.unfit), None)
        changes = () if unfit else tuple(_judge(before, after, metric, family, margin) for metric in metrics)
        budgets.append(BudgetChange(before, after, changes, unfit))
        remarks += [f"{row.name}: {row.suspect}" for row in (before, after) if row.suspect]
    return Changes(
        tuple(budgets),
        tuple(row for key, row in then.items() if key not in common.values()),
        tuple(row for key, row in now.items() if key not in common),
        differences,
        margin,
        tuple(dict.fromkeys(remarks)),
    )


_Key = tuple[str, str, str, str]  # model, method, budget, precision


def _partner(key: _Key, now: Collection[_Key], then: Collection[_Key]) -> _Key | None:
    """What a budget is compared with: itself in the same precision; in another where either time has one precision only."""
    if key in then:
        return key
    mine, theirs = ([each for each in keys if each[:3] == key[:3]] for keys in (now, then))
    return theirs[0] if len(mine) == len(theirs) == 1 else None


def _newest(rows: Sequence[Row]) -> dict[_Key, Row]:
    found: dict[_Key, Row] = {}
    for row in sorted(rows, key=lambda row: row.profile.started_utc, reverse=True):
        found.setdefault((row.model, row.method, row.budget.removesuffix(f"@{row.precision}"), row.precision), row)
    order = {id(row): index for index, row in enumerate(rows)}
    return dict(sorted(found.items(), key=lambda item: order[id(item[1])]))


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(f"{row.model} {row.name}" for row in rows)


def _list_incomparable(differences: dict[str, tuple[str, ...]]) -> list[str]:
    remarks = []
    if {"eval data", "eval data hash"} & differences.keys():
        remarks.append("accuracy is not compared: it was judged on other images")
    if "power sensor" in differences:
        sensors = ", ".join(differences["power sensor"])
        remarks.append(f"power and energy are not compared: they come from other sensors ({sensors})")
    return remarks


def _common_metrics(old: Row, new: Row) -> list[Metric]:
    """The metrics that both have and that mean the same in both."""
    found = [METRICS[name] for name in JUDGED if all(_is_comparable(row.value(name), METRICS[name]) for row in (old, new))]
    if old.conditions.get("power sensor") != new.conditions.get("power sensor"):
        found = [metric for metric in found if metric.name not in _POWER]
    if any(old.conditions.get(label) != new.conditions.get(label) for label in ("eval data", "eval data hash")):
        found = [metric for metric in found if metric.name not in _ACCURACY]
    if is_yardstick(old):
        found = [metric for metric in found if metric.name != "speedup"]
    if METRICS["top1_percent"] in found:  # with labels, agreement says nothing more
        found = [metric for metric in found if metric.name != "agreement_percent"]
    return found


def _is_comparable(value: float | None, metric: Metric) -> bool:
    """Whether it was measured; and a factor between two amounts needs both to be positive."""
    return value is not None and (metric.scale == "difference" or value > 0)


def _judge(old: Row, new: Row, metric: Metric, family: int, margin: EqualityMargin) -> Change:
    """The change of one metric that both rows have, as one of `family` that are judged together."""
    before, after = old.value(metric.name), new.value(metric.name)
    if before is None or after is None:
        raise ValueError(f"{metric.name} was not measured at both times")
    margin = EqualityMargin(margin.percent, max(margin.points, _LEAST_POINTS.get(metric.name, 0.0)))
    bits = image_bits(new, old, metric)
    count, unit = min(old.rounds, new.rounds), "rounds"
    if bits is not None:
        ours, theirs = bits
        won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        interval = bonferroni(paired_share_difference(won, lost, ours.size).scaled(100), family).within(-100, 100)
        beyond, single, count, unit = mcnemar(won, lost) < SIGNIFICANCE / family, False, ours.size, "images"
    elif is_same_evaluation(old, new, metric):
        interval, beyond, single, unit = Interval(0.0, 0.0, 0.0), False, False, "images"
    else:
        estimates = interval_of(new, metric), interval_of(old, metric)
        interval = bonferroni(_combine(metric, before, after, estimates), family)
        single = None in estimates  # one measurement each, as of memory: the margin alone decides
        beyond = single or interval.excludes(1.0 if metric.scale == "ratio" else 0.0)
    resolution = resolve(interval, metric, margin)
    close = resolution == "equal" or (single and not _is_beyond(interval.value, metric, margin))
    verdict: ChangeVerdict = "equal" if close else "not resolved"
    if not close and beyond and _is_beyond(interval.value, metric, margin):
        verdict = "better" if metric.is_better(after, before) else "worse"
    if metric.name in ACCURACY and bits is None:  # how many images there were is not recorded beside it
        count, unit = 0, "images"
    needed = count_to_resolve(interval, metric, margin, count) if verdict == "not resolved" and count else None
    no_worse = verdict in ("equal", "better") or (verdict != "worse" and not _may_be_worse(interval, metric, margin))
    return Change(metric, before, after, interval, verdict, no_worse, count, needed, "images" if unit == "images" else "rounds")


def _combine(metric: Metric, old: float, new: float, estimates: tuple[Interval | None, Interval | None]) -> Interval:
    """New against old, centred on the two values: top-1 is as uncertain as its change from the unpruned model."""
    after, before = (
        Interval(value, None, None) if estimate is None else estimate.at(value)
        for value, estimate in zip((new, old), estimates)
    )
    return combine(metric, after, before)


def _is_beyond(value: float, metric: Metric, margin: EqualityMargin) -> bool:
    """Whether a change of this size counts, were it known exactly."""
    return resolve(Interval(value, value, value), metric, margin) != "equal"


def _may_be_worse(interval: Interval, metric: Metric, margin: EqualityMargin) -> bool:
    """Whether the interval's bad end is unknown, or beyond the margin."""
    neutral = 1.0 if metric.scale == "ratio" else 0.0
    end = interval.high if metric.better == "lower" else interval.low
    if end is None:
        return True
    worse = end > neutral if metric.better == "lower" else end < neutral
    return worse and _is_beyond(end, metric, margin)
