"""`ppt`: image by image, merge the most similar tokens or drop the least significant.

Wu et al., "PPT: Token Pruning and Pooling for Efficient Vision Transformers", 2023 (arXiv 2310.01812), section 3. Needs no training.

    s_j      = sum over heads of softmax(q_cls k_j / sqrt d), times ||v_j|| of all heads together, then divided by its sum over the patch
               tokens                                                                                             significance
    policy   Var(s) < tau: no token stands out yet, so r tokens are pooled; otherwise the r least significant are pruned
    pooling  bipartite soft matching of the keys, weighted by size, as in `tome`
    pruning  the tokens that stay go on in the order of s: the next matching alternates over ranks
    attention softmax(q k^T / sqrt d + log size): proportional attention in all blocks that follow

Both branches remove r tokens, so a static graph computes both and selects; each image takes its own branch at each stage. Because
pooling cannot remove more, a stage removes at most half of its patch tokens.

The published threshold, 7e-5 (that of DeiT-S in the authors' code), is for scores that sum to 1 over 196 patch tokens, where their mean is 1/196: it is a
coefficient of variation of 1.6. The variance is that of a sample (divided by n - 1), as in their code. The paper's stages are at blocks 4, 7 and 10; ours
were searched for (`tuned/ppt.json`).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.matching import bipartite
from edge_tprune.reduction.ops import top, unit
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.registry import CLASS_ROW, KEYS, VALUES, Evidence, Reducer, Stage, register


@register
class PPT(Reducer):
    """Merges alike tokens or drops weak ones, per image.

    Args:
        stage: where it sits.
        tau: images whose scores vary less than this pool, the others prune. 1 always pools.
    """

    name = "ppt"
    paper = "Wu et al., 2023, arXiv 2310.01812"
    code = "xjwu1024/PPT"
    faithful: ClassVar = {}
    needs = frozenset({CLASS_ROW, KEYS, VALUES})
    needs_class_token = True
    merges = True
    removal = "count"
    limit = "at most half of a block's patch tokens merge"

    patch: Tensor

    def __init__(self, stage: Stage, *, tau: float = 7e-5) -> None:
        super().__init__(stage)
        if not 0 <= tau <= 1:
            raise UserError(f"method ppt: tau is {tau:g}; it is a variance of scores that sum to 1, from 0 to 1")
        self.proportional = True
        self.removed = stage.tokens_in - stage.tokens_out
        patches = stage.tokens_in - stage.prefix_tokens
        # Scores that sum to 1 have the mean 1/n: Var(s) = (||s||^2 - 1/n) / (n - 1) < tau is a bound on the norm.
        self.bound = math.sqrt((patches - 1) * tau + 1 / patches)
        self.register_buffer("patch", (torch.arange(stage.tokens_in) >= stage.prefix_tokens).float(), persistent=False)

    @classmethod
    def fewest(cls, tokens_in: int, prefix_tokens: int) -> int:
        """Half of the patch tokens may pool."""
        return tokens_in - (tokens_in - prefix_tokens) // 2

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then tokens in `tome`'s order where the image pools, from most to least significant where it prunes."""
        assert evidence.keys is not None
        score = evidence.significance() * self.patch
        share = score / score.sum(1, keepdim=True).clamp_min(1e-6)
        pools = share.norm(dim=1, keepdim=True) < self.bound
        pooled = bipartite(unit(evidence.keys.float().mean(2)), self.removed, self.stage.prefix_tokens)
        pruned = top(share + self.bonus, self.stage.tokens_out)
        # Where the image prunes, no source is linked to anything, so which they are does not matter.
        link = pooled.link & pools[..., None]
        return Merge(torch.where(pools, pooled.index, pruned), pooled.source, link)
