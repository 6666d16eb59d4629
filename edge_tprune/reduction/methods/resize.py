"""`resize`, a lower input resolution: the baseline that any token reduction has to beat.

The network's input stays the image that every other budget takes; it is made smaller inside, to a whole number of patches, and position embeddings
are resampled to their new grid (bicubic, as timm does for other image sizes). All weights are shared. No token is chosen, so nothing sits in a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from edge_tprune.errors import UserError
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, register_baseline
from edge_tprune.schedule import NetworkShape, Schedule, from_counts, from_tokens

Grid = tuple[int, int]  # patches down and across


@register_baseline
class Resize(Reducer):
    """Makes the image smaller: no token reduction, the baseline of it."""

    name = "resize"
    paper = "baseline: the same network on a smaller image"
    place = "image"
    default_blocks = (1,)
    limit = "whole patches: a budget becomes the largest image that keeps it"

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Nothing is left to do in a block."""
        raise NotImplementedError("the image is made smaller before the first block")


def smaller_grids(grid: Grid) -> list[Grid]:
    """Grids of smaller images of the same shape, as near as whole patches allow, the largest first."""
    long, short = max(grid), min(grid)
    found = [(side, max(1, round(short * side / long))) for side in range(long - 1, 0, -1)]
    return found if grid[0] >= grid[1] else [(across, down) for down, across in found]


def solve_resize(
    shape: NetworkShape, grid: Grid, budget: float | None, schedule: Sequence[int] | None, exact: bool
) -> Schedule:
    """The schedule of the largest image within a budget, or of one that is given as tokens.

    Args:
        shape: of the network at its own size.
        grid: of its patches.
        budget: share of its MACs.
        schedule: instead: tokens after each block, the same after all but the last.
        exact: let the last block compute only what the head reads.

    Raises:
        UserError: no image is small enough, or none has so many patches.
    """
    if schedule is not None:
        found = from_tokens(shape, schedule)
        find_grid(shape, grid, found.tokens)
        return found
    assert budget is not None
    counts = [rows * columns + shape.prefix_tokens for rows, columns in smaller_grids(grid)]
    return from_counts(shape, budget, counts, exact_savings=exact)


def find_grid(shape: NetworkShape, grid: Grid, tokens: Sequence[int]) -> Grid | None:
    """The grid of the image that gives these tokens; None for the image's own.

    Raises:
        UserError: no image does.
    """
    inner = tokens[:-1] if shape.saves_last_block(tokens) and len(tokens) > 1 else tokens
    known: dict[int, Grid | None] = {
        rows * columns + shape.prefix_tokens: (rows, columns) for rows, columns in smaller_grids(grid)
    }
    known[shape.tokens] = None
    if len(set(inner)) != 1 or inner[0] not in known:
        counts = ", ".join(map(str, sorted(known, reverse=True)[:4]))
        raise UserError(
            f"method resize has the same number of tokens in every block, that of a smaller image: {counts}, ... (given: {', '.join(map(str, tokens))})"
        )
    return known[inner[0]]


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) at another size, between pixels by bilinear interpolation."""
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
