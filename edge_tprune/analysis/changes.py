"""Two points in time: what got slower, hungrier or less accurate from one set of profiles to another, beyond the noise.

Two runs share no rounds, so their intervals are combined instead of paired; accuracy on the same images is paired image by image. A
change counts where its interval leaves out "no change" and its size is above a tolerance, because another start of the same program on
the same machine differs by a per cent or two for reasons that no number of rounds shows. Many budgets and metrics are judged at once, so
the intervals are widened until all of them together are of 95 % (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from edge_tprune.analysis.compare import Column, name_columns, print_table, say
from edge_tprune.analysis.conditions import FIXED
from edge_tprune.analysis.equality import SIGNIFICANCE, interval_of, same_images
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Row, differences
from edge_tprune.errors import UserError
from edge_tprune.statistics import Interval, combine_difference, combine_ratio, mcnemar, paired_difference, simultaneous

FORMAT = "edge-tprune-changes"
VERSION = 1
DEFAULT_TOLERANCE_PERCENT = 3.0

#: What is judged, in the order of the table. Throughput says again what latency says.
_JUDGED = (
    "p50_ms", "p95_ms", "speedup", "missed_deadlines_percent", "mean_power_w", "energy_mj_per_image", "peak_memory_mb",
    "top1_percent", "agreement_percent",
)  # fmt: skip
#: Least change that counts, in points: misses come in bursts, which their interval knows nothing of.
_LEAST_POINTS = {"missed_deadlines_percent": 1.0}
_POWER = ("mean_power_w", "energy_mj_per_image")
_ACCURACY = ("top1_percent", "agreement_percent")


@dataclass(frozen=True)
class Change:
    """One metric of one budget, then and now."""

    metric: Metric
    old: float
    new: float
    interval: Interval  #: new over old, or new less old, as `metric.scale` says; ends None where they are unknown
    verdict: Literal["worse", "better", "equal", "unknown"]  #: unknown: too few rounds to tell noise from change

    @property
    def text(self) -> str:
        """'+11.8 % ±2.1', 'equal', '-3.4 points ±1.2', '+11.8 % ±?'."""
        if self.verdict == "equal":
            return "equal"
        if self.verdict == "unknown":
            return f"{self._signed(self.interval.value)} {self.unit} ±?"
        return f"{self._signed(self.interval.value)} {self.unit}{self._half_width}"

    @property
    def unit(self) -> str:
        """Of the change: per cent of the old value, or points where the metric itself is a percentage."""
        return "%" if self.metric.scale == "ratio" else "points"

    @property
    def sentence(self) -> str:
        """'p50 latency 7.57 ms instead of 6.77 ms (+11.8 %, 95 % interval +9.7 to +14.0 %)'."""
        interval, reach = self.interval, ""
        if interval.low is not None and interval.high is not None:
            reach = f", 95 % interval {self._signed(interval.low)} to {self._signed(interval.high)} {self.unit}"
        change = f"{self._signed(interval.value)} {self.unit}"
        return f"{self.metric.label} {self.metric.quantity(self.new)} instead of {self.metric.quantity(self.old)} ({change}{reach})"

    @property
    def _half_width(self) -> str:
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return ""
        half = max(high - self.interval.value, self.interval.value - low)
        return f" ±{half * 100 if self.metric.scale == 'ratio' else half:.1f}"

    def _signed(self, value: float) -> str:
        return f"{(value - 1) * 100 if self.metric.scale == 'ratio' else value:+.1f}"

    def to_json(self) -> dict[str, Any]:
        """The change as JSON."""
        return {
            "metric": self.metric.name,
            "old": self.old,
            "new": self.new,
            "scale": self.metric.scale,
            "change": self.interval.to_json(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Pair:
    """One budget, then and now."""

    old: Row
    new: Row
    changes: tuple[Change, ...]
    unfit: str | None  #: why it cannot be judged


@dataclass(frozen=True)
class Changes:
    """What became of every budget that was measured at both times."""

    pairs: tuple[Pair, ...]
    gone: tuple[Row, ...]  #: measured then, not now
    added: tuple[Row, ...]  #: measured now, not then
    differs: dict[str, tuple[str, ...]]  #: what else is not the same: label -> then and now
    tolerance_percent: float
    remarks: tuple[str, ...]

    def of(self, verdict: str) -> list[tuple[Pair, Change]]:
        """All changes that are "worse", "better", "equal" or "unknown"."""
        return [(pair, change) for pair in self.pairs for change in pair.changes if change.verdict == verdict]

    @property
    def failures(self) -> list[str]:
        """Why this is a regression, or cannot be ruled out to be one; empty where it is none."""
        found = [f"{pair.new.name}: {change.sentence}" for pair, change in self.of("worse")]
        found += [f"{pair.new.name} cannot be judged: {pair.unfit}" for pair in self.pairs if pair.unfit]
        return found + [f"{row.name} was not measured again" for row in self.gone]

    def to_document(self) -> dict[str, Any]:
        """The changes as one JSON document."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "regression": bool(self.failures),
            "failures": self.failures,
            "tolerance_percent": self.tolerance_percent,
            "differences": {label: list(values) for label, values in self.differs.items()},
            "budgets": [
                {
                    "method": pair.new.method,
                    "budget": pair.new.budget,
                    "old_profile": pair.old.profile.name,
                    "new_profile": pair.new.profile.name,
                    "unfit": pair.unfit,
                    "changes": [change.to_json() for change in pair.changes],
                }
                for pair in self.pairs
            ],
            "gone": [{"method": row.method, "budget": row.budget} for row in self.gone],
            "added": [{"method": row.method, "budget": row.budget} for row in self.added],
            "remarks": list(self.remarks),
        }


