"""Finding out from a checkpoint's tensors how its model was created: image size, classes, channels, pooling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from edge_tprune.errors import UserError
from edge_tprune.models.architecture import Arguments, create

Inferred = tuple[dict[str, object], list[str]]  # keyword arguments, and what to say of them

POOLS = ("avg", "token", "map")
_POOL_MODULES = ("norm", "fc_norm", "attn_pool")  # which of them a model has depends on how it pools
_TABLES = ("rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table")  # BEiT's


def infer_arguments(
    name: str,
    tensors: Mapping[str, Tensor],
    shape: nn.Module,
    given: Arguments,
    saved: Arguments,
    file: str,
) -> Inferred:
    """Keyword arguments that a checkpoint shows and the user did not give, and what to say of them.

    Args:
        name: of the model.
        tensors: of the checkpoint, by the model's names.
        shape: the model as timm creates it with `given` and `saved`.
        given: what the user said.
        saved: what stands beside the checkpoint.
        file: what messages call the checkpoint.

    Raises:
        UserError: the checkpoint is of another patch size, or of channels that no image has, or contradicts what was given.
    """
    found: dict[str, object] = {}
    remarks: list[str] = []
    for infer in (_classes, _channels, _image_size):
        more, remark = infer(name, tensors, shape, given, file)
        found |= more
        remarks += remark
    if "global_pool" in given:
        _refuse_pool(tensors, shape, given["global_pool"], file)
        return found, remarks
    pool = _pool(name, tensors, shape, {**saved, **given, **found}, file)
    return found | pool[0], remarks + pool[1]


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """The names of a timm model's classifier layers."""
    named: str | tuple[str, ...] = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def first_convolution(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The weights (C, channels, h, w) that embed patches: the checkpoint's and the model's; None where they cannot be compared."""
    named = getattr(model, "pretrained_cfg", {}).get("first_conv")
    key = f"{named}.weight" if isinstance(named, str) else ""
    own = dict(model.named_parameters()).get(key)
    if own is None or key not in tensors or tensors[key].ndim != 4 or own.ndim != 4:
        return None
    return tensors[key], own


def _classes(name: str, tensors: Mapping[str, Tensor], shape: nn.Module, given: Arguments, file: str) -> Inferred:
    heads = [tensors[f"{layer}.weight"] for layer in classifiers(shape) if f"{layer}.weight" in tensors]
    heads = [head for head in heads if head.ndim == 2]
    if not heads:
        return {}, []
    classes = int(heads[0].shape[0])
    asked = given.get("num_classes")
    if asked == 0:
        return {}, [f"{file}: its head of {classes} classes is left out (--classes 0)"]
    if asked is not None and asked != classes:
        raise UserError(f"the head in {file} has {classes} classes, not {asked}: leave --classes out")
    if classes == getattr(shape, "num_classes", None):
        return {}, []
    return {"num_classes": classes}, [f"{file}: {classes} {'class' if classes == 1 else 'classes'}, as its head has"]


def _channels(name: str, tensors: Mapping[str, Tensor], shape: nn.Module, given: Arguments, file: str) -> Inferred:
    pair = first_convolution(tensors, shape)
    if pair is None:
        return {}, []
    theirs, own = pair
    if theirs.shape[2:] != own.shape[2:] and "patch_size" not in given and "flexi" not in name:
        their, our = ("x".join(map(str, weight.shape[2:])) for weight in pair)
        size = theirs.shape[2] if theirs.shape[2] == theirs.shape[3] else (theirs.shape[2], theirs.shape[3])
        raise UserError(
            f"{file} is of a model with patches of {their} pixels, and {name} has patches of {our}: name the model that it is of, "
            f"or give --model-kwargs patch_size={size}"
        )
    remarks = []
    if theirs.shape[2:] != own.shape[2:]:
        their, our = (" x ".join(map(str, weight.shape[2:])) for weight in pair)
        remarks.append(f"{file}: its embedding of patches of {their} pixels is resampled to patches of {our}, as timm does")
    if theirs.shape[1] == own.shape[1]:
        return {}, remarks
    channels = int(theirs.shape[1])
    if "in_chans" in given:
        raise UserError(
            f"{file} is for images of {channels} channels, not {given['in_chans']}: leave --model-kwargs in_chans out"
        )
    if channels not in (1, 3):
        raise UserError(f"{file} is for images of {channels} channels: only colour (3) and grey (1) are supported")
    remarks.append(f"{file}: images of {channels} channel{'s'[: channels != 1]}, as its patch embedding has")
    return {"in_chans": channels}, remarks


def _image_size(name: str, tensors: Mapping[str, Tensor], shape: nn.Module, given: Arguments, file: str) -> Inferred:
    embed = getattr(shape, "patch_embed", None)
    grid, patch = getattr(embed, "grid_size", None), getattr(embed, "patch_size", None)
    if grid is None or patch is None:
        return {}, []
    if 0 in grid:
        raise UserError(f"--img-size is smaller than a patch of {name}, which has {patch[0]} x {patch[1]} pixels")
    patches = _patches(tensors, shape, int(grid[0] * grid[1]))
    if patches is None or patches == grid[0] * grid[1]:
        return {}, []
    if patches < 1:
        raise UserError(f"{file} has position embeddings for no patches: it is damaged, or of another network")
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(
            f"{file} has position embeddings for {patches} patches, which are no square: give the size of its images, "
            "--img-size HEIGHT,WIDTH"
        )
    trained = f"images of {side * patch[0]} x {side * patch[1]} pixels ({side} x {side} patches)"
    if "img_size" in given:
        return {}, [
            f"{file}: its position embeddings, for {trained}, are resampled to {grid[0]} x {grid[1]} patches, as timm does"
        ]
    size = side * int(patch[0]) if patch[0] == patch[1] else (side * int(patch[0]), side * int(patch[1]))
    return {"img_size": size}, [f"{file}: {trained}, as its position embeddings have; --img-size resamples them"]


def pair(size: object) -> tuple[Any, ...] | None:
    """An image size of timm's as (height, width)."""
    return tuple(size) if isinstance(size, (list, tuple)) else None if size is None else (size, size)


def resample_square(state: dict[str, Tensor], tensors: Mapping[str, Tensor], model: nn.Module, file: str) -> list[str]:
    """Resamples position embeddings (1, N, C) for a grid of as many patches as the square that they are taken for, as timm does.

    Args:
        state: of the model; changed in place.
        tensors: of the checkpoint: what was resampled already is another tensor there.
        model: that it is for.
        file: what messages call the checkpoint.

    Returns:
        What to say of it.
    """
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    ours, theirs = state.get("pos_embed"), tensors.get("pos_embed")
    if grid is None or grid[0] == grid[1] or ours is None or theirs is None or ours.ndim != 3 or not torch.equal(ours, theirs):
        return []
    patches = int(grid[0] * grid[1])
    side = math.isqrt(patches)
    if side * side != patches:
        return []
    state["pos_embed"] = resample_abs_pos_embed(ours, list(grid), [side, side], int(ours.shape[1]) - patches)
    return [
        f"{file}: its position embeddings, taken for {side} x {side} patches, are resampled to {grid[0]} x {grid[1]} patches, as timm does"
    ]


def _patches(tensors: Mapping[str, Tensor], shape: nn.Module, own: int) -> int | None:
    """For how many patches a checkpoint has position embeddings (1, N, C); None where it does not say."""
    if ("cls_token" in tensors) != (getattr(shape, "cls_token", None) is not None):
        return None  # another model, as the comparison of names will say
    theirs, ours = tensors.get("pos_embed"), getattr(shape, "pos_embed", None)
    if theirs is not None and ours is not None and theirs.ndim == ours.ndim == 3:
        prefix = int(ours.shape[1]) - own
        if "register_tokens" in tensors:  # DINOv2's own files have an embedding for the class token that timm adds to it
            prefix = 1
        return int(theirs.shape[1]) - prefix
    if theirs is not None and ours is not None and theirs.ndim == ours.ndim == 4:
        return int(theirs.shape[1] * theirs.shape[2])
    table = next((tensors[key] for key in _TABLES if key in tensors), None)
    if table is not None and theirs is None:
        side = math.isqrt(max(int(table.shape[0]) - 3, 0))  # (2 g - 1)^2 offsets of a g x g grid, and three for the class token
        if side % 2 and side * side == int(table.shape[0]) - 3:
            return ((side + 1) // 2) ** 2
    return None


def _pool(name: str, tensors: Mapping[str, Tensor], shape: nn.Module, arguments: Arguments, file: str) -> Inferred:
    wrong = _pool_misfit(tensors, shape)
    if not wrong:
        return {}, []
    for pool in POOLS:
        try:
            other = create(name, {**arguments, "global_pool": pool}, shape_only=True).model
        except UserError:
            continue
        if not _pool_misfit(tensors, other):
            return {"global_pool": pool}, [f"{file}: global_pool={pool}, as its {_shown(tensors, wrong)} shows"]
    return {}, []


def _refuse_pool(tensors: Mapping[str, Tensor], shape: nn.Module, pool: str, file: str) -> None:
    """Refuses a pooling for which the checkpoint has no layers, or has others."""
    theirs = {key.partition(".")[0] for key in tensors} & set(_POOL_MODULES)
    own = {key.partition(".")[0] for key in shape.state_dict()} & set(_POOL_MODULES)
    if theirs and theirs != own:
        raise UserError(
            f"{file} was not trained with --global-pool {pool}: it has {' and '.join(sorted(theirs))}, and that needs "
            f"{' and '.join(sorted(own)) or 'none of them'}. Leave --global-pool out"
        )


def _shown(tensors: Mapping[str, Tensor], modules: set[str]) -> str:
    there = sorted(module for module in modules if any(key.startswith(f"{module}.") for key in tensors))
    return there[0] if there else f"lack of {sorted(modules)[0]}"


def _pool_misfit(tensors: Mapping[str, Tensor], model: nn.Module) -> set[str]:
    """Modules around pooling that only one of checkpoint and model has."""
    theirs = {key.partition(".")[0] for key in tensors}
    own = {key.partition(".")[0] for key in model.state_dict()}
    return {module for module in _POOL_MODULES if (module in theirs) != (module in own)}
