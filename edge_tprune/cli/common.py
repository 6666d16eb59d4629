"""What the commands share: consoles, parsing of lists, progress bars, printing JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edge_tprune.errors import UserError

T = TypeVar("T")


class Stopped(Exception):
    """Ctrl-C, with a word on where what was done is kept. Not a KeyboardInterrupt, which typer would end without a word."""


def out() -> Console:
    """Where answers go; colour only on a terminal. Piped output is not folded to 80 columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def err() -> Console:
    """Where progress and warnings go."""
    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=1, allow_nan=False)
    print()


def say(message: str) -> None:
    """One line for the person, on stderr, so that stdout stays the answer alone."""
    err().print(message, markup=False, soft_wrap=True)


def parse_list(text: str, kind: Callable[[str], T], what: str) -> list[T]:
    """ "1.0,0.8" -> [1.0, 0.8].

    Raises:
        UserError: naming the part that is not a `kind`.
    """
    values = []
    for part in text.replace(" ", ",").split(","):
        if not part:
            continue
        try:
            values.append(kind(part))
        except ValueError as error:
            raise UserError(f"{what}: {part!r} is not a number. Give them with commas, such as {what} 1.0,0.8,0.65") from error
    if not values:
        raise UserError(f"{what} is empty: give at least one")
    return values


def parse_range(text: str, what: str) -> tuple[int, int]:
    """ "2-4" -> (2, 4); "3" -> (3, 3).

    Raises:
        UserError: anything else.
    """
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError as error:
        raise UserError(f"{what}: {text!r} is neither a number nor a range such as 2-4") from error


def parse_pairs(texts: list[str], what: str) -> dict[str, str]:
    """["a=1"] -> {"a": "1"}.

    Raises:
        UserError: a text without "=".
    """
    pairs = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"{what} {text!r} is not of the form name=value")
        pairs[key.strip()] = value.strip()
    return pairs


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with time left, on stderr and only on a terminal; yields `advance(text, done, of)`."""
    console = err()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda text, done, of: bar.update(task, description=text, completed=done, total=of)
