"""Families of networks: positions that travel with tokens, against timm's own blocks called on the tokens that are left."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from torch import Tensor, nn

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.models.families import adapt
from edge_tprune.reduction import network_shape
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.outcome import Keep, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage, method

from .conftest import KINDS, randomise

KEPT = [0, 3, 4, 7, 8, 11, 12, 15]  # of 16 patches


class KeepSome(Reducer):
    """Keeps the prefix and the patches of `KEPT`, in another order than they came."""

    name, paper = "keep_some", "test"

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        prefix = self.stage.prefix_tokens
        index = [*range(prefix), *(prefix + i for i in reversed(KEPT))]
        return Keep(torch.tensor([index]).expand(len(x), -1))


def after_block(block: nn.Module, x: Tensor, index: Tensor, **positions: Tensor) -> Tensor:
    """A block whose MLP works on the tokens at `index` alone, by the block's own modules."""
    with pytest.MonkeyPatch.context() as patch:
        mlp = block.mlp.forward
        patch.setattr(block.mlp, "forward", torch.zeros_like)
        x = block(x, **positions)[:, index]
    update = mlp(block.norm2(x))
    return x + (update if block.gamma_2 is None else block.gamma_2 * update)


def slow_eva(model: Eva, images: Tensor) -> Tensor:
    x, rope = model._pos_embed(model.patch_embed(images))
    x = model.norm_pre(x)
    mixed = rope is not None and rope.ndim == 4
    for number, block in enumerate(model.blocks, 1):
        table = rope[number - 1] if mixed else rope
        if number == 2:
            prefix = model.num_prefix_tokens
            order = torch.tensor([*range(prefix), *(prefix + i for i in reversed(KEPT))])
            x = after_block(block, x, order, rope=table)
            if rope is not None:
                rope = rope[..., list(reversed(KEPT)), :]
        else:
            x = block(x, rope=table)
    return model.forward_head(model.norm(x))


@torch.no_grad()
@pytest.mark.parametrize("kind", [k for k, make in KINDS.items() if isinstance(make(), Eva) and "post norm" not in k])
def test_rotary_positions_stay_with_their_tokens(kind: str, images: Tensor) -> None:
    model = randomise(KINDS[kind]())
    prefix = model.num_prefix_tokens
    pruned = PrunedViT(model, KeepSome, (prefix + 16, prefix + 8, prefix + 8, prefix + 8), {})
    torch.testing.assert_close(pruned(images), slow_eva(model, images), rtol=1e-4, atol=1e-5)


def slow_beit(model: Beit, images: Tensor) -> Tensor:
    x = adapt(model).embed(images)
    order = torch.tensor([0, *(1 + i for i in reversed(KEPT))])
    left = torch.arange(x.shape[1])
    for number, block in enumerate(model.blocks, 1):
        bias = torch.zeros(1, 3, 17, 17)
        if model.rel_pos_bias is not None:
            bias = bias + model.rel_pos_bias()[None]
        if block.attn.relative_position_bias_table is not None:
            bias = bias + block.attn._get_rel_pos_bias()
        bias = bias[:, :, left][..., left]
        attn, h = block.attn, block.norm1(x)
        weights = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)) if attn.q_bias is not None else None
        qkv = nn.functional.linear(h, attn.qkv.weight, weights).reshape(*h.shape[:2], 3, 3, 8).permute(2, 0, 3, 1, 4)
        result = ((qkv[0] * attn.scale) @ qkv[1].transpose(-2, -1) + bias).softmax(-1) @ qkv[2]
        update = attn.proj(result.transpose(1, 2).flatten(2))
        x = x + (update if block.gamma_1 is None else block.gamma_1 * update)
        if number == 2:
            x, left = x[:, order], left[order]
        update = block.mlp(block.norm2(x))
        x = x + (update if block.gamma_2 is None else block.gamma_2 * update)
    return model.forward_head(model.norm(x))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["beit", "beit shared", "beit plain"])
def test_relative_positions_stay_with_their_tokens(kind: str, images: Tensor) -> None:
    model = randomise(KINDS[kind]())
    pruned = PrunedViT(model, KeepSome, (17, 9, 9, 9), {})
    torch.testing.assert_close(pruned(images), slow_beit(model, images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["eva packed", "rope", "dinov3", "beit"])
@pytest.mark.parametrize("name", ["evit", "pomt"])
def test_an_appended_token_has_no_place(kind: str, name: str, images: Tensor) -> None:
    """It is turned by nothing, and it is seen as the class token is: no look-up leaves its table."""
    options = {"fuse": True} if name == "evit" else {}
    model = randomise(KINDS[kind]())
    prefix = adapt(model).prefix_tokens
    pruned = PrunedViT(model, method(name), (prefix + 16, prefix + 9, prefix + 9, prefix + 5), options)
    assert pruned(images).isfinite().all()
    stage = pruned.reducers["2"].stage
    assert isinstance(stage, Stage)
    assert stage.nowhere == prefix + 16


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_last_block_for_what_the_head_reads_is_exact(kind: str, images: Tensor) -> None:
    """Equal to 1e-12 in float64 and to 1e-5 in float32, and cheaper wherever the head reads single tokens."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model = randomise(KINDS[kind]()).to(dtype)
        shape = network_shape(model)
        exact = edge_tprune.prune(model, method="none", schedule=shape.exact_schedule())
        expected = model(images.to(dtype))
        assert (exact(images.to(dtype)) - expected).abs().max() <= tolerance * expected.abs().max()
    assert (shape.share(shape.exact_schedule()) < 1) == (adapt(model).pooling == "token")


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("name", ["zero_tprune", "tome"])
def test_the_last_block_saves_under_a_reduction_too(kind: str, name: str, images: Tensor) -> None:
    model = randomise(KINDS[kind]()).double()
    saved = edge_tprune.prune(model, method=name, budget=0.7, blocks=[2, 3])
    if saved.shape.read_tokens is None:
        return
    full = edge_tprune.prune(model, method=name, schedule=[*saved.schedule[:-1], saved.schedule[-2]])
    assert edge_tprune.macs(saved) < edge_tprune.macs(full)
    expected = full(images.double())
    assert (saved(images.double()) - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_a_head_without_classes_gives_an_embedding(images: Tensor) -> None:
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    pruned = edge_tprune.prune(model, method="tome", budget=0.8)
    assert pruned.output == "embedding"
    assert pruned(images).shape == (3, model.num_features)
    with pytest.raises(UserError, match="has no classifier head: choose --output embedding, features or tokens"):
        edge_tprune.prune(model, method="tome", budget=0.8, output="logits")
    unit = edge_tprune.prune(model, method="tome", budget=0.8, normalize=True)(images)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "resnet18",
            "is a ResNet, not a plain ViT: edge-tprune takes timm's VisionTransformerDistilled, VisionTransformer, Eva, Beit",
        ),
        ("swin_tiny_patch4_window7_224", "its stages change the grid of patches"),
        ("xcit_nano_12_p16_224", "attends over channels"),
        ("vit_pwee_patch16_reg1_gap_256", "block 1 is a ParallelScalingBlock: it runs attention and MLP in parallel"),
        ("vit_dlittle_patch16_reg1_gap_256", "block 1 attends with DiffAttention"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_with_the_reason(name: str, says: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=says):
        adapt(timm.create_model(name), name)
