"""`none`: the unpruned network, hosted like every other so that comparisons share one code path."""

from __future__ import annotations

from torch import Tensor

from edge_tprune.reduction.outcome import First, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, register


@register
class Unpruned(Reducer):
    """Removes nothing."""

    name = "none"
    paper = "the unpruned network"
    limit = "removes nothing"

    @classmethod
    def fewest(cls, tokens_in: int, prefix_tokens: int) -> int:
        """All of them."""
        return tokens_in

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """All tokens stay."""
        return First(self.stage.tokens_in)
