"""timm's `VisionTransformer`: DeiT, DeiT-III, AugReg ViT, DINOv2, CLIP and SigLIP towers, AIMv2, ViTamin, registers, distilled."""

from __future__ import annotations

from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor

from edge_tprune.models.adapter import (
    EMBEDDING,
    LOGITS,
    Adapter,
    Projected,
    add,
    norm_per_head,
    project_fused,
    project_part,
)

_NO_PLACE = "runs attention and MLP in parallel: no place for a reducer"
_REASONS = {
    "ParallelScalingBlock": _NO_PLACE,
    "DiffParallelScalingBlock": _NO_PLACE,
    "ParallelThingsBlock": "runs several attentions at once, which would have to agree on the tokens to remove",
}


class VitAdapter(Adapter):
    """Blocks with a norm before (`Block`) or after (`ResPostBlock`) attention and MLP."""

    types = (VisionTransformerDistilled, VisionTransformer)

    def check(self) -> None:
        """Refuses other blocks and attentions than the two named above."""
        for number, block in enumerate(self.model.blocks, 1):
            kind = type(block).__name__
            if type(block) not in (Block, ResPostBlock):
                raise self.refuse(f"block {number} is a {kind}: it {_REASONS.get(kind, 'is not one that is known')}")
            if type(block.attn) is not Attention:
                raise self.refuse(f"block {number} attends with {type(block.attn).__name__}, which is not supported")
        self._check_common()

    def read_tokens(self, output: str) -> int | None:
        """A distilled network reads its class and its distillation token."""
        if isinstance(self.model, VisionTransformerDistilled):
            return 2 if output in (LOGITS, EMBEDDING) else None
        return super().read_tokens(output)

    def pools_prefix(self) -> bool:
        """timm's own flag."""
        return bool(self.model.pool_include_prefix)

    def embed(self, images: Tensor) -> Tensor:
        """Patches, prefix tokens, positions, the norm before the blocks."""
        model = self.model
        patches = model.patch_embed(images)
        x: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(patches)))
        return x

    def project(self, number: int, x: Tensor, queries: int | None = None) -> Projected:
        """`attn.qkv` and the norms of queries and keys."""
        attn, x = self.model.blocks[number - 1].attn, self._normed(number, x)
        if queries is None:
            q, k, v = attn.qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = project_fused(x, attn.qkv, attn.qkv.bias, queries)
        q, k = norm_per_head(attn.q_norm, q, attn.num_heads), norm_per_head(attn.k_norm, k, attn.num_heads)
        return Projected(q, k, v, self._gate(number, x[:, :queries]))

    def project_map(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two thirds of `attn.qkv`, and their norms."""
        attn, x = self.model.blocks[number - 1].attn, self._normed(number, x)
        q, k = project_part(x, attn.qkv, attn.qkv.bias, 0, 2)
        return norm_per_head(attn.q_norm, q, attn.num_heads), norm_per_head(attn.k_norm, k, attn.num_heads)

    def project_values(self, number: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last third of `attn.qkv`."""
        attn, x = self.model.blocks[number - 1].attn, self._normed(number, x)
        (v,) = project_part(x, attn.qkv, attn.qkv.bias, 2, 1)
        return v, self._gate(number, x)

    def _normed(self, number: int, x: Tensor) -> Tensor:
        block = self.model.blocks[number - 1]
        return block.norm1(x) if isinstance(block, Block) else x

    def _gate(self, number: int, x: Tensor) -> Tensor | None:
        gate = self.model.blocks[number - 1].attn.gate
        return None if gate is None else gate(x).sigmoid()

    def attended(self, number: int, x: Tensor, result: Tensor, gate: Tensor | None) -> Tensor:
        """Norm, gate, output projection, layer scale, residual."""
        block = self.model.blocks[number - 1]
        attn = block.attn
        result = attn.norm(result)
        if gate is not None:
            result = result * gate.to(result.dtype)
        update = attn.proj_drop(attn.proj(result))
        update = block.ls1(update) if isinstance(block, Block) else block.norm1(update)
        return add(x, block.drop_path1(update))

    def mlp(self, number: int, x: Tensor) -> Tensor:
        """The block's second half."""
        block = self.model.blocks[number - 1]
        update = block.ls2(block.mlp(block.norm2(x))) if isinstance(block, Block) else block.norm2(block.mlp(x))
        return add(x, block.drop_path2(update))
