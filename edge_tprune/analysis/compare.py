"""Comparisons on a terminal and as JSON: one table per group of rows that may be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_tprune.analysis.equality import equal_within_noise
from edge_tprune.analysis.metrics import METRICS, MISSING, Metric
from edge_tprune.analysis.table import NOT_EVALUATED, UNKNOWN, Group, Profile, Row, Rows, differences

FORMAT = "edge-tprune-comparison"
VERSION = 1

_CONFIDENCE_NOTE = "± is a 95 % interval: speed-ups are paired by round, changes of accuracy by image. equal: within the noise."
_ASCII = str.maketrans({"×": "x", "±": "+-", "→": ">", "Δ": "d", "–": "-", "·": "-", "—": "-", "�": "?"})
#: Lesser columns, in the order in which a narrow terminal loses them. "tokens" gives way to the last count alone.
_GIVE_WAY = (
    "p99_ms", "macs_g", "energy_above_idle_mj_per_image", "tokens", "throughput_images_per_s", "peak_memory_mb", "top1_percent",
    "mean_power_w", "run", "macs_share_percent", "agreement_percent", "final_tokens", "p95_ms",
)  # fmt: skip
#: Columns that show how sure they are only where there is room for it, and those that give it up where it is tight.
_WITH_ROOM = ("p50_ms", "p95_ms")
_TIGHT = ("energy_above_idle_mj_per_image", "mean_power_w", "energy_mj_per_image")
_CONDITIONS_IN_TITLE = (
    "model", "batch", "runtime", "precision", "threads", "load", "CPU", "device", "board", "power mode", "clocks", "host", "eval data",
)  # fmt: skip
_SILENT = (UNKNOWN, NOT_EVALUATED, "saturation")  #: what a title need not say


@dataclass(frozen=True)
class Column:
    """One column of a comparison: how it is headed, what it says per row, which rows it marks as best."""

    name: str
    label: str
    unit: str
    text: Callable[[Row], str]
    metric: Metric | None = None  #: None for names

    def best(self, rows: Sequence[Row]) -> set[str]:
        """The texts that deserve a mark: the best value, and those that are equal to it within the noise. None where all are."""
        metric = self.metric
        if metric is None or metric.better is None:
            return set()
        known = [row for row in rows if row.value(metric.name) is not None and row.unfit is None]
        if len({metric.format(row.value(metric.name)) for row in known}) < 2:
            return set()
        top = min(known, key=lambda row: metric.cost(row.value(metric.name)))
        marked = {self.text(row) for row in known if row is top or equal_within_noise(row, top, metric)}
        return marked if any(self.text(row) not in marked for row in known) else set()


def speedup_text(row: Row) -> str:
    """'1.42 ±0.02', 'equal' where the interval contains 1, a dash where there is no unpruned budget to compare with."""
    interval = row.intervals.get("speedup")
    if interval is None:
        return MISSING
    if not row.unpruned and interval.low is not None and not interval.excludes(1):
        return "equal"
    return METRICS["speedup"].uncertain(interval)


def metric_text(row: Row, metric: Metric) -> str:
    """A row's value as tables show it; with its uncertainty where that says something."""
    if metric.name == "speedup":
        return speedup_text(row)
    interval = row.intervals.get(metric.name)
    if interval is not None and metric.with_interval:
        return metric.uncertain(interval)
    return metric.format(row.value(metric.name))


def name_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that tell `rows` apart."""
    chosen = [Column("method", "method", "", lambda row: row.method)] if len({row.method for row in rows}) > 1 else []
    chosen.append(Column("budget", "budget", "", lambda row: row.budget))
    if len({(row.method, row.budget) for row in rows}) < len(rows):
        chosen.insert(0, Column("run", "run", "", lambda row: row.profile.started_utc[:16].replace("T", " ")))
    if len({row.verdict.status if row.verdict else None for row in rows}) > 1:
        chosen.append(Column("verdict", "verdict", "", lambda row: row.verdict.status if row.verdict else MISSING))
    return chosen


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that say something about `rows`: what nobody measured has none."""
    chosen = [*name_columns(rows), Column("tokens", "tokens", "", lambda row: row.tokens_text)]
    accuracy = ["top1_percent", "top1_change_points"]
    if all(row.value("top1_percent") is None for row in rows):
        accuracy = ["agreement_percent", "kl_nats"]
    latency = ["p50_ms", "p95_ms", "p99_ms", "throughput_images_per_s", "missed_deadlines_percent"]
    cost = ["mean_power_w", "energy_mj_per_image", "energy_above_idle_mj_per_image", "peak_memory_mb", "speedup"]
    names = ["macs_g", "macs_share_percent", *accuracy, *latency, *cost]
    chosen += [metric_column(METRICS[name]) for name in names if any(row.value(name) is not None for row in rows)]
    return chosen


