"""The comparison as a Markdown table, for a README or a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge_tprune.analysis.changes import Changes
from edge_tprune.analysis.comparison import describe_group, make_columns, merge_unpruned, tabulate_changes
from edge_tprune.analysis.contrast import WITHIN_RUN, EqualityMargin
from edge_tprune.analysis.table import Group, Row, group_rows
from edge_tprune.analysis.wording import describe_changes


def markdown_table(rows: Sequence[Row], margin: EqualityMargin = WITHIN_RUN) -> str:
    """The columns of `compare` as a Markdown table, best values bold. Rows of several environments give a table each."""
    groups = group_rows(rows)
    return "\n".join(_group_table(group, margin, with_title=len(groups) > 1) for group in groups)


def markdown_changes(changes: Changes) -> str:
    """What changed, as a Markdown table with a row per budget, and in how many measures."""
    first, last = changes.budgets[0].old.profile, changes.budgets[0].new.profile
    names, metrics, cells = tabulate_changes(changes)
    lines = [f"From {_escape(first.name)} ({first.started_utc[:10]}) to {_escape(last.name)} ({last.started_utc[:10]}):\n"]
    lines.append(f"| {' | '.join(_escape(head) for head in (*names, *(metric.header for metric in metrics)))} |")
    lines.append(f"|{'|'.join(['---'] * len(names) + ['---:'] * len(metrics))}|")
    lines += [f"| {' | '.join(map(_escape, row))} |" for row in cells]
    return "\n".join([*lines, f"\n{_escape(describe_changes(changes))}"])


def _group_table(group: Group, margin: EqualityMargin, with_title: bool) -> str:
    table = merge_unpruned(group.rows)
    shown = make_columns(table, margin)
    best = [column.best(table.rows) for column in shown]
    lines = [f"{_escape(describe_group(group))}\n"] if with_title else []
    heads = [f"{column.label} ({column.unit})" if column.unit else column.label for column in shown]
    lines.append(f"| {' | '.join(map(_escape, heads))} |")
    lines.append(f"|{'|'.join('---' if column.metric is None else '---:' for column in shown)}|")
    for place, row in enumerate(table.rows):
        texts = [(_escape(column.text(row)), marks[place]) for column, marks in zip(shown, best)]
        lines.append(f"| {' | '.join(f'**{text}**' if mark else text for text, mark in texts)} |")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text)
