"""Small ViTs of every supported kind, with random weights that make tokens differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

SIZES = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 24, "depth": 4, "num_heads": 3}


def _randomise(model: VisionTransformer) -> VisionTransformer:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.1))
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(1.0)
    return model.eval()


KINDS: dict[str, Callable[[], VisionTransformer]] = {
    "deit": lambda: VisionTransformer(**SIZES),
    "distilled": lambda: VisionTransformerDistilled(**SIZES),
    "deit3": lambda: VisionTransformer(**SIZES, no_embed_class=True, init_values=0.5),
    "registers": lambda: VisionTransformer(**SIZES, reg_tokens=4, no_embed_class=True),
    "no class token": lambda: VisionTransformer(**SIZES, class_token=False, global_pool="avg"),
    "average pool": lambda: VisionTransformer(**SIZES, global_pool="avg"),
    "attention pool": lambda: VisionTransformer(**SIZES, class_token=False, global_pool="map"),
    "qk norm": lambda: VisionTransformer(**SIZES, qk_norm=True),
    "pre norm": lambda: VisionTransformer(**SIZES, pre_norm=True),
}


@pytest.fixture(params=sorted(KINDS))
def any_vit(request: pytest.FixtureRequest) -> VisionTransformer:
    return _randomise(KINDS[request.param]())


@pytest.fixture
def vit() -> VisionTransformer:
    return _randomise(KINDS["deit"]())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
