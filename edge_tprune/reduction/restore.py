"""A vector for every patch of the image again, after tokens were dropped and merged: for embeddings of dense tasks.

A merged token is copied to every patch it stands for; a dropped one keeps the vector it had when it was dropped. Both are look-ups in
one list, of the tokens that are left and of those that entered each stage that drops some, so a graph needs nothing but Gathers
(scatters with reductions are unreliable in TensorRT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edge_tprune.reduction.ops import gather_tokens
from edge_tprune.reduction.outcome import Outcome


@dataclass(frozen=True)
class Origins:
    """Where the vector of every original token is to be found."""

    token: Tensor  #: (B, T) int64: the remaining token that stands for each of T original tokens; 0 where it was dropped
    dropped: Tensor | None = None  #: (B, T) int64: its place among `kept_back`, counted from 1; 0 where it was not dropped
    kept_back: tuple[Tensor, ...] = ()  #: (B, N, C) each: the tokens that entered the stages so far

    @classmethod
    def of(cls, tokens: Tensor) -> Origins:
        """At the start every token (B, T, C) stands for itself."""
        batch, count = tokens.shape[:2]
        return cls(torch.arange(count, device=tokens.device).expand(batch, -1))

    def after(self, outcome: Outcome, x: Tensor, drops: bool) -> Origins:
        """Once `outcome` was applied to tokens x (B, N, C); `drops`: whether it may drop any."""
        goal = outcome.destinations(x.shape[1]).to(x.device).expand(len(x), -1).gather(1, self.token)
        if not drops:
            return replace(self, token=goal)
        offset, lost = sum(part.shape[1] for part in self.kept_back), goal < 0
        if self.dropped is None:
            dropped = torch.where(lost, 1 + offset + self.token, 0)
        else:
            dropped = torch.where(lost & (self.dropped == 0), 1 + offset + self.token, self.dropped)
        return replace(self, token=goal.clamp_min(0), dropped=dropped, kept_back=(*self.kept_back, x))

    def restore(self, x: Tensor) -> Tensor:
        """Remaining tokens (B, N, C) -> one for every original token (B, T, C)."""
        if self.dropped is None:
            return x if x.shape[1] == self.token.shape[1] else gather_tokens(x, self.token)
        offset = sum(part.shape[1] for part in self.kept_back)
        place = torch.where(self.dropped > 0, self.dropped - 1, offset + self.token)
        return gather_tokens(torch.cat([*self.kept_back, x], 1), place)
