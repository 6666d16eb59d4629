"""timm's `Beit`: BEiT and BEiT v2, whose attention adds a bias for every pair of positions."""

from __future__ import annotations

import torch
from timm.models.beit import Attention, Beit, Block
from torch import Tensor
from torch.nn import functional

from edge_tprune.models.adapter import Adapter, Positions, Projected, add, project_fused, project_part


class BeitAdapter(Adapter):
    """Blocks with a bias of their own, one that all share, or none, for every two positions."""

    types = (Beit,)

    def check(self) -> None:
        """Refuses blocks that timm added since."""
        for number, block in enumerate(self.model.blocks, 1):
            if type(block) is not Block or type(block.attn) is not Attention:
                raise self.refuse(f"block {number} is a {type(block).__name__}, which is not supported")
        self._check_common()

    @property
    def prefix_tokens(self) -> int:
        """The class token."""
        return 1

    def embed(self, images: Tensor) -> Tensor:
        """Patches, class token, absolute positions where there are any."""
        model = self.model
        patches = model.patch_embed(images)
        x = torch.cat((model.cls_token.expand(len(images), -1, -1).to(patches.dtype), patches), dim=1)
        if model.pos_embed is not None:
            x = x + model.pos_embed.to(x.dtype)
        out: Tensor = model.pos_drop(x)
        return out

    def positions(self) -> Positions | None:
        """timm's own index of pairs; a token without a place is seen as the class token is."""
        shared, own = self.model.rel_pos_bias, self.model.blocks[0].attn
        source = own if shared is None else shared
        index: Tensor | None = source.relative_position_index
        if index is None:
            return None
        return Positions(relative=torch.cat([torch.cat([index, index[:, :1]], 1), torch.cat([index[:1], index[:1, :1]], 1)]))

    def relative_table(self, number: int) -> Tensor | None:
        """The block's biases and those that all blocks share, (pairs, H)."""
        own, shared = self.model.blocks[number - 1].attn.relative_position_bias_table, self.model.rel_pos_bias
        if shared is None:
            table: Tensor | None = own
            return table
        both: Tensor = shared.relative_position_bias_table
        return both if own is None else both + own

    def project(self, number: int, x: Tensor, queries: int | None = None) -> Projected:
        """`attn.qkv` with its bias, of which the keys have none."""
        block = self.model.blocks[number - 1]
        return Projected(*project_fused(block.norm1(x), block.attn.qkv, _bias(block.attn), queries))

    def project_map(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two thirds of `attn.qkv`."""
        block = self.model.blocks[number - 1]
        q, k = project_part(block.norm1(x), block.attn.qkv, _bias(block.attn), 0, 2)
        return q, k

    def project_values(self, number: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last third of `attn.qkv`."""
        block = self.model.blocks[number - 1]
        (v,) = project_part(block.norm1(x), block.attn.qkv, _bias(block.attn), 2, 1)
        return v, None

    def attended(self, number: int, x: Tensor, result: Tensor, gate: Tensor | None) -> Tensor:
        """Output projection, layer scale, residual."""
        block = self.model.blocks[number - 1]
        update = block.attn.proj_drop(block.attn.proj(result))
        return add(x, block.drop_path1(update), block.gamma_1)

    def mlp(self, number: int, x: Tensor) -> Tensor:
        """The block's second half."""
        block = self.model.blocks[number - 1]
        return add(x, block.drop_path2(block.mlp(block.norm2(x))), block.gamma_2)


def _bias(attn: Attention) -> Tensor | None:
    return None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Biases (B, H, N, M) of a table (pairs, H) at pairs (B, N, M)."""
    return functional.embedding(index, table).permute(0, 3, 1, 2)
