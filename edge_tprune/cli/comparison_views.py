"""What `compare` and `select` show: comparisons, changes and choices, as tables and lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, product
from string import ascii_uppercase

from edge_tprune.analysis import wording
from edge_tprune.analysis.candidates import Candidates
from edge_tprune.analysis.changes import Changes
from edge_tprune.analysis.choice import Choice, NoChoice
from edge_tprune.analysis.comparison import (
    Column,
    describe_group,
    describe_marks,
    describe_merged,
    list_doubts,
    list_missing,
    list_unresolved,
    make_columns,
    merge_unpruned,
    metric_column,
    name_columns,
    tabulate_changes,
)
from edge_tprune.analysis.contrast import WITHIN_RUN, EqualityMargin
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Group, Row, Rows, describe_differences, find_differences
from edge_tprune.cli.terminal import Cell, Console, Heading, Table, open_stdout, print_line, print_table

#: Lesser columns, in the order in which a narrow terminal loses them. "tokens" gives way to the last count alone.
_LESSER = (
    "p99_ms", "macs_g", "energy_above_idle_mj_per_image", "tokens", "throughput_images_per_s", "peak_memory_mb", "top1_percent",
    "mean_power_w", "run", "macs_share_percent", "agreement_percent", "final_tokens", "p95_ms",
)  # fmt: skip
#: Columns that show how sure they are only where there is room for it, and those that give it up where it is tight.
_WIDENED = ("p50_ms", "p95_ms")
_NARROWED = (
    "energy_above_idle_mj_per_image",
    "mean_power_w",
    "energy_mj_per_image",
    "agreement_percent",
    "kl_nats",
    "cosine_distance",
    "top1_change_points",
)


def print_comparison(rows: Rows, margin: EqualityMargin = WITHIN_RUN, console: Console | None = None) -> None:
    """A table per group of comparable rows, then what keeps the groups apart, then warnings."""
    console = console or open_stdout()
    groups = rows.groups
    for index, group in enumerate(groups):
        if len(groups) > 1:
            print_line(f"group {index + 1} of {len(groups)}, not comparable with the others", console=console)
        _print_group(group, margin, console)
    if len(groups) > 1:
        print_line(f"The groups differ in {describe_differences(find_differences(rows.rows))}.", console=console)
    for warning in rows.warnings:
        print_line(f"warning: {warning}", "yellow", console)


def print_changes(changes: Changes, console: Console | None = None) -> None:
    """A row per budget, then each change that counts in words."""
    console = console or open_stdout()
    first, last = changes.budgets[0].old.profile, changes.budgets[0].new.profile
    print_line(f"From {first.name} ({first.started_utc[:10]}) to {last.name} ({last.started_utc[:10]})", "bold", console)
    print_table(_changes_table(changes), console)
    for verdict, style in (("worse", "red"), ("better", "green")):
        for budget, change in changes.select("worse" if verdict == "worse" else "better"):
            print_line(f"{verdict}: {budget.new.name}: {wording.describe_change(change)}", style, console)
    for row in changes.gone:
        print_line(f"not measured again: {row.name}", "red", console)
    for budget in changes.budgets:
        if budget.unfit:
            print_line(f"not judged: {budget.new.name}: {budget.unfit}", "red", console)
    print_line(wording.describe_changes(changes), console=console)
    if undecided := changes.undecided:
        need = wording.describe_need([change for _, change in undecided])
        print_line(f"warning: a regression cannot be ruled out for {len(undecided)} of them: {need}", "yellow", console)
    other = [f"{label} ({' → '.join(values)})" for label, values in changes.differences.items()]
    if other:
        print_line(f"Not the same at both times: {', '.join(other)}.", console=console)
    for remark in changes.remarks:
        print_line(f"warning: {remark}", "yellow", console)


def print_choice(choice: Choice, console: Console | None = None) -> None:
    """The answer, the room it leaves, the runner-up and what to beware of."""
    console = console or open_stdout()
    print_line(wording.describe_choice(choice), "bold", console)
    for headroom in choice.headroom:
        print_line(f"  {wording.describe_headroom(headroom)}", console=console)
    print_line(wording.describe_trade(choice), console=console)
    if front := wording.describe_front(choice):
        print_line(front, "dim", console)
    for caveat in wording.list_caveats(choice):
        print_line(f"warning: {caveat}", "yellow", console)


def print_candidates(found: Candidates, console: Console | None = None) -> None:
    """What each environment offers, which offer nothing and why, and what keeps them from being ranked."""
    console = console or open_stdout()
    choices, only = found.choices, found.only
    limits = [headroom.limit for headroom in choices[0].headroom]
    asked = f" with {wording.describe_limits(limits)}" if limits else ""
    verb = "has" if len(choices) == 1 else "have"
    print_line(f"{len(choices)} of {len(found.answers)} environments {verb} a budget{asked}:", "bold", console)
    letters = dict(zip((id(answer) for _, answer in found.answers), _letters()))
    for group, answer in found.answers:
        print_line(f"  {letters[id(answer)]}  {found.name(group)}", console=console)
    print_line("", console=console)
    letter_of = {id(choice.row): letters[id(choice)] for choice in choices}
    rows = [choice.row for choice in choices]
    columns = [Column("environment", "", "", lambda row: letter_of[id(row)]), *name_columns(rows)]
    print_table(_make_table([*columns, *map(metric_column, found.metrics)], rows, console, mark_best=False), console)
    for choice in choices if only is None else ():
        for headroom in choice.headroom:
            print_line(f"{letters[id(choice)]}: {wording.describe_headroom(headroom)}", console=console)
    for _, answer in found.refusals:
        print_line(f"{letters[id(answer)]}: {wording.describe_no_choice(answer)}", console=console)
    print_line("", console=console)
    for warning in found.warnings:
        print_line(f"warning: {warning}", "yellow", console)
    if only is not None:
        print_choice(only, console)
        return
    print_line(
        f"Not ranked: these environments differ in {describe_differences(found.differences)}. Each keeps the limits by itself; "
        "speed-ups and changes of accuracy are relative to the unpruned model of the same environment. --force ranks them.",
        console=console,
    )
    for choice in choices:
        for caveat in wording.list_caveats(choice):
            print_line(f"warning: {letters[id(choice)]}: {caveat}", "yellow", console)


def describe_failure(answer: NoChoice | Candidates) -> str:
    """Why nothing was chosen."""
    return wording.describe_refusals(answer) if isinstance(answer, Candidates) else wording.describe_no_choice(answer)


def _print_group(group: Group, margin: EqualityMargin, console: Console) -> None:
    table = merge_unpruned(group.rows)
    print_line(describe_group(group), "bold", console)
    print_table(_make_table(make_columns(table, margin), table.rows, console), console)
    if missing := list_missing(group.rows):
        print_line(f"Not measured: {'; '.join(missing)}.", console=console)
    for row in group.rows:
        if row.unfit:
            print_line(f"Not to be used: {row.name}: {row.unfit}.", "red", console)
    for doubt in list_doubts(group.rows):
        print_line(doubt, "yellow", console)
    for text in list_unresolved(table.rows, margin):
        print_line(f"Not resolved: {text}.", "yellow", console)
    if merged := describe_merged(table, margin):
        print_line(merged, console=console)
    print_line(describe_marks(margin), "dim", console)
    print_line("", console=console)


def _changes_table(changes: Changes) -> Table:
    names, metrics, cells = tabulate_changes(changes)
    return Table(
        [*map(Heading, names), *(Heading(metric.header, right=True) for metric in metrics)], [list(row) for row in cells]
    )


def _make_table(columns: Sequence[Column], rows: Sequence[Row], console: Console, mark_best: bool = True) -> Table:
    """The table: on a terminal as many of the columns as fit, with best values marked; elsewhere all of them."""
    if not console.is_terminal:
        return _as_table(columns, rows, mark_best=False)
    widest = _as_table([_widen(column) for column in columns], rows, mark_best)
    return widest if widest.width <= console.width else _fit(columns, rows, mark_best, console.width)


def _as_table(columns: Sequence[Column], rows: Sequence[Row], mark_best: bool) -> Table:
    best = [column.best(rows) if mark_best else [False] * len(rows) for column in columns]
    return Table(
        [Heading(column.label, column.unit, right=column.metric is not None) for column in columns],
        [[Cell(column.text(row), marks[place]) for column, marks in zip(columns, best)] for place, row in enumerate(rows)],
    )


def _fit(columns: Sequence[Column], rows: Sequence[Row], mark_best: bool, width: int) -> Table:
    """As many of the columns as fit into `width` characters: intervals of power and energy go first, then the lesser columns."""
    shown = list(columns)
    if _as_table(shown, rows, False).width > width:
        shown = [_narrow(column) if column.name in _NARROWED else column for column in shown]
    for name in _LESSER:
        if _as_table(shown, rows, False).width <= width:
            break
        place = next((index for index, column in enumerate(shown) if column.name == name), None)
        if place is not None:
            shown[place : place + 1] = [metric_column(METRICS["final_tokens"])] if name == "tokens" else []
    return _as_table(shown, rows, mark_best)


def _widen(column: Column) -> Column:
    """The column with the uncertainty that it shows only where there is room."""
    metric = column.metric
    if metric is None or metric.name not in _WIDENED:
        return column

    def text(row: Row) -> str:
        interval = row.intervals.get(metric.name)
        return column.text(row) if interval is None else metric.uncertain(interval)

    return replace(column, text=text)


def _narrow(column: Column) -> Column:
    """The column without its uncertainty."""
    metric = column.metric
    return column if metric is None else replace(column, text=lambda row: metric.format(row.value(metric.name)))


def _letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    for length in count(1):
        yield from map("".join, product(ascii_uppercase, repeat=length))
