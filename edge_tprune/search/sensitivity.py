"""How far a network's output moves when one block alone removes tokens: what a search starts from. No labels needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edge_tprune.documents import Count, Distance, DocumentKind, Name
from edge_tprune.schedule import NetworkShape

Losses = Callable[[Sequence[tuple[int, ...]]], Sequence[float]]
"""Schedules (tokens after each block) -> the mean loss of each over the images."""

_SHARES = (0.85, 0.7, 0.55, 0.4, 0.28, 0.18, 0.1)  #: patch tokens left, of all


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """The loss where block b alone leaves n tokens, for one method."""

    method: Name
    key: str = ""  #: hash of everything that it depends on
    counts: Annotated[tuple[Count, ...], Meta(min_length=2)]  #: increasing; the last is the unpruned network's
    loss: tuple[tuple[Distance | None, ...], ...]  #: per block and count; None where the method cannot leave so few

    def __post_init__(self) -> None:
        if any(more <= fewer for fewer, more in pairwise(self.counts)):
            raise ValueError("expected token counts that increase")
        if any(len(row) != len(self.counts) or row[-1] is None for row in self.loss):
            raise ValueError(
                f"expected a loss for each of the {len(self.counts)} token counts in every block, and one at the last"
            )

    def added(self, block: int, tokens_in: int, tokens_out: int) -> float:
        """What it costs in loss that a block removes tokens of which earlier ones left `tokens_in`; infinite where the method cannot.

        The tokens between the two are lost at this block, and those above were lost before: the difference along the block's own curve.
        """
        if tokens_out == tokens_in:
            return 0.0
        return max(0.0, self.at(block, tokens_out) - self.at(block, tokens_in))

    def at(self, block: int, tokens: int) -> float:
        """The loss where a block alone leaves `tokens`, between the counts of the table by interpolation."""
        row = [(count, loss) for count, loss in zip(self.counts, self.loss[block - 1]) if loss is not None]
        if tokens < row[0][0]:
            return float("inf")
        return float(np.interp(tokens, [count for count, _ in row], [loss for _, loss in row]))


class SensitivityTables(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of one network."""

    tables: tuple[Sensitivity, ...]


KIND = DocumentKind(
    noun="sensitivity table",
    format="edge-tprune-sensitivity",
    version=1,
    make="Move it away: the search writes its own there. Or choose another directory for --out",
    remedy="Delete it: the search makes it again",
    schema=SensitivityTables,
)


def table_counts(shape: NetworkShape, fewest: int) -> tuple[int, ...]:
    """Token counts of a table, increasing: shares of the patch tokens, none below `fewest`, and all."""
    patches = shape.tokens - shape.prefix_tokens
    found = {shape.prefix_tokens + max(1, round(share * patches)) for share in _SHARES}
    return tuple(sorted({max(fewest, count) for count in found} | {shape.tokens}))


def single_schedule(
    shape: NetworkShape, block: int, tokens: int, fewest: Callable[[int], int], exact: bool
) -> tuple[int, ...] | None:
    """The schedule in which `block` leaves so many tokens; blocks before it help only where the method has a limit per block.

    Returns:
        Tokens after each block; None where even all blocks up to that one cannot leave so few.
    """
    possible = [shape.tokens]  # the fewest that a chain of so many blocks can leave
    while possible[-1] > tokens and len(possible) <= block:
        possible.append(max(tokens, min(possible[-1], fewest(possible[-1]))))
    if possible[-1] > tokens:
        return None
    chain = possible[1:]
    after = [shape.tokens] * (block - len(chain)) + chain + [tokens] * (shape.blocks - block)
    return (*after[:-1], shape.read_tokens) if exact and shape.read_tokens is not None else tuple(after)


def measure(
    shape: NetworkShape,
    method: str,
    counts: Sequence[int],
    fewest: Callable[[int], int],
    losses: Losses,
    *,
    exact: bool,
    key: str = "",
) -> Sensitivity:
    """The table of one method: `losses` is called once, with a schedule for each block and count.

    A loss that falls where more tokens go is noise: each row is made monotone (least squares, scikit-learn's isotonic regression).
    """
    from sklearn.isotonic import isotonic_regression

    numbers = range(1, shape.blocks + 1 - exact)
    schedules = [[single_schedule(shape, number, tokens, fewest, exact) for tokens in counts[:-1]] for number in numbers]
    found = iter(losses([schedule for row in schedules for schedule in row if schedule is not None]))
    rows: list[tuple[float | None, ...]] = []
    for row in schedules:
        measured = [next(found) for schedule in row if schedule is not None]
        smooth = iter(isotonic_regression(measured, increasing=False).tolist() if measured else [])
        rows.append((*(None if schedule is None else max(0.0, next(smooth)) for schedule in row), 0.0))
    return Sensitivity(method=method, key=key, counts=tuple(counts), loss=tuple(rows))
