"""What a table of rows shows: its columns, the text of each cell, which cells are best, and what has to be said below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_tprune.analysis.changes import JUDGED, Changes
from edge_tprune.analysis.conditions import NOT_EVALUATED, UNKNOWN
from edge_tprune.analysis.contrast import WITHIN_RUN, EqualityMargin, contrast, speedup_contrast
from edge_tprune.analysis.metrics import METRICS, MISSING, Metric
from edge_tprune.analysis.table import Group, Row
from edge_tprune.analysis.wording import NOT_RESOLVED, abbreviate_change, describe_need

_CONDITIONS_IN_TITLE = (
    "model", "batch", "runtime", "precision", "threads", "load", "CPU", "device", "board", "power mode", "clocks", "host", "eval data",
)  # fmt: skip
_SILENT = (UNKNOWN, NOT_EVALUATED, "saturation")  #: what a title need not say


@dataclass(frozen=True)
class Column:
    """One column of a comparison: how it is headed, and what it says per row."""

    name: str
    label: str
    unit: str
    text: Callable[[Row], str]
    metric: Metric | None = None  #: None for names
    margin: EqualityMargin = WITHIN_RUN

    def best(self, rows: Sequence[Row]) -> list[bool]:
        """Which rows deserve a mark: the best value, and those that are not resolved from it. None where that would be all."""
        metric = self.metric
        if metric is None or metric.better is None:
            return [False] * len(rows)
        known = [row for row in rows if row.value(metric.name) is not None and row.unfit is None]
        if len({metric.format(row.value(metric.name)) for row in known}) < 2:
            return [False] * len(rows)
        top = min(known, key=lambda row: metric.cost(row.value(metric.name)))
        tied = [row for row in known if row is top or self._is_tied(row, top, metric)]
        return [len(tied) < len(known) and any(row is each for each in tied) for row in rows]

    def _is_tied(self, row: Row, top: Row, metric: Metric) -> bool:
        """Values that read the same are one; others are tied where the measurement cannot tell them apart."""
        if metric.format(row.value(metric.name)) == metric.format(top.value(metric.name)):
            return True
        found = contrast(row, top, metric, self.margin)
        return found.interval.known and not found.interval.excludes(1.0 if metric.scale == "ratio" else 0.0)


@dataclass(frozen=True)
class TableRows:
    """The rows that a table shows, of those that a group holds."""

    rows: tuple[Row, ...]
    merged: tuple[Row, ...] = ()  #: the unpruned model as every method's run measured it; one of them is shown

    @property
    def unpruned(self) -> Row | None:
        """The row that stands for all of `merged`."""
        return next((row for row in self.rows if any(row is each for each in self.merged)), None)


def merge_unpruned(rows: Sequence[Row], preferred: Row | None = None) -> TableRows:
    """One row for the unpruned model, which every method's run measures again: `preferred` where it is one of them, else the newest."""
    unpruned = [row for row in rows if row.unpruned and row.unfit is None]
    if len(unpruned) < 2 or len({row.method for row in unpruned}) < len(unpruned):
        return TableRows(tuple(rows))
    kept = next((row for row in unpruned if row is preferred), max(unpruned, key=lambda row: row.profile.started_utc))
    shown = tuple(row for row in rows if row is kept or not any(row is each for each in unpruned))
    return TableRows(shown, tuple(unpruned))


def describe_merged(table: TableRows, margin: EqualityMargin = WITHIN_RUN) -> str:
    """What a reader must know about the one row of the unpruned model; '' where nothing was merged."""
    shown, metric = table.unpruned, METRICS["p50_ms"]
    if shown is None:
        return ""
    others = [row for row in table.merged if row is not shown and row.value(metric.name) is not None]
    text = f"The unpruned model was measured in {len(table.merged)} runs; shown is that of {shown.profile.name}."
    if shown.value(metric.name) is None or not others:
        return text
    values = ", ".join(metric.quantity(row.value(metric.name)) for row in (shown, *others))
    text += f" {metric.label}: {values}."
    if any(contrast(row, shown, metric, margin).resolution == "different" for row in others):
        text += " They differ by more than noise: compare speed-ups, not latencies, across these runs."
    return text


def speedup_text(row: Row, margin: EqualityMargin = WITHIN_RUN) -> str:
    """'1.42 ±0.02', 'equal', 'not resolved', or a dash where there is no unpruned budget to compare with."""
    interval, found = row.intervals.get("speedup"), speedup_contrast(row, margin)
    if interval is None:
        return MISSING
    if found is None or found.resolution == "different" or not interval.known:
        return METRICS["speedup"].uncertain(interval)
    return "equal" if found.resolution == "equal" else NOT_RESOLVED


def metric_text(row: Row, metric: Metric, margin: EqualityMargin = WITHIN_RUN) -> str:
    """A row's value as tables show it; with its uncertainty where that says something."""
    if metric.name == "speedup":
        return speedup_text(row, margin)
    interval = row.intervals.get(metric.name)
    if interval is not None and metric.with_interval:
        return metric.uncertain(interval)
    return metric.format(row.value(metric.name))


def name_columns(table: TableRows | Sequence[Row]) -> list[Column]:
    """The columns that tell rows apart."""
    table = table if isinstance(table, TableRows) else TableRows(tuple(table))
    rows, unpruned = table.rows, table.unpruned
    chosen = [Column("budget", "budget", "", lambda row: row.budget)]
    several = len({row.precision for row in rows}) > 1
    if several:
        chosen = [
            Column("budget", "budget", "", lambda row: row.budget.partition("@")[0]),
            Column("precision", "precision", "", lambda row: row.precision),
        ]
    if len({row.method for row in rows}) > 1:
        chosen.insert(0, Column("method", "method", "", lambda row: "unpruned" if row is unpruned else row.method))
    if len({(row.method, row.budget, row.precision) for row in rows}) < len(rows):
        chosen.insert(0, Column("run", "run", "", lambda row: row.profile.started_utc[:16].replace("T", " ")))
    if len({row.verdict.status if row.verdict else None for row in rows}) > 1:
        chosen.append(Column("verdict", "verdict", "", lambda row: row.verdict.status if row.verdict else MISSING))
    return chosen