def metric_column(metric: Metric) -> Column:
    """The column that shows `metric`."""
    return Column(metric.name, metric.header, metric.unit, lambda row: metric_text(row, metric), metric)


def missing(rows: Sequence[Row]) -> list[str]:
    """Labels of the core metrics that no row has, those that share a known reason together with it."""
    core = ("top1_percent", "p50_ms", "mean_power_w", "energy_mj_per_image", "peak_memory_mb", "speedup")
    found: dict[str, list[str]] = {}
    for metric in (METRICS[name] for name in core):
        if all(row.value(metric.name) is None for row in rows):
            whys = dict.fromkeys(row.why_missing[metric.name] for row in rows if metric.name in row.why_missing)
            found.setdefault("; ".join(whys), []).append(metric.label)
    return [", ".join(labels) + (f" ({why})" if why else "") for why, labels in found.items()]


def title(group: Group) -> str:
    """What a group shares, in one line: 'deit_tiny · batch 1 · onnxruntime 1.23.0 · fp32 · 2 threads · <CPU>'."""
    words = {"batch": "batch {}", "threads": "{} threads", "clocks": "clocks: {}", "eval data": "accuracy on {}"}
    parts = [
        words.get(label, "{}").format(group.conditions[label])
        for label in _CONDITIONS_IN_TITLE
        if group.conditions.get(label, UNKNOWN) not in _SILENT
    ]
    methods = {row.method for row in group.rows}
    return " · ".join([*(methods if len(methods) == 1 else []), *parts])


def render(rows: Rows, console: Console) -> None:
    """Prints the comparison: a table per group, then what keeps the groups apart, then warnings.

    On a terminal the best value of a column is bold, and lesser columns give way where it is narrow. Elsewhere everything is
    plain ASCII and as wide as it needs to be.
    """
    plain = _plain(console)
    groups = rows.groups
    for index, group in enumerate(groups):
        if len(groups) > 1:
            _line(console, f"group {index + 1} of {len(groups)}, not comparable with the others", plain)
        _line(console, title(group), plain, style="bold")
        print_table(columns(group.rows), group.rows, console, roomy=True)
        absent = missing(group.rows)
        if absent:
            _line(console, f"Not measured: {'; '.join(absent)}.", plain)
        for row in group.rows:
            if row.unfit:
                _line(console, f"Not to be used: {row.name}: {row.unfit}.", plain, style="red")
        for reason, names in _doubts(group.rows).items():
            _line(console, f"Suspect{names}: {reason}.", plain, style="yellow")
        _line(console, _CONFIDENCE_NOTE, plain, style="dim")
        _line(console, "", plain)
    if len(groups) > 1:
        _line(console, f"The groups differ in {describe_differences(rows.rows)}.", plain)
    for warning in rows.warnings:
        _line(console, f"warning: {warning}", plain, style="yellow")