def find_changes(
    old: Sequence[Row], new: Sequence[Row], tolerance_percent: float = DEFAULT_TOLERANCE_PERCENT, force: bool = False
) -> Changes:
    """What changed from `old` to `new`, budget by budget of the same model and method.

    Args:
        old, new: rows of either time; of a budget that was measured several times, the newest run counts.
        tolerance_percent: changes of an amount (latency, power, memory) that are smaller are equal.
        force: compare although machine, power mode, load, model or batch differ, and say so.

    Raises:
        UserError: no budget in common, or the two were measured under different conditions and `force` is not given.
    """
    then, now = _newest(old), _newest(new)
    common = [key for key in now if key in then]
    if not common:
        raise UserError(
            f"these profiles have no budget of the same model and method in common: then {_names(then.values())}; "
            f"now {_names(now.values())}"
        )
    differs = differences([row for key in common for row in (then[key], now[key])])
    foreign = [label for label in FIXED if label in differs]
    if foreign and not force:
        what = ", ".join(f"{label} ({', '.join(differs[label])})" for label in foreign)
        raise UserError(
            f"these profiles are not two points in time of one thing: they differ in {what}. Pass --force to compare anyway"
        )
    remarks = [f"forced: they differ in {', '.join(foreign)}"] if foreign else []
    remarks += _left_out(differs)
    drafts = [(then[key], now[key], _judged(then[key], now[key])) for key in common]
    family = sum(len(metrics) for _, _, metrics in drafts)
    pairs = []
    for before, after, metrics in drafts:
        unfit = next((f"{when}: {row.unfit}" for when, row in (("then", before), ("now", after)) if row.unfit), None)
        changes = () if unfit else tuple(_change(before, after, metric, family, tolerance_percent / 100) for metric in metrics)
        pairs.append(Pair(before, after, changes, unfit))
        remarks += [f"{row.name}: {row.suspect}" for row in (before, after) if row.suspect]
    return Changes(
        tuple(pairs),
        tuple(row for key, row in then.items() if key not in now),
        tuple(row for key, row in now.items() if key not in then),
        differs,
        tolerance_percent,
        tuple(dict.fromkeys(remarks)),
    )


def render_changes(changes: Changes, console: Console) -> None:
    """Prints a row per budget, then each change that counts in words."""
    first, last = changes.pairs[0].old.profile, changes.pairs[0].new.profile
    say(console, f"From {first.name} ({first.started_utc[:10]}) to {last.name} ({last.started_utc[:10]})", "bold")
    rows = [pair.new for pair in changes.pairs]
    of = {id(pair.new): {change.metric.name: change for change in pair.changes} for pair in changes.pairs}

    def column(metric: Metric) -> Column:
        return Column(
            metric.name,
            metric.header,
            "",
            lambda row: of[id(row)][metric.name].text if metric.name in of[id(row)] else "–",
            metric,
        )

    judged = [METRICS[name] for name in _JUDGED if any(name in found for found in of.values())]
    print_table([*name_columns(rows), *map(column, judged)], rows, console, mark_best=False)
    worse, better = changes.of("worse"), changes.of("better")
    for what, found, style in (("worse", worse, "red"), ("better", better, "green")):
        for pair, change in found:
            say(console, f"{what}: {pair.new.name}: {change.sentence}", style)
    for row in changes.gone:
        say(console, f"not measured again: {row.name}", "red")
    for pair in changes.pairs:
        if pair.unfit:
            say(console, f"not judged: {pair.new.name}: {pair.unfit}", "red")
    total = sum(len(pair.changes) for pair in changes.pairs)
    say(
        console,
        f"{len(worse)} of {total} measures got worse, {len(better)} better, the rest are equal within the noise or within "
        f"{changes.tolerance_percent:g} % (95 % intervals for all of them together).",
    )
    unsure = changes.of("unknown")
    if unsure:
        say(console, f"warning: too few rounds to tell noise from change in {len(unsure)} of them", "yellow")
    other = [f"{label} ({' → '.join(values)})" for label, values in changes.differs.items()]
    if other:
        say(console, f"Not the same at both times: {', '.join(other)}.")
    for remark in changes.remarks:
        say(console, f"warning: {remark}", "yellow")


