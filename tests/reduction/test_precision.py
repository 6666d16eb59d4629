"""Half precision: what is computed in what, and that extreme but legal numbers select the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edge_tprune.errors import UserError
from edge_tprune.reduction import registry
from edge_tprune.reduction.attention import Attended, Bias, explicit_attention
from edge_tprune.reduction.host import PrunedViT, Stream, attend, network_shape
from edge_tprune.reduction.precision import PRECISIONS, in_precision, precision
from edge_tprune.reduction.registry import ATTENTION, CLASS_ROW, POSITIONS, Stage

METHODS = sorted(set(registry.methods()) - {"none"})
HALF = ("fp16", "mixed")
HEADS, WIDTH, TOKENS = 3, 16, 40


@pytest.mark.parametrize("name", HALF)
def test_the_given_model_stays_as_it_was(name: str, vit: VisionTransformer) -> None:
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    in_precision(vit, PRECISIONS[name])
    for key, value in vit.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])
    assert not any(module._forward_pre_hooks for module in vit.modules())
    assert in_precision(vit, PRECISIONS["fp32"]) is vit


@torch.no_grad()
@pytest.mark.parametrize("name", HALF)
def test_every_kind_of_network_computes_in_the_types_of_the_table(
    name: str, any_vit: VisionTransformer, images: Tensor
) -> None:
    wanted = PRECISIONS[name]
    schedule = tuple(network_shape(any_vit).prefix_tokens + patches for patches in (16, 12, 12, 9))
    exact = PrunedViT(any_vit, registry.method("slice"), schedule, {})(images)
    pruned = PrunedViT(any_vit, registry.method("slice"), schedule, {}, wanted)
    pool = getattr(pruned.model, "attn_pool", None)
    pooling = set() if pool is None else set(pool.modules())
    seen: list[str] = []

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        product = isinstance(module, (nn.Linear, nn.Conv2d)) and module not in pooling
        assert output.dtype == (wanted.products if product else torch.float32), type(module).__name__
        seen.append(type(module).__name__)

    for module in pruned.model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)) or type(module).__name__ == "LayerScale":
            module.register_forward_hook(watch)
    assert pruned._run(images).x.dtype == wanted.stream
    logits = pruned(images)
    assert {"Linear", "Conv2d", "LayerNorm"} <= set(seen)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 0.02 * exact.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_stays_near(method: str, name: str, vit: VisionTransformer, images: Tensor) -> None:
    exact = PrunedViT(vit, registry.method(method), (17, 12, 12, 9), {})(images)
    rounded = PrunedViT(vit, registry.method(method), (17, 12, 12, 9), {}, PRECISIONS[name])(images)
    assert rounded.isfinite().all()
    assert (rounded - exact).abs().max() < 0.25 * exact.abs().max(), (
        "a choice that flips on random weights moves logits, not worlds"
    )


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(UserError, match=r"no precision 'fp61'\..* Known: fp32, fp16, mixed"):
        precision("fp61")


@contextmanager
def float64() -> Iterator[None]:
    """Lets all that the code computes in float32 be computed in float64: the reference in which no score ties or vanishes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def extreme(kind: str, seed: int) -> tuple[Attention, Tensor]:
    """An attention layer in half precision whose q, k and v are plain copies of its input's channels, and that input (2, N, 3 H d).

    So float64 can compute from the very same numbers, and what differs is only what comes after them.
    """
    generator = torch.Generator().manual_seed(seed)
    channels = HEADS * WIDTH
    attn = Attention(3 * channels, num_heads=HEADS, qkv_bias=False, attn_head_dim=WIDTH).eval().requires_grad_(False)
    attn.qkv.weight.copy_(torch.eye(3 * channels))
    q, k, v = (torch.randn(2, TOKENS, channels, generator=generator) for _ in range(3))
    if kind == "large":  # keys up to 3e4, which squared is no half precision number
        k = k.clamp(-3, 3) * 1e4
        q, v = q * 1e-4, v * 300
    elif kind == "peaked":  # nearly all attention on one token: the others' entries are far below half precision's least number
        k[:, TOKENS // 2] += 2 * q[:, 0]
        q[:, :1] *= 3
    elif kind == "small":
        k, v = k * 2e-4, v * 2e-4
    return attn.half(), torch.cat([q, k, v], 2).half()


def from_half_logits(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Bias) -> Attended:
    """The products q k^T as half precision has them, and everything after them in the type of q: arguments and result as `AttentionForm`."""
    split = [t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q * scale, k, v)]
    logits = (split[0].half() @ split[1].half().transpose(-2, -1)).to(q.dtype)
    attention = (logits if bias.keys is None else logits + bias.keys[:, None, None]).softmax(-1)
    return Attended((attention @ split[2]).transpose(1, 2).flatten(2), attention if ATTENTION in needs else None)


def choose(method: str, attn: Attention, x: Tensor, sizes: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Which original tokens stand for which, (2, K, N), after one stage whose stream and products are of `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    reducer = registry.make(registry.method(method), Stage(4, 12, TOKENS, TOKENS - 15, 1, True, (3, 13)), {}).eval()
    for key, buffer in reducer._buffers.items():
        if buffer is not None and buffer.is_floating_point():
            reducer._buffers[key] = buffer.to(wide)
    needs = registry.method(method).needs | {CLASS_ROW, ATTENTION}
    stream = Stream(x.to(dtype), members=torch.eye(TOKENS, dtype=wide).expand(2, -1, -1))
    if sizes is not None:
        stream = replace(stream, sizes=sizes.to(wide), key_bias=sizes.to(wide).log())
    if POSITIONS in needs:
        stream = replace(stream, positions=torch.arange(TOKENS).expand(2, -1))
    form = explicit_attention if dtype == torch.float16 else from_half_logits
    q, k, v = copy.deepcopy(attn).to(dtype).qkv(x.to(dtype)).chunk(3, dim=-1)
    _, evidence = attend(form, q, k, v, HEADS, attn.scale, needs, Bias(stream.key_bias), stream)
    for score in (evidence.class_row, evidence.attention):
        assert score is not None
        assert score.dtype == wide
    after, _ = stream.reduce(reducer, evidence)
    assert after.x.dtype == dtype
    for tensor in (after.x, after.sizes, after.key_bias, after.members):
        assert tensor is None or tensor.isfinite().all()
    assert after.members is not None
    return after.members > 0.5


@torch.no_grad()
@pytest.mark.parametrize("kind", ["large", "peaked", "small"])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_numbers_select_the_same_tokens_as_in_float64(method: str, kind: str) -> None:
    """Wherever float32 agrees with float64, half precision must: q, k, v, x and products q k^T are the same, and scores are float32."""
    agreed = 0
    for seed in range(4):
        attn, x = extreme(kind, seed)
        sizes = torch.randint(1, 197, (2, TOKENS), generator=torch.Generator().manual_seed(seed))
        sizes[0] = 1
        sizes[0, TOKENS // 3] = 196
        given = None if seed % 2 else sizes
        half, single = (choose(method, attn, x, given, dtype) for dtype in (torch.float16, torch.float32))
        with float64():
            double = choose(method, attn, x, given, torch.float64)
        for image in range(2):
            if torch.equal(single[image], double[image]):
                agreed += 1
                assert torch.equal(half[image], double[image]), f"seed {seed}, image {image}"
    assert agreed >= 4, "float32 itself must agree with float64 often enough for this to say something"
