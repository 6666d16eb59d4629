"""Small ViTs of every supported kind, with random weights that make tokens differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import SwiGLU
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

SIZES = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 24, "depth": 4, "num_heads": 3}


ROPE = {"use_rot_pos_emb": True, "rope_grid_offset": 0.0}


def randomise(model: nn.Module) -> nn.Module:
    """Weights that make tokens differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rope" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.1))
        for module in model.modules():
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.add_(1.0)
    return model.eval()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "deit": lambda: VisionTransformer(**SIZES),
    "distilled": lambda: VisionTransformerDistilled(**SIZES),
    "deit3": lambda: VisionTransformer(**SIZES, no_embed_class=True, init_values=0.5),
    "registers": lambda: VisionTransformer(**SIZES, reg_tokens=4, no_embed_class=True),
    "no class token": lambda: VisionTransformer(**SIZES, class_token=False, global_pool="avg"),
    "average pool": lambda: VisionTransformer(**SIZES, global_pool="avg"),
    "attention pool": lambda: VisionTransformer(**SIZES, class_token=False, global_pool="map"),
    "qk norm": lambda: VisionTransformer(**SIZES, qk_norm=True),
    "pre norm": lambda: VisionTransformer(**SIZES, pre_norm=True),
    "post norm": lambda: VisionTransformer(**SIZES, block_fn=ResPostBlock),
    "swiglu": lambda: VisionTransformer(**SIZES, mlp_layer=SwiGLU, global_pool="avg", class_token=False, fc_norm=False),
    "eva": lambda: Eva(**SIZES, global_pool="token"),
    "eva02": lambda: Eva(**SIZES, **ROPE, qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    "eva packed": lambda: Eva(**SIZES, **ROPE, swiglu_mlp=True, init_values=0.5, global_pool="token"),
    "eva post norm": lambda: Eva(**SIZES, **ROPE, use_post_norm=True, global_pool="token"),
    "dinov3": lambda: Eva(
        **SIZES,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        num_reg_tokens=4,
        use_abs_pos_emb=False,
        init_values=0.5,
        global_pool="token",
    ),
    "rope": lambda: Eva(**SIZES, **ROPE, attn_type="rope", qk_norm=True, global_pool="token"),
    "rope mixed": lambda: Eva(**SIZES, **ROPE, attn_type="rope", rope_type="mixed", global_pool="token"),
    "rope pool": lambda: Eva(**SIZES, **ROPE, attn_type="rope", global_pool="map"),
    "shared keys": lambda: Eva(**SIZES, **ROPE, attn_type="rope", qkv_fused=False, num_kv_heads=1, global_pool="token"),
    "gated": lambda: gated(Eva(**SIZES, **ROPE, global_pool="token")),
    "beit": lambda: Beit(**SIZES, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.5),
    "beit shared": lambda: Beit(**SIZES, use_shared_rel_pos_bias=True, global_pool="token"),
    "beit plain": lambda: Beit(**SIZES, use_abs_pos_emb=True, swiglu_mlp=True, scale_mlp=True),
}


def gated(model: Eva) -> Eva:
    """With a gate on every attention's result: timm builds none of this kind, but its attention knows them."""
    for block in model.blocks:
        block.attn.gate = nn.Linear(model.embed_dim, model.embed_dim)
    return model


@pytest.fixture(params=sorted(KINDS))
def any_vit(request: pytest.FixtureRequest) -> VisionTransformer:
    return randomise(KINDS[request.param]())


@pytest.fixture
def vit() -> VisionTransformer:
    return randomise(KINDS["deit"]())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
