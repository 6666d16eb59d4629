"""From a budget (a share of MACs) to a schedule (tokens after each block).

What the chosen blocks remove follows one law: the same share of the non-prefix tokens at each, as EViT, DynamicViT and Zero-TPrune's own
ablations do, or the same count, as ToMe does; or, with weights, more at some than at others. How much is solved for, then the integer counts
around it are chosen so that the realised MACs come as near to the request as counts allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Literal

from edge_tprune.errors import UserError
from edge_tprune.schedule.macs import NetworkShape

DEFAULT_BLOCKS = (4, 7, 10)
"""Where tokens are removed unless the method or the user says otherwise: blocks counted from 1, of 12 (EViT, DynamicViT, BAT)."""

Removal = Literal["share", "count"]

TOLERANCE = 0.01
"""A realised share within this fraction of the requested one needs no remark."""


_ENUMERATED_STAGES = 4  # with up to so many stages every combination of multiples is tried: some thousands


@dataclass(frozen=True)
class Schedule:
    """A schedule and how well it meets the budget it was made for."""

    tokens: tuple[int, ...]  #: after each block, prefix tokens included
    share: float  #: of the unpruned MACs
    requested: float | None = None  #: the budget asked for; None where the schedule itself was given
    remark: str = ""  #: a clear statement where the counts are not what was asked for


def default_blocks(depth: int, of_twelve: Sequence[int] = DEFAULT_BLOCKS) -> tuple[int, ...]:
    """Blocks given for a 12-block ViT, moved to the same relative depth of one with `depth` blocks; counted from 1."""
    return tuple(sorted({min(depth, max(1, round((block - 1) * depth / 12) + 1)) for block in of_twelve}))


def from_tokens(shape: NetworkShape, tokens: Sequence[int]) -> Schedule:
    """A schedule given as tokens after each block, checked against the network."""
    after = shape.check(tokens)
    return Schedule(after, shape.share(after))


def from_counts(shape: NetworkShape, budget: float, counts: Sequence[int], *, exact_savings: bool = False) -> Schedule:
    """The schedule with the same number of tokens in all blocks, one of `counts`, that spends most of `budget` without exceeding it.

    Args:
        shape: the network.
        budget: share of the unpruned MACs, in (0, 1].
        counts: of tokens, prefix tokens included, below the network's own.
        exact_savings: as for `from_budget`.

    Raises:
        UserError: a budget outside (0, 1], or below all counts.
    """
    _check_budget(budget)
    if budget == 1:
        return Schedule(shape.full_schedule(), 1.0, budget)
    last = shape.read_tokens if exact_savings else None
    whole = [(count,) * shape.blocks for count in (shape.tokens, *counts)]
    found = [tokens if last is None else (*tokens[:-1], last) for tokens in whole]
    within = [tokens for tokens in found if shape.share(tokens) <= budget]
    if not within:
        raise UserError(
            f"budget {budget:g} cannot be reached by a smaller image: the nearest reachable is {min(map(shape.share, found)):.3f}"
        )
    best = max(within, key=shape.share)
    share = shape.share(best)
    remark = ""
    if abs(share - budget) > TOLERANCE * budget:
        remark = (
            f"budget {budget:g}: the largest image within it, of {best[0] - shape.prefix_tokens} patches, comes to {share:.3f}"
        )
    return Schedule(best, share, budget, remark)


def _check_budget(budget: float) -> None:
    if not 0 < budget <= 1:
        raise UserError(
            f"budget {float(budget):g} is out of range: a budget is the share of the unpruned model's MACs, above 0 and at most 1"
        )


def from_budget(
    shape: NetworkShape,
    budget: float,
    blocks: Sequence[int],
    *,
    multiple_of: int = 1,
    fewest: Callable[[int], int] | None = None,
    removal: Removal = "share",
    weights: Sequence[float] | None = None,
    exact_savings: bool = False,
) -> Schedule:
    """The schedule that realises `budget` by removing tokens at `blocks`.

    Args:
        shape: the network.
        budget: share of the unpruned MACs, in (0, 1].
        blocks: where tokens may be removed, counted from 1.
        multiple_of: token counts after a removal are multiples of this (8 suits tensor cores).
        fewest: the fewest tokens a method can leave from a given number, for methods with a limit per block.
        removal: "share": every block removes the same share of what is left; "count": the same number of tokens.
        weights: how much each of `blocks` removes relative to the others; equal by default. With shares they are exponents: a block of weight 2
            keeps the square of what one of weight 1 does.
        exact_savings: the last block serves only the tokens that the head reads, where it does not read all
            (`NetworkShape.exact_schedule`); nothing is then removed in it, and what that saves is spent on more tokens before.
            A budget of 1 stays the unpruned network as timm runs it.

    Raises:
        UserError: a budget outside (0, 1], blocks the network lacks, weights that do not fit them, or a budget below what removing
            everything at `blocks` reaches.
    """
    _check_budget(budget)
    if multiple_of < 1:
        raise UserError(f"token counts cannot be multiples of {multiple_of}: give 1 or more")
    if budget == 1:
        return Schedule(shape.full_schedule(), 1.0, budget)
    weight = _weigh(shape, budget, blocks, weights)
    blocks = tuple(sorted(weight))
    last = shape.read_tokens if exact_savings else None
    if last is not None:
        exact = shape.share(shape.exact_schedule())
        if exact <= budget:
            remark = f"budget {budget:g}: without removing any token, exact savings alone reach {exact:.3f}"
            return Schedule(shape.exact_schedule(), exact, budget, remark)
        blocks = tuple(block for block in blocks if block < shape.blocks)
        if not blocks:
            raise UserError(
                f"budget {budget:g} needs a block before the last to remove tokens at: the head reads {last} token(s) of the last one"
            )

    law = _Law(shape, {block: weight[block] for block in blocks}, removal, multiple_of, fewest, last)
    down = [0] * len(blocks)
    lowest = law.spread(0.0, down)
    if shape.share(lowest) > budget * (1 + TOLERANCE):
        coarse = f", to multiples of {multiple_of}" if multiple_of > 1 else ""
        raise UserError(
            f"budget {budget:g} cannot be reached by removing tokens at blocks {', '.join(map(str, blocks))}{coarse}: "
            f"the nearest reachable is {shape.share(lowest):.3f}. Ask for more, or remove earlier (--blocks)"
            + (", or give a smaller --multiple-of" if coarse else "")
        )

    low, high = 0.0, 1.0
    for _ in range(50):
        keep = (low + high) / 2
        low, high = (keep, high) if shape.share(law.spread(keep, down)) < budget else (low, keep)
    # Counts are whole (and perhaps multiples): round each stage down or up, and, where the grid is coarse, nudge the keep
    # rate too. With many stages each rounding is small, so rounding all of the first ones one way loses nothing.
    free = min(len(blocks), 5)
    roundings = [(*[0] * (len(blocks) - free), *up) for up in product((0, 1), repeat=free)]
    nudges = (0.0,) if multiple_of == 1 else (0.0, -0.01, 0.01, -0.02, 0.02, -0.04, 0.04)
    candidates = {law.spread(min(1.0, max(0.0, keep + nudge)), up) for nudge in nudges for up in roundings}
    if multiple_of > 1 and len(blocks) <= _ENUMERATED_STAGES:
        candidates |= law.all_multiples()
    best = min(candidates, key=lambda after: (_coarse(abs(shape.share(after) - budget)), law.unevenness(after), after))
    share = shape.share(best)
    remark = ""
    if abs(share - budget) > TOLERANCE * budget:
        remark = f"budget {budget:g}: the nearest reachable with these token counts is {share:.3f}"
    return Schedule(best, share, budget, remark)


def _weigh(shape: NetworkShape, budget: float, blocks: Sequence[int], weights: Sequence[float] | None) -> dict[int, float]:
    """How much each block removes relative to the others. Errors as `from_budget`."""
    if weights is not None and (len(weights) != len(blocks) or len(set(blocks)) != len(blocks) or min(weights) <= 0):
        raise UserError(
            f"weights {list(weights)} do not fit blocks {list(blocks)}: give one number above 0 per block, each block once"
        )
    if not blocks:
        raise UserError(f"budget {budget:g} needs at least one block to remove tokens at")
    if min(blocks) < 1 or max(blocks) > shape.blocks:
        odd = ", ".join(str(block) for block in sorted(set(blocks)) if not 1 <= block <= shape.blocks)
        raise UserError(f"there is no block {odd}: the model has blocks 1 to {shape.blocks}")
    return dict(zip(blocks, weights or [1.0] * len(blocks)))


@dataclass(frozen=True)
class _Law:
    """What the blocks remove, as one number decides. Fields as the arguments of `from_budget`."""

    shape: NetworkShape
    weight: Mapping[int, float]  #: of each block that removes tokens, in order
    removal: Removal
    multiple_of: int
    fewest: Callable[[int], int] | None
    last: int | None  #: tokens that the last block serves, where it does not serve all

    def spread(self, keep: float, up: Sequence[int]) -> tuple[int, ...]:
        """Tokens after each block where every stage keeps a part `keep`; a count is rounded up at the stages where `up` is 1, else down."""
        prefix, multiple_of = self.shape.prefix_tokens, self.multiple_of
        patches = wanted = float(self.shape.tokens - prefix)
        current, found = self.shape.tokens, {}
        for (block, weight), rounded in zip(self.weight.items(), up):
            wanted = wanted * keep**weight if self.removal == "share" else max(0.0, wanted - (1 - keep) * weight * patches)
            count = int((wanted + prefix) // multiple_of + rounded) * multiple_of
            floor = max(prefix + 1, self.fewest(current) if self.fewest else 0)
            found[block] = current = min(current, max(count, -(-floor // multiple_of) * multiple_of))
        return self._after(found)

    def all_multiples(self) -> set[tuple[int, ...]]:
        """Every schedule whose counts after the blocks are non-increasing multiples; with fine multiples, a coarser grid of them."""
        step = self.multiple_of * max(1, -(-self.shape.tokens // (self.multiple_of * 28)))
        counts = [count for count in range(step, self.shape.tokens + 1, step) if count > self.shape.prefix_tokens]
        found = set()
        for chosen in combinations_with_replacement(reversed(counts), len(self.weight)):
            before = (self.shape.tokens, *chosen[:-1])
            if self.fewest is None or all(after >= self.fewest(count) for count, after in zip(before, chosen)):
                found.add(self._after(dict(zip(self.weight, chosen))))
        return found

    def _after(self, stages: Mapping[int, int]) -> tuple[int, ...]:
        """Tokens after each block, from those after the blocks that remove some."""
        after, current = [], self.shape.tokens
        for block in range(1, self.shape.blocks + 1):
            current = stages.get(block, current)
            after.append(current)
        return tuple(after) if self.last is None else (*after[:-1], self.last)

    def unevenness(self, after: Sequence[int]) -> float:
        """How far the stages' removals are from the law: 0 where each removes its part."""
        prefix, before, parts = self.shape.prefix_tokens, self.shape.tokens, []
        for block, weight in self.weight.items():
            now = after[block - 1]
            left = max(0.5, now - prefix) / max(1, before - prefix)
            parts.append(left ** (1 / weight) if self.removal == "share" else (before - now) / weight / self.shape.tokens)
            before = now
        return max(parts) - min(parts)


def _coarse(gap: float) -> float:
    """Gaps below a third of a percent count as none, so that the evenest of the near ones is taken."""
    return 0.0 if gap < TOLERANCE / 3 else gap
