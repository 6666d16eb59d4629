"""Lists, ranges and pairs that options take as one text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from edge_tprune.errors import UserError

T = TypeVar("T")


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
            wanted = "whole number" if kind is int else "number"
            raise UserError(f"{what}: {part!r} is no {wanted}. Give {wanted}s separated by commas") from error
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
        UserError: a text without "=", or a name that is given twice.
    """
    pairs = dict[str, str]()
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"{what} {text!r} is not of the form name=value")
        if key.strip() in pairs:
            raise UserError(f"{what} {key.strip()} is given twice: leave one out")
        pairs[key.strip()] = value.strip()
    return pairs
