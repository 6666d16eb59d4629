"""`diffrate`: drop the least attended tokens, merge the next least into similar ones.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023 (arXiv 2305.17997), section 3.

    a_j        mean over heads of softmax(q_cls k_j / sqrt d)
    sort       tokens by a_j
    prune      the p tokens with the smallest a_j are dropped
    merge      the m next smallest each join the kept token with the largest cosine similarity of the features x; means are weighted by size
    attention  softmax(q k^T / sqrt d + log size): proportional attention

What the paper learns is p and m for every block, by gradients through a relaxed choice; everything else is parameter-free. Here
the schedule says how many tokens leave, and `pruned` which part of them is dropped. To use counts learned elsewhere, give them as the
schedule.

Our choices: the class token takes no part in merging; `pruned`; and, since the learned counts are not at hand, blocks and law of a budget: the same
share in every block from the 3rd. The published counts, too, leave the first blocks nearly alone: their class attention says little yet.
All were chosen by how near the outputs stay to the unpruned model's on calibration images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import gather_tokens, top, unit
from edge_tprune.reduction.outcome import Keep, Merge, Outcome
from edge_tprune.reduction.registry import CLASS_ROW, Evidence, Reducer, Stage, register


@register
class DiffRate(Reducer):
    """Drops the least attended tokens, merges the next.

    Args:
        stage: where it sits.
        pruned: share of a stage's removals that are dropped; the rest merge.
    """

    name = "diffrate"
    paper = "Chen et al., ICCV 2023, arXiv 2305.17997"
    needs = frozenset({CLASS_ROW})
    needs_class_token = True
    merges = True
    default_blocks = tuple(range(3, 13))

    prefix_penalty: Tensor

    def __init__(self, stage: Stage, *, pruned: float = 0.25) -> None:
        super().__init__(stage)
        if not 0 <= pruned <= 1:
            raise UserError(f"method diffrate: pruned is {pruned:g}; it is a share, from 0 (merge all) to 1 (drop all)")
        self.proportional = True
        self.survivors = stage.tokens_in - round(pruned * (stage.tokens_in - stage.tokens_out))
        # Nothing is like a prefix token: cheaper than cutting the prefix out.
        prefix_penalty = torch.zeros(stage.tokens_out)
        prefix_penalty[: stage.prefix_tokens] = -1e30
        self.register_buffer("prefix_penalty", prefix_penalty, persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then kept tokens from most to least attended."""
        border = self.stage.tokens_out
        ranking = top(evidence.attentiveness() + self.bonus, self.survivors)
        if self.survivors == border:
            return Keep(ranking)
        stay, leave = ranking.split_with_sizes([border, self.survivors - border], 1)
        kept, merged = gather_tokens(x, stay), gather_tokens(x, leave)
        # The most similar of the kept is the same for whatever length of the one that joins it.
        similarity = merged.float() @ unit(kept.float()).transpose(1, 2) + self.prefix_penalty
        return Merge.into(stay, leave, similarity.argmax(2), features=(kept, merged))
