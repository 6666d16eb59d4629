"""timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, ViT-RoPE, Sapiens2: rotary positions, SwiGLU, gates, shared key heads."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor

from edge_tprune.models.adapter import (
    Adapter,
    Positions,
    Projected,
    add,
    norm_per_head,
    project_fused,
    project_part,
    split_heads,
)


class EvaAdapter(Adapter):
    """Blocks with a norm before (`EvaBlock`) or after (`EvaBlockPostNorm`) attention and MLP, and rotary positions in attention."""

    types = (Eva,)

    def check(self) -> None:
        """Refuses blocks and attentions that timm added since."""
        for number, block in enumerate(self.model.blocks, 1):
            if type(block) not in (EvaBlock, EvaBlockPostNorm):
                raise self.refuse(f"block {number} is a {type(block).__name__}, which is not supported")
            if type(block.attn) not in (EvaAttention, AttentionRope):
                raise self.refuse(f"block {number} attends with {type(block.attn).__name__}, which is not supported")
        self._check_common()

    def pools_prefix(self) -> bool:
        """timm's attention pool reads all tokens here."""
        return self.pooling == "map"

    def embed(self, images: Tensor) -> Tensor:
        """Patches, prefix tokens, absolute positions where there are any, the norm before the blocks."""
        model = self.model
        x, _ = model._pos_embed(model.patch_embed(images))
        out: Tensor = model.norm_pre(x)
        return out

    def positions(self) -> Positions | None:
        """timm's own table, with rows that turn nothing for the prefix tokens and for a token without a place."""
        rope = self.model.rope
        if rope is None:
            return None
        known = getattr(rope, "feat_shape", None) is not None  # a grid that timm keeps the table of
        table: Tensor = rope.get_embed() if known else rope.get_embed(shape=self.grid)
        width = table.shape[-1] // 2
        # sine 0, cosine 1
        still = torch.cat([table.new_zeros(width), table.new_ones(width)]).expand(*table.shape[:-2], 1, -1)
        prefix = still.expand(*table.shape[:-2], self.prefix_tokens, -1)
        return Positions(torch.cat([prefix, table, still], -2), rotate_half=bool(self.model.blocks[0].attn.rotate_half))

    def project(self, number: int, x: Tensor, queries: int | None = None) -> Projected:
        """One weight for q, k and v or three; where heads share keys and values, these are repeated."""
        attn, x = self.model.blocks[number - 1].attn, self._normed(number, x)
        if attn.qkv is not None:
            q, k, v = project_fused(x, attn.qkv, _fused_bias(attn), queries)
        else:
            q, k, v = attn.q_proj(x[:, :queries]), attn.k_proj(x), attn.v_proj(x)
        return Projected(*_finish_map(attn, q, k), _repeat(attn, v), _gate(attn, x[:, :queries]))

    def project_map(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `project`."""
        attn, x = self.model.blocks[number - 1].attn, self._normed(number, x)
        if attn.qkv is not None:
            q, k = project_part(x, attn.qkv, _fused_bias(attn), 0, 2)
        else:
            q, k = attn.q_proj(x), attn.k_proj(x)
        return _finish_map(attn, q, k)

    def project_values(self, number: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `project`."""
        attn, x = self.model.blocks[number - 1].attn, self._normed(number, x)
        if attn.qkv is not None:
            (v,) = project_part(x, attn.qkv, _fused_bias(attn), 2, 1)
        else:
            v = attn.v_proj(x)
        return _repeat(attn, v), _gate(attn, x)

    def _normed(self, number: int, x: Tensor) -> Tensor:
        block = self.model.blocks[number - 1]
        return block.norm1(x) if isinstance(block, EvaBlock) else x

    def attended(self, number: int, x: Tensor, result: Tensor, gate: Tensor | None) -> Tensor:
        """Norm, gate, output projection, layer scale, residual."""
        block = self.model.blocks[number - 1]
        attn = block.attn
        result = attn.norm(result)
        if gate is not None:
            result = result * gate.to(result.dtype)
        update = attn.proj_drop(attn.proj(result))
        if isinstance(block, EvaBlock):
            return add(x, block.drop_path1(update), block.gamma_1)
        return add(x, block.drop_path1(block.norm1(update)))

    def mlp(self, number: int, x: Tensor) -> Tensor:
        """The block's second half."""
        block = self.model.blocks[number - 1]
        if isinstance(block, EvaBlock):
            return add(x, block.drop_path2(block.mlp(block.norm2(x))), block.gamma_2)
        return add(x, block.drop_path2(block.norm2(block.mlp(x))))


def _fused_bias(attn: Any) -> Tensor | None:
    """The bias of the fused projection: a plain Linear's own, or EVA's, whose keys have none."""
    if getattr(attn, "q_bias", None) is not None:
        return torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    bias: Tensor | None = attn.qkv.bias
    return bias


def _finish_map(attn: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The norms of queries and keys, and a key for every head."""
    k = norm_per_head(attn.k_norm, k, attn.num_heads // _groups(attn))
    return norm_per_head(attn.q_norm, q, attn.num_heads), _repeat(attn, k)


def _gate(attn: Any, x: Tensor) -> Tensor | None:
    return None if attn.gate is None else attn.gate(x).sigmoid()


def _groups(attn: Any) -> int:
    """How many heads share a key and a value."""
    return int(getattr(attn, "num_kv_groups", 1))


def _repeat(attn: Any, x: Tensor) -> Tensor:
    """Keys or values of the heads that have their own, (B, N, H d / groups), for all: (B, N, H d)."""
    groups = _groups(attn)
    if groups == 1:
        return x
    heads = split_heads(x, attn.num_heads // groups)
    return heads[:, :, :, None].expand(-1, -1, -1, groups, -1).flatten(2)
