"""Writes the table of boards in docs/boards.md from edge_tprune/telemetry/boards.json: python docs/boards_table.py"""

from __future__ import annotations

import textwrap
from pathlib import Path

from edge_tprune.telemetry.boards import Board, table

PAGE = Path(__file__).with_name("boards.md")
BEGIN, END = "<!-- table: python docs/boards_table.py -->\n", "<!-- end of table -->"


def row(board: Board) -> str:
    """One board as a row of a Markdown table."""
    rails = [f"`{rail}`" + "".join(f" or `{other}`" for other in board.spellings.get(rail, ())) for rail in board.rails]
    total = "the sum of all" if board.total == board.rails else " + ".join(f"`{rail}`" for rail in board.total)
    return f"| {board.name} | {', '.join(rails)} | {total} |"


def remark(board: Board) -> str:
    """Where the names come from, and what to keep in mind about the total."""
    text = f"- **{board.name}**: {board.remark}. Source: {board.source}."
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def markdown() -> str:
    """The table and the list, as they belong into the page."""
    rows = "".join(f"{row(board)}\n" for board in table())
    remarks = "".join(f"{remark(board)}\n" for board in table())
    return f"| board | power rails (and other spellings) | total |\n|---|---|---|\n{rows}\nSources and remarks:\n\n{remarks}"


def replaced(page: str) -> str:
    """The page with today's table."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks the lines {BEGIN.strip()} and {END}")
    return before + begin + markdown() + end + after


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
