"""The forward pass that hosts reducers: a timm ViT whose blocks may hand on fewer tokens than they receive.

The given model is neither copied nor patched: its modules are called in timm's own order, with a reducer between attention and
MLP where the schedule asks for one. A block whose reducer needs nothing of the attention, or only its class row, keys or values,
keeps fused attention; only a reducer that reads the full map makes its block compute one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from timm.layers import AttentionPoolLatent, Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from edge_tprune.errors import UserError
from edge_tprune.reduction import registry
from edge_tprune.reduction.ops import across, wide
from edge_tprune.reduction.precision import DEFAULT, PRECISIONS, Precision, in_precision
from edge_tprune.reduction.registry import Evidence, Reducer, Stage
from edge_tprune.schedule import NetworkShape


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, N, H d) -> (B, N, H, d)."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads)


class Attended(NamedTuple):
    """What attention gives: B images, H heads, N tokens, d channels a head."""

    output: Tensor  #: (B, N, H d), of the type of v
    attention: Tensor | None = None  #: (B, H, N, N), float32 at least, where there is one
    class_row: Tensor | None = None  #: (B, H, N), likewise, where it is there for nothing; the host recomputes it otherwise


class AttentionForm(Protocol):
    """How attention is written into the graph; the exporter chooses, people who call the model need not."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Tensor | None
    ) -> Attended:
        """q, k, v (B, N, H d), heads side by side; `needs`: the evidence that the block's reducer reads.

        `bias` (B, N) float32, where given, is added to the logits of each key.
        """
        ...


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Tensor | None
) -> Attended:
    """PyTorch's fused kernel; the explicit form where the map itself is wanted."""
    if registry.ATTENTION in needs:
        return explicit_attention(q, k, v, heads, scale, needs, bias)
    q, k, v = (_split(t, heads).transpose(1, 2) for t in (q, k, v))
    mask = None if bias is None else bias[:, None, None].to(q.dtype)
    return Attended(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2))


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Tensor | None
) -> Attended:
    """matmul, softmax, matmul, with the scale on q: the pattern that TensorRT's fused kernels recognise. Softmax and map are float32."""
    q, k, v = (_split(t, heads).transpose(1, 2) for t in (q * scale, k, v))
    logits = wide(q @ k.transpose(-2, -1))
    attention = (logits if bias is None else logits + bias[:, None, None]).softmax(-1)
    output = (attention.to(v.dtype) @ v).transpose(1, 2).flatten(2)
    # Only a map that nothing reads lets the kernels fuse, and half precision has rounded its logits: no class row is taken from it.
    return Attended(output, attention if registry.ATTENTION in needs else None)


@dataclass
class Stream:
    """The tokens on their way through the network, and what travels with them."""

    x: Tensor  #: (B, N, C)
    sizes: Tensor | None = None  #: (B, N), float32; None while every token stands for itself
    positions: Tensor | None = None  #: (B, N); None where no reducer asks
    members: Tensor | None = None  #: (B, N, original tokens); None unless traced
    bias: Tensor | None = None  #: (B, N), float32: log sizes, where attention is proportional

    def reduced(self, reducer: Reducer, evidence: Evidence) -> Stream:
        """The stream after a reducer's decision."""
        device = self.x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # Scores stay in float32, and so does what decides, and sums of tokens before they become means.
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            outcome = reducer(self.x, evidence)
            sizes = outcome.sizes(self.sizes)
            # Once for all blocks that follow, up to the next reducer.
            bias = sizes.log() if reducer.proportional and sizes is not None else None
            return Stream(
                outcome.tokens(self.x, self.sizes),
                sizes,
                None if self.positions is None else outcome.positions(self.positions),
                None if self.members is None else outcome.added(self.members),
                bias,
            )


def run_block(block: Block, stream: Stream, reducer: Reducer | None, attention: AttentionForm) -> Stream:
    """One timm block with a reducer, if any, between its attention and its MLP."""
    needs = reducer.needs if reducer is not None else frozenset()
    attended, evidence = _attend(block.attn, block.norm1(stream.x), needs, attention, stream)
    stream = replace(stream, x=stream.x + block.drop_path1(block.ls1(attended)).to(stream.x.dtype))
    if reducer is not None:
        stream = stream.reduced(reducer, evidence)
    return replace(stream, x=stream.x + block.drop_path2(block.ls2(block.mlp(block.norm2(stream.x)))).to(stream.x.dtype))


