"""Loading a timm ViT with real weights, and its preprocessing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.models import reference

RANDOM = "random"
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be pruned, and where it came from."""

    name: str
    model: VisionTransformer  #: in eval mode, float32
    weights: str  #: a file's name, "pretrained", "reference" or "random"
    weights_sha256: str  #: over all tensors, names and shapes: equal for equal weights whatever file they came from
    preprocessing: dict[str, Any]  #: input_size, mean, std, interpolation, crop_pct, crop_mode

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Maps a PIL image to a normalised tensor (3, H, W), as timm does at evaluation."""
        return make_transform(self.preprocessing)


def make_transform(preprocessing: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform for a stored preprocessing record: PIL image -> (3, H, W) float32."""
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size=tuple(preprocessing["input_size"]),
        is_training=False,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
    )
    return transform


def load_model(name: str, weights: str | Path | None = None, classes: int | None = None) -> LoadedModel:
    """A model by name.

    Args:
        name: "reference", or any timm name of a plain ViT.
        weights: a .safetensors file, a PyTorch state dict (read with weights_only=True), "random", or None for the
            reference model's shipped weights and for timm's own pretrained ones (fetched from the model hub).
        classes: number of classes of a checkpoint that was fine-tuned; the model's own by default.

    Raises:
        UserError: an unknown name, unreadable or unfitting weights, or a hub that cannot be reached.
    """
    label = str(weights) if weights is not None else (reference.NAME if name == reference.NAME else PRETRAINED)
    if name == reference.NAME:
        if classes not in (None, reference.CLASSES):
            raise UserError(f"the reference model has {reference.CLASSES} classes: --classes {classes} does not fit it")
        model: nn.Module = reference.build()
        path: Path | None = reference.WEIGHTS if weights is None else None
    else:
        model = _create(name, pretrained=weights is None, classes=classes)
        path = None
    if weights is not None and label != RANDOM:
        path = Path(weights)
        label = path.name
    if path is not None:
        _load_strictly(model, read_state_dict(path), name, path)
    elif label == RANDOM:
        torch.manual_seed(0)
        model = reference.build() if name == reference.NAME else _create(name, pretrained=False, classes=classes)
    if getattr(model, "num_classes", 1) == 0:
        raise UserError(
            f"{name} has no classifier head: choose a classifier, or give --classes N with the weights of a fine-tuned one"
        )
    model.eval().requires_grad_(False)
    config = resolve_model_data_config(model)
    preprocessing = {
        "input_size": list(config["input_size"]),
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
    }
    return LoadedModel(name, model, label, _hash_weights(model), preprocessing)


def _create(name: str, pretrained: bool, classes: int | None) -> nn.Module:
    base = name.split(".")[0]
    if not timm.is_model(base):
        known = [n for n in timm.list_models() if n.startswith(("deit", "vit_"))]
        hint = did_you_mean(base, known) or did_you_mean(base, timm.list_models())
        raise UserError(
            f"no model {name!r} in timm {timm.__version__}.{hint} Use 'reference' or a plain ViT (deit_*, deit3_*, vit_*)"
        )
    extra = {} if classes is None else {"num_classes": classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **extra)
    except Exception as error:
        if not pretrained:
            raise UserError(f"timm cannot create {name!r}: {_first_line(error)}") from error
        raise UserError(
            f"the pretrained weights of {name} could not be fetched ({_first_line(error)}). Check the name and the connection, or give --weights FILE"
        ) from error
    return model


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a PyTorch checkpoint; never executes code from it.

    A checkpoint that wraps its state dict as {"model": ...} or {"state_dict": ...} is unwrapped.

    Raises:
        UserError: no such file, or one that is neither.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"weights file {path} cannot be read ({_first_line(error)}). Give a .safetensors file or a PyTorch state dict (tensors only)"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"weights file {path} holds no state dict: expected a mapping from names to tensors")
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _load_strictly(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state]
    unexpected = [k for k in state if k not in wanted]
    reshaped = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    parts = [
        f"{label} {_some(keys)}"
        for label, keys in (("missing", missing), ("unexpected", unexpected), ("other shape:", reshaped))
        if keys
    ]
    if parts:
        raise UserError(
            f"the weights in {path} do not fit {name}: {'; '.join(parts)}. Is it the checkpoint of this very model?"
        )
    model.load_state_dict({k: v.to(wanted[k].dtype) for k, v in state.items()})


def _some(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
