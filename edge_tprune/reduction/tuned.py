"""Where each method removes tokens by default: its tuned pattern where the package ships one, its paper's blocks where not.

`tuned/<method>.json` are files that `edge-tprune search` wrote for DeiT-Tiny, on unlabelled images that no accuracy table here uses; each says how.
Those that `python -m tests.benchmarks.joint` found on DeiT-Tiny and the reference model together are equal shares: at 0.35, because a low
budget that is spent at a method's own blocks (4, 7 and 10 of 12) leaves too few tokens behind them; and few stages for methods whose papers
have one in every block, where that is no worse. An entry with a method's own blocks says that nothing better was found for that budget.
A pattern ships only where it is no worse than equal shares, beyond noise, on every network that it was tried on. `pattern_evidence.json` says by how much;
`python -m tests.benchmarks.patterns` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from edge_tprune.reduction.evidence import pattern_evidence
from edge_tprune.reduction.registry import Reducer
from edge_tprune.schedule import default_blocks

FOLDER = Path(__file__).parent / "tuned"
PATTERN_DEPTH = 12
"""Blocks of the networks that patterns were found on. In shallower ones, methods that remove tokens in every block go on doing so: of three or four
blocks two would be left, which may be too few to reach a budget."""


class _Tuned(msgspec.Struct, frozen=True):
    blocks: tuple[int, ...]
    weights: tuple[float, ...]


class _Patterns(msgspec.Struct, frozen=True):
    """What is read here of a schedule file."""

    budgets: dict[str, _Tuned]


@lru_cache
def _patterns(method: str) -> dict[str, _Tuned]:
    """By budget; empty where a method was not tuned."""
    file = FOLDER / f"{method}.json"
    return msgspec.json.decode(file.read_bytes(), type=_Patterns).budgets if file.is_file() else {}


def tuned_blocks(method: str) -> dict[str, list[int]]:
    """Per budget that a method was tuned for, the blocks (of 12, counted from 1) that remove tokens; empty where none was."""
    return {name: list(tuned.blocks) for name, tuned in _patterns(method).items()}


def is_tried(method: type[Reducer], network: str, budgets: Sequence[float]) -> bool:
    """Whether the patterns of a method for these budgets were tried on a network; also where it has none, as equal shares need no trial."""
    if network in pattern_evidence(method.name):
        return True
    own = pattern(method, 12, 1.0, patterns=False)
    return all(pattern(method, 12, budget) == own for budget in budgets)


def pattern(
    method: type[Reducer], depth: int, budget: float, faithful: bool = False, *, patterns: bool = True
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Blocks of a network `depth` blocks deep (counted from 1) and how much each removes relative to the others, for a share of MACs.

    Of the budgets a pattern was tuned for the nearest counts. The `faithful` form of a method has its paper's blocks. Without `patterns`, what it
    would be if nothing had been tuned.
    """
    too_shallow = acts_in_every_block(method) and depth < PATTERN_DEPTH
    if found := _patterns(method.name) if patterns and not faithful and not too_shallow else {}:
        nearest = found[min(found, key=lambda name: (abs(float(name) - budget), name))]
        blocks, weights = list(nearest.blocks), list(nearest.weights)
    else:
        blocks = list((faithful and method.paper_blocks) or method.default_blocks)
        weights = [1.0] * len(blocks)
    if blocks == list(method.default_blocks) and acts_in_every_block(method):
        places = _range(blocks, depth)
        return places, (1.0,) * len(places)
    moved: dict[int, float] = {}
    for block, weight in zip(blocks, weights):
        (place,) = default_blocks(depth, [block])
        moved[place] = moved.get(place, 0.0) + weight  # blocks that meet in a shallower network remove what both would
    return tuple(sorted(moved)), tuple(moved[place] for place in sorted(moved))


def acts_in_every_block(method: type[Reducer]) -> bool:
    """Whether the method's own blocks are all from one to the last, which is so in a network of any depth."""
    blocks = method.default_blocks
    return len(blocks) == blocks[-1] - blocks[0] + 1 > 3


def equal_blocks(method: type[Reducer], depth: int) -> tuple[int, ...]:
    """The blocks of a network `depth` blocks deep where a method removes equal shares if nothing was tuned."""
    blocks = list(method.default_blocks)
    return _range(blocks, depth) if acts_in_every_block(method) else tuple(default_blocks(depth, blocks))


def _range(blocks: list[int], depth: int) -> tuple[int, ...]:
    return tuple(range(1 + (blocks[0] - 1) * depth // 12, depth + 1))
