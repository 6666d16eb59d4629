"""Dynamic programming: the schedules of least loss for every cost, where loss and cost are sums over blocks.

A state is a block and the tokens that it leaves; what is kept of it is the front of (cost, loss) over all ways to get there. Nothing that could
become part of a best schedule is ever dropped, so the result is exact for the two sums. `resolution` rounds costs up to a grid to bound
the fronts: a schedule's true cost is then at most what is said, and off by at most the number of blocks times the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_tprune.search.cost import Cost
from edge_tprune.search.sensitivity import Sensitivity


@dataclass(frozen=True)
class Solution:
    """A schedule on the front."""

    cost: float
    loss: float
    tokens: tuple[int, ...]  #: after each block


@dataclass(frozen=True)
class _Label:
    cost: float
    loss: float
    tokens: int
    before: _Label | None


def solve(
    cost: Cost,
    sensitivity: Sensitivity,
    counts: Sequence[int],
    fewest: Callable[[int], int],
    *,
    limit: float = math.inf,
    resolution: float = 0.0,
) -> list[Solution]:
    """All schedules that no other beats in cost and loss, the cheapest first.

    Args:
        cost: what is spent.
        sensitivity: what is lost.
        counts: token counts to choose from, the unpruned network's among them or not.
        fewest: the fewest tokens that the method can leave from a number, in one block.
        limit: of the cost: dearer schedules are left out.
        resolution: grid of costs; 0 for none.
    """
    shape, low = cost.shape, cost.counts[0]
    levels = sorted({count for count in counts if low <= count < shape.tokens} | {shape.tokens}, reverse=True)
    last = shape.blocks - (cost.exact and shape.read_tokens is not None)
    state = {shape.tokens: [_Label(cost.base, 0.0, shape.tokens, None)]}
    for block in range(1, last + 1):
        reached: dict[int, list[_Label]] = {}
        for tokens_in, labels in state.items():
            for tokens_out in levels:
                if tokens_out > tokens_in or (tokens_out < tokens_in and tokens_out < fewest(tokens_in)):
                    continue
                spent = cost.transition(sensitivity.method, block, tokens_in, tokens_out)
                lost = sensitivity.added(block, tokens_in, tokens_out)
                if spent is None or math.isinf(lost):
                    continue
                if resolution:
                    spent = math.ceil(spent / resolution - 1e-9) * resolution
                reached.setdefault(tokens_out, []).extend(
                    _Label(label.cost + spent, label.loss + lost, tokens_out, label)
                    for label in labels
                    if label.cost + spent <= limit
                )
        state = {tokens: _front(labels) for tokens, labels in reached.items()}
    ends = []
    for tokens, labels in state.items():
        spent = (
            0.0 if last == shape.blocks else cost.transition(sensitivity.method, shape.blocks, tokens, shape.read_tokens or 0)
        )
        if spent is not None:
            ends += [_Label(label.cost + spent, label.loss, label.tokens, label.before) for label in labels]
    tail = () if last == shape.blocks else (shape.read_tokens or 0,)
    return [Solution(label.cost, label.loss, (*_path(label), *tail)) for label in _front([e for e in ends if e.cost <= limit])]


def _front(labels: list[_Label]) -> list[_Label]:
    """Those that no other beats, the cheapest first."""
    kept: list[_Label] = []
    for label in sorted(labels, key=lambda label: (label.cost, label.loss)):
        if not kept or label.loss < kept[-1].loss:
            kept.append(label)
    return kept


def _path(label: _Label) -> tuple[int, ...]:
    tokens = []
    step: _Label | None = label
    while step is not None and step.before is not None:
        tokens.append(step.tokens)
        step = step.before
    return tuple(reversed(tokens))
