"""`pomt`: one early pruning layer; the tokens it removes go on as one more token, their plain mean.

Eliopoulos et al., "Pruning One More Token is Enough: Leveraging Latency-Workload Non-Linearities for Vision Transformers on the Edge" (POMT), WACV
2025 (arXiv 2407.05941).

    received  a_j = sum over patch queries i of max over heads of A_ij, divided by the largest a_j of the image
    content   c_j = softmax over tokens j of sum over channels of max over heads of v_j
    keep the T tokens with the largest a_j + c_j and append the plain mean of the others

The layer is block 4 (index 3). Prefix tokens are no queries in a_j and always stay. The authors' code takes the largest a_j of the whole batch, so that
an image's result depends on the other images in it; here it is that of the image, which is what their code gives one image at a time.

How many tokens to remove is the paper's other half: it measures the network's latency for every count, finds the staircase's edges, and takes the count that
maximises accuracy and speed together. Here that is the person's part: build a few budgets, `profile` them on the board, and let `compare` and
`select` say which one pays.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edge_tprune.reduction.ops import top
from edge_tprune.reduction.outcome import Append, Keep, Outcome
from edge_tprune.reduction.registry import ATTENTION, VALUES, Evidence, Reducer, Stage, register


@register
class POMT(Reducer):
    """Top-k by attention received and value content; the rest becomes its mean."""

    name = "pomt"
    paper = "Eliopoulos et al., WACV 2025, arXiv 2407.05941"
    code = "nickjeliopoulos/PruneOneMoreToken"
    faithful: ClassVar = {}
    differs = "the largest attention is taken per image; the authors' code takes it over the batch, but images of a static graph must not depend on each other"
    needs = frozenset({ATTENTION, VALUES})
    merges = True
    default_blocks = (4,)

    weights: Tensor

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        # With one token left beside the prefix it is the best one: a mean of all would leave nothing kept.
        self.appends = stage.tokens_out > stage.prefix_tokens + 1
        averaged = stage.tokens_in - stage.tokens_out + 1
        self.register_buffer("weights", torch.full((1, averaged), 1.0 / averaged), persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, kept tokens from most to least important, the mean of the others."""
        assert evidence.attention is not None
        assert evidence.values is not None
        first = self.stage.prefix_tokens
        received = evidence.attention.float().amax(1)[:, first:].sum(1)
        largest = received[:, first:].amax(1, keepdim=True)
        content = evidence.values.float().amax(2).sum(-1).softmax(1)
        importance = received / largest.clamp_min(1e-12) + content + self.bonus
        if not self.appends:
            return Keep(top(importance, self.stage.tokens_out))
        ranking = top(importance, self.stage.tokens_in)
        kept = self.stage.tokens_out - 1
        return Append(ranking[:, :kept], ranking[:, kept:], self.weights.expand(len(x), -1))