def make_columns(table: TableRows | Sequence[Row], margin: EqualityMargin = WITHIN_RUN) -> list[Column]:
    """The columns that say something about the rows: what was not measured has none."""
    table = table if isinstance(table, TableRows) else TableRows(tuple(table))
    rows = table.rows
    chosen = [*name_columns(table), Column("tokens", "tokens", "", lambda row: row.tokens_text)]
    accuracy = ["top1_percent", "top1_change_points"]
    if all(row.value("top1_percent") is None for row in rows):
        accuracy = ["agreement_percent", "kl_nats"]
    accuracy.append("cosine_distance")
    latency = ["p50_ms", "p95_ms", "p99_ms", "throughput_images_per_s", "missed_deadlines_percent"]
    cost = ["mean_power_w", "energy_mj_per_image", "energy_above_idle_mj_per_image", "peak_memory_mb", "speedup"]
    names = ["macs_g", "macs_share_percent", *accuracy, *latency, *cost]
    return chosen + [metric_column(METRICS[name], margin) for name in names if any(row.value(name) is not None for row in rows)]


def metric_column(metric: Metric, margin: EqualityMargin = WITHIN_RUN) -> Column:
    """The column that shows `metric`."""
    return Column(metric.name, metric.header, metric.unit, lambda row: metric_text(row, metric, margin), metric, margin)


def list_missing(rows: Sequence[Row]) -> list[str]:
    """Labels of the core metrics that no row has, those that share a known reason together with it."""
    core: tuple[str, ...] = ("top1_percent", "p50_ms", "mean_power_w", "energy_mj_per_image", "peak_memory_mb", "speedup")
    found: dict[str, list[str]] = {}
    if any(row.value("cosine_distance") is not None for row in rows):  # there is no top-1 of an embedding, features or tokens
        core = core[1:]
    for metric in (METRICS[name] for name in core):
        if all(row.value(metric.name) is None for row in rows):
            whys = dict.fromkeys(row.why_missing[metric.name] for row in rows if metric.name in row.why_missing)
            found.setdefault("; ".join(whys), []).append(metric.label)
    return [", ".join(labels) + (f" ({why})" if why else "") for why, labels in found.items()]


def list_unresolved(rows: Sequence[Row], margin: EqualityMargin = WITHIN_RUN) -> list[str]:
    """Per row whose speed is not resolved from the unpruned model's: the interval, and what it would take."""
    speedup = METRICS["speedup"]
    found = []
    for row in rows:
        each = speedup_contrast(row, margin)
        if each is not None and each.resolution == "not resolved" and each.interval.known:
            reach = speedup.range(each.interval) or speedup.uncertain(each.interval)
            found.append(f"{speedup.label} of {row.name} ({reach}): {describe_need([each])}")
    return found


def list_doubts(rows: Sequence[Row]) -> list[str]:
    """Every reason to doubt rows, once: 'Suspect (evit 0.65): the GPU throttled.'; without names where it is about all."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict is not None and row.suspect:
            for reason in row.verdict.reasons or (row.suspect,):
                about.setdefault(reason, []).append(row.name)
    found = []
    for reason, names in about.items():
        which = "" if len(names) == len(rows) else f" ({', '.join(names)})"
        found.append(f"Suspect{which}: {reason}.")
    return found


def describe_group(group: Group) -> str:
    """What a group shares, in one line: 'deit_tiny · batch 1 · onnxruntime 1.23.0 · fp32 · 2 threads · <CPU>'."""
    threads = "{} thread" if group.conditions.get("threads") == "1" else "{} threads"
    words = {"batch": "batch {}", "threads": threads, "clocks": "clocks: {}", "eval data": "accuracy on {}"}
    parts = [
        words.get(label, "{}").format(group.conditions[label])
        for label in _CONDITIONS_IN_TITLE
        if group.conditions.get(label, UNKNOWN) not in _SILENT
    ]
    methods = {row.method for row in group.rows}
    return " · ".join([*(methods if len(methods) == 1 else []), *parts])


def describe_marks(margin: EqualityMargin = WITHIN_RUN) -> str:
    """What the signs in a table mean."""
    within = margin.text(METRICS["speedup"])
    return (
        "± and ranges in brackets are 95 % intervals: speed-ups are paired by round, changes of accuracy by image. "
        f"equal: the whole interval is within {within}. not resolved: too wide to say."
    )


def tabulate_changes(changes: Changes) -> tuple[list[str], list[Metric], list[list[str]]]:
    """A table of what changed: the heads of the columns that name a budget, the metrics of those that follow, and the cells, a row per budget."""
    rows = TableRows(tuple(budget.new for budget in changes.budgets))
    found = [{change.metric.name: abbreviate_change(change) for change in budget.changes} for budget in changes.budgets]
    metrics = [METRICS[name] for name in JUDGED if any(name in texts for texts in found)]
    names = name_columns(rows)
    cells = [
        [*(column.text(row) for column in names), *(texts.get(metric.name, MISSING) for metric in metrics)]
        for row, texts in zip(rows.rows, found)
    ]
    return [column.label for column in names], metrics, cells
