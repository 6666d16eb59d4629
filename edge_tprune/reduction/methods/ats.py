"""`ats`: sample tokens in proportion to their significance, at fixed quantiles.

Fayyaz et al., "Adaptive Token Sampling For Efficient Vision Transformers", ECCV 2022 (arXiv 2111.15667), section 3. Needs no training.

    s_j     = sum over heads of softmax(q_cls k_j / sqrt d), times ||v_j|| of all heads together, then divided by its sum over the
              patch tokens                                                                                       significance
    c_j     = cumulative sum of s, in the order of s
    sample  at the K quantiles 1/2K, 3/2K, ..., (2K-1)/2K: each takes the token in whose interval (c_{j-1}, c_j] it falls (inverse
            transform sampling with a fixed grid instead of random numbers). A token with K s_j >= 1 is always taken, several
            times perhaps; the others in proportion to s_j, so that some of the background stays

A token that is taken twice stays once. The paper lets the number of distinct tokens vary from image to image; a static graph cannot:

    our choice: K is the number of tokens to keep, and where fewer than K are distinct, the most significant of those not taken fill up.

More quantiles than tokens to keep (as in the paper, where duplicates are many) come nearer to taking the top K and did worse on the
calibration images. Whether s is sorted upwards or downwards makes no difference: the grid of quantiles is symmetric.

Blocks: the paper samples in every block from the 4th; here it is three that were searched for (`tuned/ats.json`; our choice): cheaper, and nearer to the
unpruned model on the calibration images, by little at mild budgets and by much at small ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_tprune.reduction.ops import top
from edge_tprune.reduction.outcome import Keep, Outcome
from edge_tprune.reduction.registry import CLASS_ROW, VALUES, Evidence, Reducer, Stage, register


@register
class ATS(Reducer):
    """Samples tokens by class attention and length of value."""

    name = "ats"
    paper = "Fayyaz et al., ECCV 2022, arXiv 2111.15667"
    code = "adaptivetokensampling/ATS"
    differs = (
        "the authors' code keeps as many tokens as their samples are distinct, which differs by image: no static graph can"
    )
    needs = frozenset({CLASS_ROW, VALUES})
    needs_class_token = True

    sums: Tensor
    prefix: Tensor

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.kept = stage.tokens_out - stage.prefix_tokens
        patches = stage.tokens_in - stage.prefix_tokens
        # A cumulative sum as a product with a triangle of ones: runtimes for GPUs are fast at those and slow, if able, at CumSum.
        self.register_buffer("sums", torch.ones(patches, patches).triu(), persistent=False)
        self.register_buffer("prefix", torch.arange(stage.prefix_tokens)[None], persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, sampled tokens, those that fill up."""
        score = evidence.significance()[:, self.stage.prefix_tokens :]
        share = score / score.sum(1, keepdim=True).clamp_min(1e-6)
        # How many of the K quantiles each token gets on average: K s_j, in rising order.
        expected, ranking = (self.kept * share).topk(score.shape[1], dim=1, largest=False, sorted=True)
        # Quantile i lies in token j's interval where i lies in (y - K s_j, y], y = K c_j + 1/2: where y is less than K s_j above a whole number.
        y = expected @ self.sums + 0.5
        taken = y - y.floor() < expected
        # Of the tokens not taken none expects 1 or more, so this ranks them all below those that were.
        index = ranking.gather(1, top(expected + taken.float(), self.kept))
        return Keep(torch.cat([self.prefix.expand(len(x), -1), index + self.stage.prefix_tokens], 1))
