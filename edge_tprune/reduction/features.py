"""timm's feature interface on a pruned network, so that a detector or a decoder on top of it goes on working untouched.

Every patch has a vector again: merged tokens are copied to the patches they stand for, dropped ones keep the vector they had when they
were dropped (`edge_tprune.reduction.restore`). Nothing is saved in the last block here, because all of its tokens are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from operator import index
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from edge_tprune.errors import UserError
from edge_tprune.models.adapter import EMBEDDING, LOGITS, Adapter
from edge_tprune.schedule import NetworkShape

if TYPE_CHECKING:
    from edge_tprune.reduction.host import Stream


def _block_numbers(given: Any) -> int | list[int]:
    """A whole number, or several: Python's, NumPy's or PyTorch's.

    Raises:
        UserError: anything else.
    """
    try:
        with suppress(TypeError):
            return index(given)
        return [index(each) for each in given]
    except (TypeError, RuntimeError) as error:
        raise UserError(f"the blocks are {given!r}: give whole numbers") from error


class FeatureInterface(nn.Module):
    """What timm's ViTs answer beside `forward`."""

    model: Any
    shape: NetworkShape
    _adapter: Adapter

    def _run(self, x: Tensor, restore: bool | None = None) -> Stream:
        raise NotImplementedError

    def _embed(self, images: Tensor, restore: bool = False) -> Stream:
        raise NotImplementedError

    def _block(self, number: int, stream: Stream, full: bool = False) -> Stream:
        raise NotImplementedError

    def _as_map(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) -> a map of the patches (B, C, rows, columns)."""
        rows, columns = self._adapter.grid
        patches = tokens[:, self.shape.prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(tokens), -1, rows, columns)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> normed tokens (B, N, C), one for every patch again, as timm's `forward_features`."""
        return self._adapter.norm(self._run(x, restore=True).restored())

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave -> logits, or the head's input."""
        return self._adapter.head(x, EMBEDDING if pre_logits else LOGITS)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features after some blocks, one vector for every patch again: timm's `forward_intermediates`.

        Args:
            x: images (B, 3, H, W).
            indices: blocks counted from 0 (negative ones from the last), the last so many, or all.
            return_prefix_tokens: also give the prefix tokens of each, where the network has any.
            norm: apply the final norm to each.
            stop_early: compute no block after the last one that is asked for; the final features are those of that block.
            output_fmt: "NCHW" for maps (B, C, rows, columns) or "NLC" for sequences (B, patches, C).
            intermediates_only: give the list alone, without the final features.

        Raises:
            UserError: another format, or blocks that the network lacks.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt is {output_fmt!r}: features come as 'NCHW' or 'NLC'")
        wanted = self._block_indices(indices)
        stream, found = self._embed(x, restore=True), []
        blocks = range(1, (wanted[-1] + 1 if stop_early and wanted else self.shape.blocks) + 1)
        for number in blocks:
            stream = self._block(number, stream, full=True)
            if number - 1 in wanted:
                tokens = stream.restored()
                found.append(self._adapter.norm(tokens) if norm else tokens)
        first = self.shape.prefix_tokens
        maps: list[Any] = [self._as_map(t).contiguous() if output_fmt == "NCHW" else t[:, first:] for t in found]
        if return_prefix_tokens and first:
            maps = [(m, t[:, :first]) for m, t in zip(maps, found)]
        return maps if intermediates_only else (self._adapter.norm(stream.restored()), maps)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """DINO's interface to the same features (timm's arguments)."""
        output_fmt = "NCHW" if reshape else "NLC"
        found: list[Any] = self.forward_intermediates(
            x, n, return_prefix_tokens, norm, output_fmt=output_fmt, intermediates_only=True
        )
        return found

    def _block_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        depth = self.shape.blocks
        if indices is None:
            return list(range(depth))
        indices = _block_numbers(indices)
        if isinstance(indices, int):
            if not 1 <= indices <= depth:
                raise UserError(f"the last {indices} blocks were asked for, but the network has {depth}")
            return list(range(depth - indices, depth))
        if bad := [each for each in indices if not -depth <= each < depth]:
            raise UserError(f"block {bad[0]} was asked for, but the network has blocks 0 to {depth - 1}")
        return sorted({each % depth for each in indices})

    @property
    def embed_dim(self) -> int:
        """Channels of a token."""
        return int(self.model.embed_dim)

    @property
    def num_features(self) -> int:
        """Channels of the features."""
        return int(self.model.num_features)

    @property
    def num_prefix_tokens(self) -> int:
        """Leading tokens that are not patches."""
        return self.shape.prefix_tokens

    @property
    def patch_embed(self) -> nn.Module:
        """The model's patch embedding."""
        module: nn.Module = self.model.patch_embed
        return module

    @property
    def feature_info(self) -> Any:
        """timm's description of the features of each block."""
        return self.model.feature_info