def _newest(rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    found: dict[tuple[str, str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row.profile.started_utc, reverse=True):
        found.setdefault((row.model, row.method, row.budget), row)
    order = {id(row): index for index, row in enumerate(rows)}
    return dict(sorted(found.items(), key=lambda item: order[id(item[1])]))


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(f"{row.model} {row.name}" for row in rows)


def _left_out(differs: dict[str, tuple[str, ...]]) -> list[str]:
    remarks = []
    if {"eval data", "eval data hash"} & differs.keys():
        remarks.append("accuracy is not compared: it was judged on other images")
    if "power sensor" in differs:
        remarks.append(
            f"power and energy are not compared: they come from other sensors ({', '.join(differs['power sensor'])})"
        )
    return remarks


def _judged(old: Row, new: Row) -> list[Metric]:
    """The metrics that both have and that mean the same in both."""
    found = [METRICS[name] for name in _JUDGED if all(_comparable(row.value(name), METRICS[name]) for row in (old, new))]
    if old.conditions.get("power sensor") != new.conditions.get("power sensor"):
        found = [metric for metric in found if metric.name not in _POWER]
    if any(old.conditions.get(label) != new.conditions.get(label) for label in ("eval data", "eval data hash")):
        found = [metric for metric in found if metric.name not in _ACCURACY]
    if old.unpruned:  # the yardstick itself
        found = [metric for metric in found if metric.name != "speedup"]
    if METRICS["top1_percent"] in found:  # with labels, agreement says nothing more
        found = [metric for metric in found if metric.name != "agreement_percent"]
    return found


def _comparable(value: float | None, metric: Metric) -> bool:
    """Whether it was measured; and a factor between two amounts needs both to be positive."""
    return value is not None and (metric.scale == "difference" or value > 0)


def _change(old: Row, new: Row, metric: Metric, family: int, tolerance: float) -> Change:
    before, after = old.value(metric.name), new.value(metric.name)
    if before is None or after is None:
        raise ValueError(f"{metric.name} was not measured at both times")
    ours, theirs = new.per_image.get(metric.name), old.per_image.get(metric.name)
    if ours is not None and theirs is not None and same_images(old, new):
        interval = paired_difference(100.0 * ours, 100.0 * theirs)
        beyond = mcnemar(int((ours & ~theirs).sum()), int((theirs & ~ours).sum())) < SIGNIFICANCE / family
    else:
        estimates = interval_of(new, metric), interval_of(old, metric)
        interval = _combined(metric, before, after, estimates)
        single = None in estimates  # one measurement each, as of memory: the tolerance alone decides
        wide = simultaneous(interval, family)
        beyond = wide.excludes(1.0 if metric.scale == "ratio" else 0.0)
        if metric.scale == "ratio":
            beyond = (beyond or single) and abs(interval.value - 1) > tolerance
        elif abs(interval.value) < _LEAST_POINTS.get(metric.name, 0.0):
            beyond = False
        if not single and not interval.known and after != before:
            return Change(metric, before, after, interval, "unknown")
    verdict: Literal["worse", "better", "equal"] = "equal"
    if beyond and after != before:
        verdict = "better" if metric.is_better(after, before) else "worse"
    return Change(metric, before, after, interval, verdict)


def _combined(metric: Metric, old: float, new: float, estimates: tuple[Interval | None, Interval | None]) -> Interval:
    """New against old, centred on the two values: top-1 is as uncertain as its change from the unpruned model."""
    after, before = (
        Interval(value, None, None) if estimate is None else estimate.at(value)
        for value, estimate in zip((new, old), estimates)
    )
    return combine_difference(after, before) if metric.scale == "difference" else combine_ratio(after, before)
