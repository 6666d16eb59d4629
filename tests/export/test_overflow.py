"""The part of a network that half precision breaks, named."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer

from edge_tprune.export.overflow import describe_break
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import PRECISIONS
from tests.small import small_model

SCHEDULE = (37, 20, 20, 20)


def described(model: VisionTransformer, precision: str = "fp16") -> str:
    method = registry.method("slice")
    exact, half = (PrunedViT(model, method, SCHEDULE, {}, PRECISIONS[name]) for name in ("fp32", precision))
    return describe_break(exact, half, torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)))


def test_an_outlier_channel_that_grows_beyond_the_range() -> None:
    """In two blocks a channel grows to 8e4, as those of DINOv2 grow; no norm hands it on, so that the float32 network stays the same."""
    model = small_model().model
    for block in model.blocks[1:3]:
        block.mlp.fc2.bias[7] += 4e4
    for norm in [norm for block in model.blocks for norm in (block.norm1, block.norm2)] + [model.norm]:
        norm.weight[7] = 0.0
    end = "overflows (8e+04 in float32, and float16 ends at 65504)"
    assert described(model) == f"block 4: the residual stream before its attention {end}"
    assert "overflows" not in described(model, "mixed")


def test_a_layer_whose_result_overflows() -> None:
    model = small_model().model
    model.blocks[2].mlp.fc1.weight.mul_(1e6)
    for precision in ("fp16", "mixed"):
        assert described(model, precision).startswith("block 3: mlp.fc1 overflows (")


def test_attention_whose_scores_overflow() -> None:
    model = small_model().model
    width = model.embed_dim
    model.blocks[1].attn.qkv.weight[: 2 * width].mul_(1e3)
    assert described(model).startswith("block 2: its attention overflows")


def test_a_large_stream_is_named_where_it_begins() -> None:
    model = small_model().model
    model.blocks[1].attn.proj.bias += 1e4
    assert described(model) == "block 2: the residual stream before its MLP reaches 1e+04, where float16 has steps of 8"
