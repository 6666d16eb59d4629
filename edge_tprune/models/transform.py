"""A model's preprocessing: where its parts are from, and timm's own transform for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.models.preprocess import CROP_MODES, INTERPOLATIONS, LEAST_DEVIATION, Preprocessing


def resolve_preprocessing(
    model: nn.Module, size: tuple[int, int] | None, channels: int, recorded: Mapping[str, object], given: Mapping[str, object]
) -> Preprocessing:
    """The preprocessing of a model.

    Args:
        model: of timm, whose own configuration is the default.
        size: (H, W) of the images that it takes, where that is known.
        channels: of these images.
        recorded: what stands beside its checkpoint.
        given: what the user said, which comes first.

    Raises:
        UserError: a value out of range, or an unknown word.
    """
    own = resolve_model_data_config(model)
    chosen = {**own, **recorded, **{key: value for key, value in given.items() if value is not None}}
    height, width = size or own["input_size"][-2:]
    mean, std = (_per_channel(chosen[name], channels, name) for name in ("mean", "std"))
    crop_pct = _number(chosen["crop_pct"], "crop-pct")
    words = {name: str(chosen[name]) for name in ("interpolation", "crop_mode")}
    _check(mean, std, crop_pct, words)
    result = {"input_size": [channels, int(height), int(width)], "mean": mean, "std": std, "crop_pct": crop_pct}
    try:
        return msgspec.convert(result | words, Preprocessing)
    except msgspec.ValidationError as error:
        raise UserError(f"images cannot be prepared as this model takes them: {error}") from error


def _per_channel(values: object, channels: int, name: str) -> list[float]:
    """As timm: one value stands for every channel; the three of colours, for grey, for their mean."""
    listed = [_number(v, name) for v in (values if isinstance(values, (list, tuple)) else [values])]
    if len(listed) == 1:
        return listed * channels
    if channels == 1 and len(listed) == 3:
        return [sum(listed) / 3]
    if len(listed) != channels:
        raise UserError(f"--{name} has {len(listed)} values: give one, or {channels}")
    return listed


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:  # of a checkpoint's record: the options are checked before
        shown = "a whole number beyond 1e300" if isinstance(value, int) else f"{str(value)[:60]!r}"
        raise UserError(f"--{name} is recorded beside the weights as {shown}, which is no number: give --{name}") from error


def _check(mean: Sequence[float], std: Sequence[float], crop_pct: float, words: Mapping[str, str]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if any(not -1 <= v <= 1 for v in values):
            listed = ",".join(f"{v:g}" for v in values)
            raise UserError(
                f"--{name} {listed} is out of range: timm's are for pixels from 0 to 1. Divide those for 0 to 255 by 255"
            )
    if any(v < LEAST_DEVIATION for v in std):
        raise UserError(f"--std {','.join(f'{v:g}' for v in std)} is out of range: give numbers from {LEAST_DEVIATION:g} to 1")
    if not 0 < crop_pct <= 1:
        raise UserError(
            f"--crop-pct {crop_pct:g} is out of range: it is the share of the resized image that the crop keeps, such as 0.875"
        )
    for option, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if (word := words[option]) not in known:
            raise UserError(
                f"--{option.replace('_', '-')} {word!r} is unknown.{did_you_mean(word, known)} Known: {', '.join(known)}"
            )


def make_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform: PIL image -> (C, H, W) float32."""
    transform: Callable[[Image.Image], Tensor] = create_transform(is_training=False, **msgspec.structs.asdict(preprocessing))
    if preprocessing.input_size[0] == 1:
        return lambda image: transform(image.convert("L"))
    return transform
