"""Token reduction for timm ViTs: `prune` and `macs`, the methods and how to add one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from operator import index
from typing import Any

from torch import nn

from edge_tprune.documents import LARGEST, MethodOptions, show
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.models.adapter import FEATURES, TOKENS
from edge_tprune.models.families import adapt, can_adapt
from edge_tprune.reduction import methods as _methods  # registers them
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT, check_method, network_shape
from edge_tprune.reduction.methods.resize import solve_resize
from edge_tprune.reduction.ops import prefix_bonus, top
from edge_tprune.reduction.outcome import Append, First, Keep, Merge, Outcome, Propagate
from edge_tprune.reduction.registry import Evidence, Reducer, Stage, register, unregister
from edge_tprune.reduction.tuned import acts_in_every_block, pattern
from edge_tprune.schedule import TOLERANCE, Schedule, from_budget, from_tokens

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
    "prefix_bonus",
    "prune",
    "prune_in",
    "register",
    "solve_schedule",
    "top",
    "unregister",
]
del _methods


def solve_schedule(
    model: nn.Module,
    method: str,
    *,
    budget: float | None = None,
    schedule: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    multiple_of: int = 1,
    exact_savings: bool = True,
    output: str | None = None,
    name: str | None = None,
    options: MethodOptions | None = None,
) -> Schedule:
    """The schedule that `prune` would realise, and how near it comes to the budget. Arguments as for `prune`."""
    _check_kinds(method, budget)
    schedule, blocks = _whole_numbers("schedule", schedule), _whole_numbers("blocks", blocks)
    (multiple_of,) = _whole_numbers("multiple_of", [multiple_of]) or (1,)
    reducer, options = registry.any_method(method), options or {}
    shape = network_shape(model, name, output, reducer, options)
    check_method(reducer, model, name)
    if (budget is None) == (schedule is None):
        raise UserError(
            "give a budget (share of MACs) or a schedule (tokens after each block)"
            + (", not both" if budget is not None else "")
        )
    if shape.place == "image":
        if blocks or multiple_of != 1:
            raise UserError(
                f"method {method} acts on the image, before the first block: leave blocks and multiples of tokens out"
            )
        return solve_resize(shape, adapt(model, name).grid, budget, schedule, exact_savings)
    if schedule is not None:
        if blocks or multiple_of != 1:
            raise UserError("a schedule says how many tokens every block leaves: leave blocks and multiples of tokens out")
        return from_tokens(shape, schedule)
    assert budget is not None
    least = shape.share(shape.exact_schedule()) if exact_savings else 1.0
    if 0 < budget * (1 + TOLERANCE) < least and registry.fewest(reducer, shape.tokens, shape.prefix_tokens) == shape.tokens:
        raise UserError(
            f"budget {float(budget):g} cannot be reached with method {method}, which {reducer.limit}: the least is {least:.3f}. "
            "Choose another method: edge-tprune methods"
        )
    if blocks:
        chosen, weights = tuple(dict.fromkeys(blocks)), None
    else:
        faithful = bool(options.get(registry.FAITHFUL))
        # Patterns were searched for logits. Few large removals cost features more than many small ones, and one in the last block, which saves
        # half a block, as much as one before.
        reads_patches = (output or adapt(model, name).default_output) in (FEATURES, TOKENS)
        patterns = not (reads_patches and acts_in_every_block(reducer))
        chosen, weights = pattern(reducer, shape.blocks, budget, faithful, patterns=patterns)
        if reads_patches and not faithful and len(chosen) > 1 and chosen[-1] == shape.blocks:
            chosen, weights = chosen[:-1], weights[:-1]
    found = from_budget(
        shape,
        budget,
        chosen,
        multiple_of=multiple_of,
        fewest=lambda tokens: registry.fewest(reducer, tokens, shape.prefix_tokens),
        removal=reducer.removal,
        weights=weights,
        exact_savings=exact_savings,
    )
    if blocks and shape.blocks in blocks and exact_savings and shape.saves_last_block(found.tokens) and not found.remark:
        remark = f"budget {float(budget):g}: block {shape.blocks} removes nothing, because it computes only what the head reads"
        found = replace(found, remark=remark)
    return found


def _check_kinds(method: object, budget: object) -> None:
    """Refuses what a program gave for something of another type.

    Raises:
        UserError: naming it.
    """
    if not isinstance(method, str):
        raise UserError(f"method is {method!r}: give a name, such as 'zero_tprune'")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, Real)):
        raise UserError(f"budget is {budget!r}: give a share of the MACs, such as 0.65")
    if budget is not None and abs(budget) >= LARGEST:  # type: ignore[operator]
        raise UserError(f"budget {show(budget)} is out of range: a budget is a share of the MACs, above 0 and at most 1")


def _whole_numbers(name: str, given: Any) -> tuple[int, ...] | None:
    """Numbers of Python's, of those of NumPy or PyTorch; None for None.

    Raises:
        UserError: others.
    """
    if given is None:
        return None
    try:
        numbers = list(given)
        if any(isinstance(number, bool) for number in numbers):
            raise TypeError
        found = tuple(index(number) for number in numbers)
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{name} is {given!r}: give whole numbers") from error
    if wrong := [number for number in found if not -LARGEST < number < LARGEST]:
        raise UserError(f"{name}: {show(wrong[0])} is out of range")
    return found


def prune(
    model: nn.Module,
    *,
    method: str = "zero_tprune",
    budget: float | None = None,
    schedule: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    multiple_of: int = 1,
    exact_savings: bool = True,
    output: str | None = None,
    normalize: bool = False,
    **options: Any,
) -> PrunedViT:
    """A pretrained timm ViT with fewer tokens, without training.

    The result shares the given model's parameters; the given model stays as it was and usable.

    Args:
        model: a timm `VisionTransformer`, `Eva` or `Beit` (docs/models.md lists the names).
        method: a name that `edge-tprune methods` lists.
        budget: share of the unpruned model's MACs, in (0, 1].
        schedule: instead of a budget: tokens after each block, class token included.
        blocks: where tokens are removed, counted from 1; the method's own choice by default, of features and tokens without the last block.
        multiple_of: with a budget, make token counts multiples of this.
        exact_savings: with a budget below 1, let the last block compute only what the head reads, where it does not read all tokens: the same
            output for fewer MACs, which go to more tokens before (`edge_tprune.schedule.macs`). A schedule is taken as it stands.
        output: "logits", "embedding", "features" (a map with a vector for every patch) or "tokens"; by default logits where there is a head, else
            an embedding.
        normalize: bring an embedding to unit length.
        **options: the method's own.

    Returns:
        A module that maps images (B, 3, H, W) to the output, with `.schedule` and timm's feature interface (`forward_features`,
        `forward_head`, `forward_intermediates`, `get_intermediate_layers`).

    Raises:
        UserError: an unknown method or option, a model or budget that cannot be.
    """
    chosen = solve_schedule(
        model,
        method,
        budget=budget,
        schedule=schedule,
        blocks=blocks,
        multiple_of=multiple_of,
        exact_savings=exact_savings,
        output=output,
        options=options,
    )
    return PrunedViT(model, registry.any_method(method), chosen.tokens, options, output=output, normalize=normalize)


def prune_in(module: nn.Module, path: str, **arguments: Any) -> nn.Module:
    """A network with a ViT somewhere inside, with that ViT pruned in place of the member at `path`.

    Parameters are shared with the given module, which stays as it was and usable.

    Args:
        module: a detector, a segmentation network, ... that calls its ViT by timm's interface.
        path: of the ViT inside it, as in `module.named_modules()`: "backbone.encoder".
        **arguments: as for `prune`; exact savings are off, because the network around it may read any token.

    Returns:
        A copy of the module whose member at `path`, and at every other name of the same ViT, is a `PrunedViT`.

    Raises:
        UserError: no such member, or one that cannot be pruned.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"a {type(module).__name__} is no network of PyTorch's")
    known = {name: part for name, part in module.named_modules(remove_duplicate=False) if name}
    vits = [name for name, part in known.items() if can_adapt(part)]
    found = f"It has a ViT at {', '.join(map(repr, vits))}" if vits else "It has no ViT that can be pruned"
    if not isinstance(path, str) or path not in known:
        hint = did_you_mean(path, known) if isinstance(path, str) and path else ""
        raise UserError(f"{type(module).__name__} has no member {path!r}.{hint} {found}")
    if path not in vits:
        try:
            adapt(known[path], f"member {path!r} of {type(module).__name__}")
        except UserError as error:
            raise UserError(f"{error}. {found}") from error
    _check_kinds(method := arguments.get("method", "zero_tprune"), None)
    registry.method(method)  # what calls the ViT inside may read any patch
    pruned = prune(known[path], **{"exact_savings": False, **arguments})
    kept = {id(parameter): parameter for parameter in (*module.parameters(), *module.buffers())}
    clone = copy.deepcopy(module, dict(kept))  # everything but the tensors is copied
    for each, part in known.items():
        if part is known[path]:  # a network may hold it under several names
            parent, _, name = each.rpartition(".")
            setattr(clone.get_submodule(parent), name, pruned)
    return clone


def macs(model: nn.Module) -> int:
    """Multiply-accumulates per image of a timm ViT or of what `prune` returned (see `edge_tprune.schedule.macs`)."""
    if isinstance(model, PrunedViT):
        return model.shape.macs(model.schedule)
    return network_shape(model).macs()
