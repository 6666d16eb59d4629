"""Token reduction for timm ViTs: `prune` and `macs`, the methods and how to add one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from edge_tprune.errors import UserError
from edge_tprune.reduction import methods as _methods  # registers them
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT, check_method, network_shape
from edge_tprune.reduction.ops import prefix_bonus, top
from edge_tprune.reduction.outcome import Append, First, Keep, Merge, Outcome, Propagate
from edge_tprune.reduction.registry import Evidence, Reducer, Stage, register
from edge_tprune.reduction.tuned import pattern
from edge_tprune.schedule import Schedule, from_budget, from_tokens

__all__ = [
    "Append",
    "Evidence",
    "First",
    "Keep",
    "Merge",
    "Outcome",
    "Propagate",
    "PrunedViT",
    "Reducer",
    "Stage",
    "macs",
    "network_shape",
    "pattern",
    "plan",
    "prefix_bonus",
    "prune",
    "register",
    "top",
]
del _methods


def plan(
    model: nn.Module,
    method: str,
    *,
    budget: float | None = None,
    schedule: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    multiple_of: int = 1,
    name: str | None = None,
) -> Schedule:
    """The schedule that `prune` would realise, and how near it comes to the budget. Arguments as for `prune`."""
    reducer = registry.method(method)
    shape = network_shape(model, name)
    check_method(reducer, model, name)
    if (budget is None) == (schedule is None):
        raise UserError("give either a budget (share of MACs) or a schedule (tokens after each block), not both")
    if schedule is not None:
        return from_tokens(shape, schedule)
    assert budget is not None
    chosen, weights = (tuple(dict.fromkeys(blocks)), None) if blocks else pattern(reducer, shape.blocks, budget)
    return from_budget(
        shape,
        budget,
        chosen,
        multiple_of=multiple_of,
        fewest=lambda tokens: reducer.fewest(tokens, shape.prefix_tokens),
        removal=reducer.removal,
        weights=weights,
    )


def prune(
    model: nn.Module,
    *,
    method: str = "zero_tprune",
    budget: float | None = None,
    schedule: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    multiple_of: int = 1,
    **options: Any,
) -> PrunedViT:
    """A pretrained timm ViT with fewer tokens, without training.

    The result shares the given model's parameters; the given model stays as it was and usable.

    Args:
        model: a timm `VisionTransformer` with plain blocks (DeiT, DeiT-III, AugReg ViT, registers, ...).
        method: a name that `edge-tprune methods` lists.
        budget: share of the unpruned model's MACs, in (0, 1].
        schedule: instead of a budget: tokens after each block, class token included.
        blocks: where tokens are removed, counted from 1; the method's own choice by default.
        multiple_of: with a budget, make token counts multiples of this.
        **options: the method's own.

    Returns:
        A module that maps images (B, 3, H, W) to logits (B, classes), with `.schedule`.

    Raises:
        UserError: an unknown method or option, a model or budget that cannot be.
    """
    chosen = plan(model, method, budget=budget, schedule=schedule, blocks=blocks, multiple_of=multiple_of)
    return PrunedViT(model, registry.method(method), chosen.tokens, options)


def macs(model: nn.Module) -> int:
    """Multiply-accumulates per image of a timm ViT or of what `prune` returned (see `edge_tprune.schedule.macs`)."""
    if isinstance(model, PrunedViT):
        return model.shape.macs(model.schedule)
    return network_shape(model).macs()