def _doubts(rows: Sequence[Row]) -> dict[str, str]:
    """Every reason to doubt a row -> ' (0.65, 0.5)', which rows it is about; '' where it is about all."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict is not None and row.suspect:
            for reason in row.verdict.reasons or (row.suspect,):
                about.setdefault(reason, []).append(row.name)
    return {reason: "" if len(names) == len(rows) else f" ({', '.join(names)})" for reason, names in about.items()}


def describe_differences(rows: Sequence[Row]) -> str:
    """'host (a, b) and threads (1, 2)'."""
    parts = [f"{label} ({', '.join(_shorten(value) for value in values)})" for label, values in differences(rows).items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def to_document(rows: Rows) -> dict[str, Any]:
    """Everything `render` shows and more, as one JSON document."""
    shown = {name for row in rows.rows for name in row.values}
    profiles: dict[str, Profile] = {row.profile.name: row.profile for row in rows.rows}
    return {
        "format": FORMAT,
        "version": VERSION,
        "metrics": {name: metric.to_json() for name, metric in METRICS.items() if name in shown},
        "groups": [
            {"conditions": dict(group.conditions), "rows": [row_document(row) for row in group.rows]} for group in rows.groups
        ],
        "differences": {label: list(values) for label, values in differences(rows.rows).items()},
        "profiles": [
            {
                "name": profile.name,
                "path": str(profile.path),
                "run_id": profile.info["run_id"],
                "started_utc": profile.info["started_utc"],
                "tool_version": profile.info["tool_version"],
                "environment": profile.info["environment"],
                "plan": profile.info["plan"],
                "notes": list(profile.notes),
                "verdict": profile.summary.get("verdict"),
                "sensor": profile.summary.get("sensor"),
                "idle": profile.summary.get("idle"),
            }
            for profile in profiles.values()
        ],
        "warnings": list(rows.warnings),
    }


def row_document(row: Row) -> dict[str, Any]:
    """One row as JSON: every metric with its value (null where missing) and its interval where one is known."""
    return {
        "profile": row.profile.name,
        "run_id": row.profile.info["run_id"],
        "model": row.model,
        "method": row.method,
        "budget": row.budget,
        "unpruned": row.unpruned,
        "tokens": row.tokens,
        "schedule": list(row.schedule),
        "inferences": row.inferences,
        "rounds": row.rounds,
        "metrics": {name: row.value(name) for name in METRICS},
        "intervals": {name: interval.to_json() for name, interval in row.intervals.items()},
        "why_missing": dict(row.why_missing),
        "verdict": None if row.verdict is None else {"status": row.verdict.status, "reasons": list(row.verdict.reasons)},
        "unfit": row.unfit,
    }


def say(console: Console, text: str, style: str | None = None) -> None:
    """One line of prose, wrapped by words on a terminal; ASCII and unwrapped elsewhere."""
    _line(console, text, _plain(console), style)


def print_table(
    shown: Sequence[Column], rows: Sequence[Row], console: Console, mark_best: bool = True, roomy: bool = False
) -> None:
    """Prints a table: on a terminal as many of the columns as fit, best values bold; elsewhere all of them, in plain ASCII.

    Args:
        shown: the columns.
        rows: the rows.
        console: where to.
        mark_best: whether to mark best values.
        roomy: show how sure latencies are where the terminal is wide enough.
    """
    if _plain(console):
        for line in _plain_table(shown, rows):
            _line(console, line, True)
        return
    if roomy and _needed(wide := [_wider(column) for column in shown], rows) <= console.width:
        shown = wide
    console.print(_table(_fit(shown, rows, console.width), rows, mark_best))


def _table(shown: Sequence[Column], rows: Sequence[Row], mark_best: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        heading = Text(f"{column.label}\n{column.unit}" if any(each.unit for each in shown) else column.label)
        table.add_column(heading, justify="left" if column.metric is None else "right", no_wrap=True)
    best = {column.name: column.best(rows) if mark_best else set() for column in shown}
    for row in rows:
        cells = [(column.text(row), column.text(row) in best[column.name]) for column in shown]
        table.add_row(*(Text(text, style="bold" if mark else "") for text, mark in cells))
    return table


def _plain_table(shown: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """All columns, as wide as they need to be: who reads a pipe is a file or a program."""
    cells = [[column.label for column in shown], [column.unit for column in shown]]
    cells += [[column.text(row) for column in shown] for row in rows]
    cells = [[text.translate(_ASCII) for text in line] for line in cells]
    widths = [max(map(len, texts)) for texts in zip(*cells)]
    aligned = [
        [text.ljust(width) if column.metric is None else text.rjust(width) for text, width, column in zip(line, widths, shown)]
        for line in cells
    ]
    return ["  ".join(line).rstrip() for line in aligned]


def _fit(shown: Sequence[Column], rows: Sequence[Row], width: int) -> list[Column]:
    """As many of the columns as fit into `width` characters: intervals of power and energy go first, then the lesser columns."""
    if _needed(shown, rows) > width:
        shown = [_narrower(column) if column.name in _TIGHT else column for column in shown]
    shown = list(shown)
    for name in _GIVE_WAY:
        if _needed(shown, rows) <= width:
            break
        at = next((index for index, column in enumerate(shown) if column.name == name), None)
        if at is None:
            continue
        shown[at : at + 1] = [metric_column(METRICS["final_tokens"])] if name == "tokens" else []
    return shown


def _needed(shown: Sequence[Column], rows: Sequence[Row]) -> int:
    """How many characters a row takes: a space and the box's own space between columns."""
    longest = (max(len(column.label), len(column.unit), *(len(column.text(row)) for row in rows)) for column in shown)
    return sum(length + 2 for length in longest) - 1


def _wider(column: Column) -> Column:
    """The column with the uncertainty that it shows only where there is room."""
    metric = column.metric
    if metric is None or metric.name not in _WITH_ROOM:
        return column

    def text(row: Row) -> str:
        interval = row.intervals.get(metric.name)
        return column.text(row) if interval is None else metric.uncertain(interval)

    return replace(column, text=text)


def _narrower(column: Column) -> Column:
    """The column without its uncertainty."""
    metric = column.metric
    return column if metric is None else replace(column, text=lambda row: metric.format(row.value(metric.name)))


def _plain(console: Console) -> bool:
    return not console.is_terminal


def _text(text: str, plain: bool, style: str = "") -> Text:
    return Text(text.translate(_ASCII) if plain else text, style=style)


def _line(console: Console, text: str, plain: bool, style: str | None = None) -> None:
    console.print(_text(text, plain, (style or "") if not plain else ""), soft_wrap=plain)


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
