"""`tome`: merge the most similar tokens, a few in every block.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv 2210.09461), section 3 and appendix D.

    metric    m_i = mean over heads of the keys, to unit length
    sets      tokens at even places are in A, the others in B; the class token is in neither as a source or a target
    matching  each A token takes its most similar B token; the r most similar pairs merge (bipartite soft matching)
    merging   x_b = mean of x_b and all its A tokens, weighted by size; sizes add up
    order     prefix, unmerged A in their order (without a class token from most to least similar), B: which tokens are alternate in the next
              block changes by this
    attention softmax(q k^T / sqrt d + log size): proportional attention

Blocks: the paper merges in every block; here budgets of 0.65 and more have three or four stages (our choice: cheaper, and nearer to the
unpruned network), in `tuned/tome.json`; at 0.5 and below nothing better than every block was found.

Each block removes at most half of its patch tokens. `proportional=false` is for models trained without labels (MAE), as in
the paper.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from edge_tprune.reduction.matching import bipartite
from edge_tprune.reduction.ops import unit
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.registry import KEYS, Evidence, Reducer, Stage, register


@register
class ToMe(Reducer):
    """Merges the most similar pairs of tokens.

    Args:
        stage: where it sits.
        proportional: add log size to the attention logits of the blocks that follow.
    """

    name = "tome"
    paper = "Bolya et al., ICLR 2023, arXiv 2210.09461"
    code = "facebookresearch/ToMe"
    faithful: ClassVar = {}
    needs = frozenset({KEYS})
    merges = True
    drops = False
    default_blocks = tuple(range(1, 13))
    removal = "count"
    limit = "at most half of a block's patch tokens merge"

    def __init__(self, stage: Stage, *, proportional: bool = True) -> None:
        super().__init__(stage)
        self.proportional = proportional
        self.merged = stage.tokens_in - stage.tokens_out

    @classmethod
    def fewest(cls, tokens_in: int, prefix_tokens: int) -> int:
        """All of A may merge."""
        return tokens_in - (tokens_in - prefix_tokens) // 2

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, unmerged A tokens in their order, B tokens."""
        assert evidence.keys is not None
        metric = unit(evidence.keys.float().mean(2))
        return bipartite(metric, self.merged, self.stage.prefix_tokens)
