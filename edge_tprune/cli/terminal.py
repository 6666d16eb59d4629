"""The terminal: every line, table and document that a command prints goes through here. Only `progress` beside it knows rich too.

Names come from files, boards and other programs. Here they lose what could steer a terminal (`edge_tprune.text.printable`), and are
never read as markup. On a terminal there is colour and tables fit the window; elsewhere output is ASCII and as wide as it needs to be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console as Console
from rich.table import Table as RichTable
from rich.text import Text

from edge_tprune.cli.streams import answer_stream
from edge_tprune.text import printable, shorten, to_ascii

_PADDING = 2  #: between two columns


@dataclass(frozen=True)
class Heading:
    """The head of a column."""

    label: str
    unit: str = ""
    right: bool = False  #: align to the right: numbers
    fold: bool = False  #: may be folded where the window is narrow: long text


@dataclass(frozen=True)
class Cell:
    """A cell that deserves a mark."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text."""

    headings: Sequence[Heading]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""

    @property
    def width(self) -> int:
        """How many characters a row takes where nothing is folded."""
        columns = [[heading.label, heading.unit] for heading in self.headings]
        for row in self.rows:
            for texts, cell in zip(columns, row):
                texts.append(_text_of(cell))
        return sum(max(map(len, texts)) + _PADDING for texts in columns) - _PADDING


def open_stdout() -> Console:
    """Where answers go. Piped output is not folded."""
    stream = answer_stream()
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(file=stream, highlight=False, markup=False, emoji=False, width=200)


def open_stderr() -> Console:
    """Where progress and warnings go."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_line(text: str, style: str = "", console: Console | None = None) -> None:
    """One line of an answer; on a terminal wrapped by words."""
    console = console or open_stdout()
    console.print(Text(_shown(text, console), style=style if console.is_terminal else ""), soft_wrap=not console.is_terminal)


def print_parts(parts: Sequence[tuple[str, str]], console: Console) -> None:
    """One line of (text, style) parts, never wrapped."""
    shown = [(_shown(text, console), style if console.is_terminal else "") for text, style in parts]
    console.print(Text.assemble(*shown), soft_wrap=True)


def print_note(text: str) -> None:
    """One line for the person, on stderr, so that stdout stays the answer alone."""
    console = open_stderr()
    console.print(Text(_shown(shorten(text), console)), soft_wrap=True)


def print_warning(text: str) -> None:
    """A note that begins with 'warning: '."""
    print_note(f"warning: {text}")


def print_text(text: str) -> None:
    """Text that a program or a document takes as it is: a path, a Markdown table. Our symbols become ASCII only where nothing else can be written."""
    lines = [printable(line) for line in text.splitlines()]
    stream = answer_stream()
    known = (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
    stream.write("".join(f"{line if known else to_ascii(line)}\n" for line in lines))


def print_json(document: Any) -> None:
    """One JSON document on stdout, in ASCII."""
    answer_stream().write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def print_table(table: Table, console: Console | None = None) -> None:
    """A table with its title."""
    console = console or open_stdout()
    if table.title:
        print_line(table.title, "bold", console)
    if console.is_terminal:
        console.print(_draw(table, console))
        return
    for line in _align(table, console):
        console.print(Text(line), soft_wrap=True)


def _draw(table: Table, console: Console) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    units = any(heading.unit for heading in table.headings)
    for heading in table.headings:
        label = _shown(heading.label, console) + (f"\n{_shown(heading.unit, console)}" if units else "")
        overflow: Any = "fold" if heading.fold else "ellipsis"
        drawn.add_column(Text(label), justify="right" if heading.right else "left", no_wrap=not heading.fold, overflow=overflow)
    for row in table.rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        drawn.add_row(*(Text(_shown(cell.text, console), style="bold" if cell.best else "") for cell in cells))
    return drawn


def _align(table: Table, console: Console) -> list[str]:
    """All columns, as wide as they need to be: who reads a pipe is a file or a program."""
    lines = [[heading.label for heading in table.headings]]
    if any(heading.unit for heading in table.headings):
        lines.append([heading.unit for heading in table.headings])
    lines += [[_text_of(cell) for cell in row] for row in table.rows]
    lines = [[_shown(text, console) for text in line] for line in lines]
    widths = [max(map(len, texts)) for texts in zip(*lines)]
    gap = " " * _PADDING
    return [
        gap.join(
            text.rjust(width) if heading.right else text.ljust(width)
            for text, width, heading in zip(line, widths, table.headings)
        ).rstrip()
        for line in lines
    ]


def _text_of(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


def _shown(text: str, console: Console) -> str:
    safe = printable(text)
    return safe if console.is_terminal and console.encoding.startswith("utf") else to_ascii(safe)
