"""Where each method removes tokens by default: its tuned pattern where the package ships one, its paper's blocks where not.

`tuned/<method>.json` are files that `edge-tprune search` wrote for DeiT-Tiny, on unlabelled images that no accuracy table here uses; each says how.
Their entries at 0.35 are equal shares at blocks that `python -m tests.benchmarks.joint` found on DeiT-Tiny and the reference model together: a low budget
that is spent at a method's own blocks (4, 7 and 10 of 12) leaves too few tokens behind them.
A pattern ships only where it is no worse than equal shares, beyond noise, on every network that it was tried on. `pattern_evidence.json` says by how much;
`python -m tests.benchmarks.patterns` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge_tprune.reduction.registry import Reducer
from edge_tprune.schedule import default_blocks

FOLDER = Path(__file__).parent / "tuned"
EVIDENCE = Path(__file__).parent / "pattern_evidence.json"


@lru_cache
def _document(method: str) -> dict[str, Any] | None:
    file = FOLDER / f"{method}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def tuned_blocks(method: str) -> dict[str, list[int]]:
    """Per budget that a method was tuned for, the blocks (of 12, counted from 1) that remove tokens; empty where none was."""
    found = _document(method)
    return {} if found is None else {name: list(entry["blocks"]) for name, entry in found["budgets"].items()}


@lru_cache
def _evidence() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    return found


def evidence(method: str) -> dict[str, dict[str, dict[str, Any]]]:
    """How a method's patterns did: network -> budget -> `kl` of the pattern, `equal_kl` of equal shares, and their paired difference `change`, each with its
    interval, in nats."""
    return {
        network: {row["budget"]: row for row in found["rows"] if row["method"] == method}
        for network, found in _evidence().items()
        if any(row["method"] == method for row in found["rows"])
    }


def is_tried(method: type[Reducer], network: str, budgets: Sequence[float]) -> bool:
    """Whether the patterns of a method for these budgets were tried on a network; also where it has none, as equal shares need no trial."""
    if network in evidence(method.name):
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
    found = None if faithful or not patterns else _document(method.name)
    blocks = list((faithful and method.paper_blocks) or method.default_blocks)
    if found is None and _is_range(blocks):
        places = _range(blocks, depth)
        return places, (1.0,) * len(places)
    weights = [1.0] * len(blocks)
    if found is not None:
        nearest = min(found["budgets"], key=lambda name: (abs(float(name) - budget), name))
        blocks, weights = found["budgets"][nearest]["blocks"], found["budgets"][nearest]["weights"]
    moved: dict[int, float] = {}
    for block, weight in zip(blocks, weights):
        (place,) = default_blocks(depth, [block])
        moved[place] = moved.get(place, 0.0) + weight  # blocks that meet in a shallower network remove what both would
    return tuple(sorted(moved)), tuple(moved[place] for place in sorted(moved))


def equal_blocks(method: type[Reducer], depth: int) -> tuple[int, ...]:
    """The blocks of a network `depth` blocks deep where a method removes equal shares if nothing was tuned."""
    blocks = list(method.default_blocks)
    return _range(blocks, depth) if _is_range(blocks) else tuple(default_blocks(depth, blocks))


def _is_range(blocks: list[int]) -> bool:
    """Whether these are all blocks between two, which is so in a network of any depth."""
    return len(blocks) == blocks[-1] - blocks[0] + 1 > 3


def _range(blocks: list[int], depth: int) -> tuple[int, ...]:
    return tuple(range(1 + (blocks[0] - 1) * depth // 12, depth + 1))
