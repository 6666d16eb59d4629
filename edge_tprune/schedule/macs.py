"""Multiply-accumulates of a ViT whose token count changes from block to block.

The accounting is the one the token-reduction papers print as "GFLOPs": the reduction sits between attention and MLP, so a block
that receives n tokens and hands on n' costs, with C channels, A attention channels and M hidden channels,

    4 n C A  +  2 n^2 A  +  2 n' C M        (query, key, value, output; q k^T and A v; the two MLP layers)

plus patch embedding and head. Norms, softmax, activations and the reduction itself are not counted, as in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_tprune.errors import UserError


@dataclass(frozen=True)
class NetworkShape:
    """The sizes of a plain ViT that its MACs and its schedules depend on."""

    tokens: int  #: tokens entering the first block, prefix tokens included
    prefix_tokens: int  #: class, distillation and register tokens: never removed
    blocks: int
    channels: int
    attention_channels: int  #: heads times head size; equal to `channels` in every common ViT
    hidden_channels: int  #: of the MLP
    patch_macs: int  #: patch embedding, per image
    head_macs: int  #: classifier head(s), per image
    pool_macs_per_token: int = 0  #: of a head that pools the last tokens by attention, as SigLIP's does

    def full_schedule(self) -> tuple[int, ...]:
        """The schedule that removes nothing."""
        return (self.tokens,) * self.blocks

    def block_macs(self, tokens_in: int, tokens_out: int) -> int:
        """MACs of one block that receives `tokens_in` tokens and whose MLP sees `tokens_out`."""
        projections = 4 * tokens_in * self.channels * self.attention_channels
        attention = 2 * tokens_in * tokens_in * self.attention_channels
        return projections + attention + 2 * tokens_out * self.channels * self.hidden_channels

    def macs(self, schedule: Sequence[int] | None = None) -> int:
        """MACs per image under `schedule` (tokens after each block); of the unpruned network without one."""
        after = tuple(schedule) if schedule is not None else self.full_schedule()
        before = (self.tokens, *after[:-1])
        pool = self.pool_macs_per_token * after[-1]
        return self.patch_macs + self.head_macs + pool + sum(self.block_macs(n, m) for n, m in zip(before, after))

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
            if count <= self.prefix_tokens:
                raise UserError(
                    f"the schedule leaves {count} tokens after block {number}, but the model's {self.prefix_tokens} prefix "
                    f"token(s) are never removed: leave at least {self.prefix_tokens + 1}"
                )
            previous = count
        return after
