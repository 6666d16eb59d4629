"""Multiply-accumulates (MACs) of a ViT whose token count changes from block to block.

The accounting is the one that token-reduction papers print as "GFLOPs": the reduction sits between attention and MLP, so a plain
block that receives n tokens and hands on m costs, with C channels, A attention channels and M hidden channels,

    4 n C A  +  2 n^2 A  +  2 m C M        (query, key, value, output; q k^T and A v; the two MLP layers)

plus patch embedding and head. Norms, softmax, activations and the reduction itself are not counted, as in the papers. A method may
sit elsewhere (`Place`): on the image, which then has fewer patches to embed; before the block, which then costs what one of m tokens costs (as
all blocks do behind a smaller image), or between the attention map and its product with the
values, where a block costs

    2 n C A  +  2 m C A  +  2 n^2 A  +  2 m C M        (query, key; value, output; q k^T and A v; MLP)

A head that pools by token reads r tokens only (the class token, or both tokens of a distilled network). The last block then needs
keys and values of all n tokens, and everything else of r: exact, and cheaper. A schedule whose last count is r says that its network
does so, and its last block costs

    2 n C A + 2 r C A  +  2 r n A  +  2 r C M

No other schedule can end in so few tokens, because prefix tokens are never removed and at least one patch token stays beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_tprune.errors import UserError

Place = Literal["image", "block", "values", "mlp"]
"""Where tokens are removed: by a smaller image; before the block; before the attention map meets the values; before the MLP."""
PLACES: tuple[Place, ...] = ("block", "values", "mlp")
"""Those in a block."""


@dataclass(frozen=True)
class BlockShape:
    """MACs per token of one block's parts."""

    query_macs: int  #: per token that asks: query, attention gate and output projections
    key_macs: int  #: per token that is looked at: key and value projections
    attention_channels: int  #: heads times head size
    mlp_macs: int  #: per token after the reduction
    after_map_macs: (
        int  #: the part of the first two that the attention map does not need: value, attention gate and output projections
    )


@dataclass(frozen=True)
class NetworkShape:
    """The sizes of a ViT that its MACs and its schedules depend on."""

    tokens: int  #: tokens entering the first block, prefix tokens included
    prefix_tokens: int  #: class, distillation and register tokens: never removed
    block_shapes: tuple[BlockShape, ...]  #: one per block
    patch_macs: int  #: patch embedding, per image
    head_macs: int  #: classifier head(s), per image
    pool_macs_per_token: int = 0  #: of a head that pools the last tokens by attention, as SigLIP's does
    read_tokens: int | None = None  #: how many leading tokens the output is made of; None where it is made of all
    place: Place = "mlp"  #: where in a block tokens are removed

    @classmethod
    def plain(
        cls,
        tokens: int,
        prefix_tokens: int,
        blocks: int,
        channels: int,
        attention_channels: int,
        hidden_channels: int,
        patch_macs: int,
        head_macs: int,
        read_tokens: int | None = None,
    ) -> NetworkShape:
        """A network of equal blocks with fused q, k, v and a two-layer MLP."""
        product = channels * attention_channels
        block = BlockShape(2 * product, 2 * product, attention_channels, 2 * channels * hidden_channels, 2 * product)
        return cls(tokens, prefix_tokens, (block,) * blocks, patch_macs, head_macs, read_tokens=read_tokens)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.block_shapes)

    def full_schedule(self) -> tuple[int, ...]:
        """The schedule of the unpruned network as timm runs it."""
        return (self.tokens,) * self.blocks

    def exact_schedule(self) -> tuple[int, ...]:
        """The schedule that removes no token which the output depends on: the last block serves only what the head reads."""
        return (*self.full_schedule()[:-1], self.tokens if self.read_tokens is None else self.read_tokens)

    def saves_last_block(self, schedule: Sequence[int]) -> bool:
        """Whether the last block of `schedule` computes only the tokens that the head reads."""
        return self.read_tokens is not None and schedule[-1] == self.read_tokens

    def block_macs(self, number: int, tokens_in: int, tokens_out: int) -> int:
        """MACs of block `number` (from 1) that receives `tokens_in` tokens and whose MLP works on `tokens_out`."""
        block = self.block_shapes[number - 1]
        queries = tokens_in
        if number == self.blocks and tokens_out == self.read_tokens:
            queries = tokens_out
        elif self.place in ("block", "image"):
            queries = tokens_in = tokens_out
        attention = 2 * queries * tokens_in * block.attention_channels
        macs = queries * block.query_macs + tokens_in * block.key_macs + attention + tokens_out * block.mlp_macs
        return macs - (queries - tokens_out) * block.after_map_macs if self.place == "values" else macs

    def macs(self, schedule: Sequence[int] | None = None) -> int:
        """MACs per image under `schedule` (tokens after each block); of the unpruned network without one."""
        after = tuple(schedule) if schedule is not None else self.full_schedule()
        before = (self.tokens, *after[:-1])
        blocks = sum(self.block_macs(i, n, m) for i, (n, m) in enumerate(zip(before, after), 1))
        patches = self.patch_macs
        if self.place == "image":
            patches = patches * (after[0] - self.prefix_tokens) // (self.tokens - self.prefix_tokens)
        return patches + self.head_macs + self.pool_macs_per_token * after[-1] + blocks

    def share(self, schedule: Sequence[int]) -> float:
        """MACs under `schedule` as a share of the unpruned network's: the budget it realises."""
        return self.macs(schedule) / self.macs()

    def check(self, schedule: Sequence[int]) -> tuple[int, ...]:
        """`schedule` as a tuple, once it is one that this network can run.

        Raises:
            UserError: wrong length, a count that grows, or one that leaves fewer than one token beside the prefix tokens.
        """
        after = tuple(schedule)
        if len(after) != self.blocks:
            raise UserError(
                f"the schedule has {len(after)} token counts but the model has {self.blocks} blocks: give one count per block"
            )
        previous = self.tokens
        for number, count in enumerate(after, 1):
            if count > previous:
                raise UserError(
                    f"the schedule grows from {previous} to {count} tokens after block {number}: tokens can only be removed "
                    f"(the model starts with {self.tokens})"
                )
            if count <= self.prefix_tokens and not (number == self.blocks and self.saves_last_block(after)):
                raise UserError(self._too_few(number, count))
            previous = count
        return after

    def _too_few(self, number: int, count: int) -> str:
        rule = f"leave at least {self.prefix_tokens + 1}"
        if self.read_tokens is not None:
            rule += f", or exactly {self.read_tokens} after the last block, whose other tokens the head does not read"
        return (
            f"the schedule leaves {count} tokens after block {number}, but the model's {self.prefix_tokens} prefix "
            f"token(s) are never removed: {rule}"
        )
