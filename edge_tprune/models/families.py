"""Which adapter takes a network apart, and why some networks have none."""

from __future__ import annotations

from torch import nn

from edge_tprune.errors import UserError
from edge_tprune.models.adapter import Adapter
from edge_tprune.models.beit import BeitAdapter
from edge_tprune.models.eva import EvaAdapter
from edge_tprune.models.vit import VitAdapter

ADAPTERS: tuple[type[Adapter], ...] = (VitAdapter, EvaAdapter, BeitAdapter)

HIERARCHICAL = "its stages change the grid of patches, so a token that is missing in one stage leaves a hole in the next"
REFUSED = {
    "SwinTransformer": HIERARCHICAL,
    "SwinTransformerV2": HIERARCHICAL,
    "SwinTransformerV2Cr": HIERARCHICAL,
    "Hiera": HIERARCHICAL,
    "MaxxVit": HIERARCHICAL,
    "MultiScaleVit": HIERARCHICAL,
    "PyramidVisionTransformerV2": HIERARCHICAL,
    "Xcit": "it attends over channels and convolves over the grid of patches, which must therefore stay whole",
    "Cait": "its talking-heads attention mixes maps of several heads, which no fused attention computes",
    "VisionTransformerSAM": "it attends within windows of the grid of patches, which must therefore stay whole",
}
"""timm's classes that people ask for in vain, and why."""


def adapt(model: nn.Module, name: str | None = None) -> Adapter:
    """The adapter of a timm network.

    Args:
        model: the network.
        name: what to call it in messages.

    Raises:
        UserError: no adapter takes it; why, or which do.
    """
    for adapter in ADAPTERS:
        if type(model) in adapter.types or isinstance(model, adapter.types):
            return adapter(model, name)
    kind = type(model).__name__
    what = f"{name} is a {kind}" if name else f"this is a {kind}"
    if kind in REFUSED:
        raise UserError(f"{what}, which cannot lose tokens: {REFUSED[kind]}")
    known = ", ".join(cls.__name__ for adapter in ADAPTERS for cls in adapter.types)
    raise UserError(f"{what}, not a plain ViT: edge-tprune takes timm's {known}")


def can_adapt(model: nn.Module) -> bool:
    """Whether an adapter takes a network."""
    try:
        adapt(model)
    except UserError:
        return False
    return True
