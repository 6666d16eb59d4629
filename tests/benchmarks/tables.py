"""The tables of the benchmarks: written as Markdown, and shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.files import write_text


def write_table(
    file: Path,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str,
    *,
    note: str = "",
    text: Collection[str] = ("method",),
) -> None:
    """Writes a table into a Markdown file, atomically, and prints it.

    Args:
        file: to write; its directory is made.
        headings: of the columns.
        rows: cells, in Markdown.
        title: what the numbers are of, without a full stop.
        note: what follows it in the file.
        text: headings of the columns that are not numbers: these are aligned to the left.
    """
    rule = "|" + "".join("---|" if heading in text else "---:|" for heading in headings)
    table = [" | ".join(cells) for cells in (headings, *rows)]
    lines = [f"{title}.{note and ' '}{note}", "", f"| {table[0]} |", rule, *(f"| {row} |" for row in table[1:])]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "\n".join(lines) + "\n")
    plain = [[cell.replace("`", "") for cell in cells] for cells in rows]
    print_table(Table([Heading(heading, right=heading not in text) for heading in headings], plain, title))