def _attend(
    attn: Attention, x: Tensor, needs: frozenset[str], attention: AttentionForm, stream: Stream
) -> tuple[Tensor, Evidence]:
    heads = attn.num_heads
    # The three stay as the projection lays them out, heads side by side: splitting heads is the form's business, and the
    # Attention operator takes them so, which saves ONNX Runtime every transpose.
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    q, k = _per_head(attn.q_norm, q, heads), _per_head(attn.k_norm, k, heads)
    attended = attention(q, k, v, heads, attn.scale, needs, stream.bias)
    class_row = attended.class_row
    if class_row is None and registry.CLASS_ROW in needs:
        class_row = _class_row(q, k, heads, attn.scale, stream.bias)
    return attn.proj_drop(attn.proj(attn.norm(attended.output))), Evidence(
        keys=_split(k, heads) if registry.KEYS in needs else None,
        values=_split(v, heads) if registry.VALUES in needs else None,
        class_row=class_row if registry.CLASS_ROW in needs else None,
        attention=attended.attention if registry.ATTENTION in needs else None,
        positions=stream.positions,
        sizes=stream.sizes,
    )


def _class_row(q: Tensor, k: Tensor, heads: int, scale: float, bias: Tensor | None) -> Tensor:
    """The class token's row of the map, (B, H, N), recomputed from q and k (B, N, H d) so that the block stays fused."""
    # In float32 from the product on: a score that half precision rounded would tie with its neighbours. One product over all channels,
    # where each head's query is 0 outside the head: so the keys stay as they are laid out.
    query, key = wide(q[:, :1]), wide(k)
    own = torch.eye(heads, device=k.device, dtype=key.dtype).repeat_interleave(k.shape[2] // heads, 1) * scale
    logits = (query * own) @ key.transpose(1, 2)
    return (logits if bias is None else logits + across(bias)).softmax(-1)


def _per_head(norm: nn.Module, x: Tensor, heads: int) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    out: Tensor = norm(_split(x, heads)).flatten(2).to(x.dtype)
    return out


class PrunedViT(nn.Module):
    """A timm `VisionTransformer` with token reduction, made by `edge_tprune.prune`.

    Shares the given model's parameters, unless a precision other than fp32 (`edge_tprune.reduction.precision`) asks for a copy of them.
    """

    def __init__(
        self,
        model: VisionTransformer,
        method: type[Reducer],
        schedule: tuple[int, ...],
        options: Mapping[str, Any],
        precision: Precision = PRECISIONS[DEFAULT],
    ) -> None:
        super().__init__()
        self.precision = precision
        self.model = in_precision(model, precision)
        self.schedule = schedule  #: tokens after each block, prefix tokens included
        self.method = method.name
        self.options = dict(options)
        self.shape = network_shape(model)
        #: The exporter writes it differently for each runtime. In half precision the graph's own form, whose softmax is float32.
        self.attention: AttentionForm = fused_attention if precision.name == DEFAULT else explicit_attention
        self.reducers = nn.ModuleDict()  #: by block, counted from 1
        tokens_in = self.shape.tokens
        for number, tokens_out in enumerate(schedule, 1):
            if tokens_out < tokens_in:
                stage = Stage(
                    number,
                    len(schedule),
                    tokens_in,
                    tokens_out,
                    self.shape.prefix_tokens,
                    model.has_class_token,
                    model.patch_embed.grid_size,
                )
                self.reducers[str(number)] = registry.make(method, stage, options)
            tokens_in = tokens_out
        self.reducers.to(next(model.parameters()).device)
        self.train(model.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> tokens after the last block (B, schedule[-1], C), before the final norm."""
        return self._run(x).x

    def _run(self, x: Tensor) -> Stream:
        stream = self._embed(x)
        for number in range(1, len(self.schedule) + 1):
            stream = self._block(number, stream)
        return stream

    def trace(self, x: Tensor) -> list[Tensor]:
        """What became of every original token: per block (B, tokens after it, original tokens), for images (B, 3, H, W).

        A token that was never merged has one 1 in its row; a merged one has one per original token in it (a method that passes on only
        a part of a token has that part); a column of zeros is a token that was dropped.
        """
        stream = self._embed(x)
        count = stream.x.shape[1]
        stream = replace(stream, members=torch.eye(count, device=x.device).expand(len(x), -1, -1))
        traced = []
        for number in range(1, len(self.schedule) + 1):
            stream = self._block(number, stream)
            assert stream.members is not None
            traced.append(stream.members)
        return traced

    def _embed(self, x: Tensor) -> Stream:
        model = self.model
        patches = model.patch_embed(x)
        if self.precision.name != DEFAULT:
            patches = patches.to(self.precision.stream)
        x = model.norm_pre(model.patch_drop(model._pos_embed(patches))).to(patches.dtype)
        positions = None
        if any(registry.POSITIONS in cast(Reducer, reducer).needs for reducer in self.reducers.values()):
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        return Stream(x, positions=positions)

    def _block(self, number: int, stream: Stream) -> Stream:
        reducer = cast(Reducer, self.reducers[str(number)]) if str(number) in self.reducers else None
        return run_block(self.model.blocks[number - 1], stream, reducer, self.attention)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, classes)."""
        stream, images = self._run(x), x
        x = stream.x
        if self.model.global_pool == "token" and self.model.attn_pool is None:
            x = x[:, : self.shape.prefix_tokens]  # the head reads nothing else, and the norm is per token
        return self._head(self.model.norm(x), stream).to(images.dtype)

    def _head(self, x: Tensor, stream: Stream) -> Tensor:
        """The model's head on normed tokens (B, N, C). Where attention is proportional, so is a head's mean or attention over tokens."""
        model = self.model
        first = 0 if model.pool_include_prefix else self.shape.prefix_tokens
        logits: Tensor
        if stream.bias is not None and model.attn_pool is not None:  # timm's forward_head, which has no way to hand on a mask
            pooled = model.attn_pool(x[:, first:], attn_mask=stream.bias[:, None, None, first:].to(x.dtype))
            logits = model.head(model.head_drop(model.fc_norm(pooled)))
            return logits
        if stream.bias is not None and model.global_pool == "avg":
            assert stream.sizes is not None
            # The head's plain mean over tokens scaled so is the mean over what they stand for.
            share = stream.sizes[:, first:] / stream.sizes[:, first:].mean(1, keepdim=True)
            x = torch.cat([x[:, :first], x[:, first:] * share[..., None].to(x.dtype)], 1)
        logits = model.forward_head(x)
        return logits


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """SHA-256 of the package's reduction code: what was computed with other code is not taken for what this computes."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def network_shape(model: nn.Module, name: str | None = None) -> NetworkShape:
    """The sizes of a timm ViT that schedules and MACs depend on.

    Raises:
        UserError: a network that is not a `VisionTransformer` with plain blocks and learned or absent position embeddings.
    """
    label = name or type(model).__name__
    if not isinstance(model, VisionTransformer):
        raise UserError(
            f"{label} is a {type(model).__name__}, not a timm VisionTransformer: edge-tprune prunes plain ViTs "
            "(deit_*, deit3_*, vit_*; see edge-tprune methods)"
        )
    for number, block in enumerate(model.blocks, 1):
        attn = getattr(block, "attn", None)
        if type(block) is not Block or type(attn) is not Attention:
            raise UserError(
                f"{label}: block {number} is a {type(block).__name__} with {type(attn).__name__}; only timm's plain Block "
                "with Attention can host a reduction"
            )
        if getattr(attn, "gate", None) is not None:
            raise UserError(f"{label}: block {number} gates its attention output, which is not supported yet")
        if type(block.mlp) is not Mlp:
            raise UserError(
                f"{label}: block {number} has a {type(block.mlp).__name__}, not a plain two-layer Mlp, which is not supported yet"
            )
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.proj, nn.Conv2d):
        raise UserError(
            f"{label} embeds patches with {type(model.patch_embed).__name__}, not a plain PatchEmbed, which is not supported yet"
        )
    if model.dynamic_img_size:
        raise UserError(
            f"{label} takes images of any size: create it with dynamic_img_size=False, the token count must be fixed"
        )
    first = model.blocks[0]
    patches = model.patch_embed.num_patches
    patch_size = model.patch_embed.patch_size
    channels = model.embed_dim
    in_channels = model.patch_embed.proj.in_channels
    heads = [m for m in (model.head, getattr(model, "head_dist", None)) if isinstance(m, nn.Linear)]
    prefix = model.num_prefix_tokens
    pool_macs, pool_macs_per_token = _pool_macs(model, label)
    return NetworkShape(
        tokens=patches + prefix,
        prefix_tokens=prefix,
        blocks=len(model.blocks),
        channels=channels,
        attention_channels=first.attn.num_heads * first.attn.head_dim,
        hidden_channels=first.mlp.fc1.out_features,
        patch_macs=patches * channels * in_channels * patch_size[0] * patch_size[1],
        head_macs=sum(h.in_features * h.out_features for h in heads) + pool_macs,
        pool_macs_per_token=pool_macs_per_token,
    )


def _pool_macs(model: VisionTransformer, label: str) -> tuple[int, int]:
    """MACs of an attention-pooling head: (per image, per token that it reads)."""
    pool = model.attn_pool
    if pool is None:
        return 0, 0
    if type(pool) is not AttentionPoolLatent or type(pool.mlp) is not Mlp:
        raise UserError(f"{label} pools its tokens with {type(pool).__name__}, which is not supported yet")
    latents, width = pool.latent_len, pool.q.out_features
    mlp = pool.mlp.fc1.weight.numel() + pool.mlp.fc2.weight.numel()
    per_image = latents * (pool.q.weight.numel() + pool.proj.weight.numel() + mlp)
    return per_image, pool.kv.weight.numel() + 2 * latents * width


def check_method(method: type[Reducer], model: VisionTransformer, name: str | None = None) -> None:
    """Refuses a method on a model that lacks what it needs.

    Raises:
        UserError: naming the method, the model and what is missing.
    """
    if method.needs_class_token and not model.has_class_token:
        raise UserError(
            f"method {method.name} ranks tokens by the class token's attention, and {name or type(model).__name__} has no class token. "
            f"Methods that need none: {', '.join(sorted(n for n, m in registry.methods().items() if not m.needs_class_token))}"
        )
