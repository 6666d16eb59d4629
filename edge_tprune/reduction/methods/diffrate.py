"""`diffrate`: drop the least attended tokens, merge the next least into similar ones.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023 (arXiv 2305.17997), section 3.

    a_j        mean over heads of softmax(q_cls k_j / sqrt d)
    sort       tokens by a_j
    prune      the p tokens with the smallest a_j are dropped
    merge      the m next smallest each join the kept token with the largest cosine similarity of the features x: plain means
    size       of a kept token: its own and, of each token that joins it, the size times that similarity
    attention  softmax(q k^T / sqrt d + log size): proportional attention

The size counts a token the less, the less it resembles the one it joins; so it is in the authors' evaluation ("benefit to the accuracy of
off-the-shelf model"), not in the paper. A similarity below 0 counts as 0 here.

What the paper learns is p and m for every block, by gradients through a relaxed choice; everything else is parameter-free. The counts that the
authors published for DeiT are `PUBLISHED`: a network that is given one of these schedules drops and merges as theirs does. With any other
schedule `pruned` says which part of a stage's removals is dropped. The class token takes no part in merging.

By default a budget takes the same share in every block from the 3rd (our choice). The published counts, too, leave the first blocks nearly alone: their class
attention says little yet.
"""

from __future__ import annotations

from typing import ClassVar

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
        pruned: share of a stage's removals that are dropped, where the schedule is none of `PUBLISHED`; the rest merge.
    """

    name = "diffrate"
    paper = "Chen et al., ICCV 2023, arXiv 2305.17997"
    code = "OpenGVLab/DiffRate"
    faithful: ClassVar = {}
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
        published = PUBLISHED.get(stage.schedule[:-1])
        if published:
            self.survivors = (*published, stage.tokens_out)[stage.block - 1]
        else:
            self.survivors = stage.tokens_in - round(pruned * (stage.tokens_in - stage.tokens_out))
        # Nothing is like a prefix token: cheaper than cutting the prefix out.
        prefix_penalty = torch.zeros(stage.tokens_out)
        prefix_penalty[: stage.prefix_tokens] = -4.0
        self.register_buffer("prefix_penalty", prefix_penalty, persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then kept tokens from most to least attended."""
        border = self.stage.tokens_out
        ranking = top(evidence.attentiveness() + self.bonus, self.survivors)
        if self.survivors == border:
            return Keep(ranking)
        stay, leave = ranking.split_with_sizes([border, self.survivors - border], 1)
        kept, merged = gather_tokens(x, stay), gather_tokens(x, leave)
        similarity = unit(merged.float()) @ unit(kept.float()).transpose(1, 2) + self.prefix_penalty
        likeness, target = similarity.max(2)
        return Merge.into(stay, leave, target, equal=True, features=(kept, merged), credit=likeness.clamp_min(0))


# Tokens after dropping in each block but the last, by tokens after each block but the last, which keeps 3 (21 in DeiT-T's fifth row) and only drops.
PUBLISHED: dict[tuple[int, ...], tuple[int, ...]] = {
    # DeiT-T: 0.6, 0.7, 0.8, 0.9, 1.0 GMACs
    (197, 187, 167, 139, 114, 90, 76, 66, 57, 45, 37): (197, 196, 180, 157, 130, 107, 86, 73, 63, 51, 40),
    (197, 196, 192, 158, 133, 103, 88, 72, 64, 58, 49): (197, 196, 194, 180, 150, 123, 98, 82, 68, 60, 52),
    (197, 196, 190, 172, 154, 125, 107, 96, 84, 78, 70): (197, 197, 196, 186, 166, 147, 117, 103, 92, 80, 74),
    (197, 196, 194, 188, 172, 147, 129, 115, 107, 103, 96): (197, 197, 196, 190, 182, 166, 141, 125, 113, 105, 99),
    (197, 197, 196, 190, 186, 154, 148, 148, 145, 135, 125): (197, 197, 196, 194, 188, 184, 154, 148, 148, 137, 129),
    # DeiT-S: 2.3, 2.5, 2.7, 2.9, 3.1 GMACs
    (197, 180, 156, 127, 109, 98, 80, 66, 52, 37, 31): (197, 192, 168, 143, 121, 105, 92, 74, 62, 45, 33),
    (197, 186, 160, 133, 119, 107, 96, 82, 66, 43, 37): (197, 192, 174, 156, 131, 115, 107, 96, 76, 50, 39),
    (197, 188, 170, 147, 131, 119, 109, 96, 76, 54, 45): (197, 196, 182, 160, 141, 127, 115, 105, 88, 66, 49),
    (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56): (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58),
    (197, 196, 186, 164, 150, 141, 133, 121, 103, 78, 68): (197, 197, 194, 180, 160, 147, 137, 129, 115, 92, 76),
    # DeiT-B: 8.7, 10.0, 10.4, 11.5, 12.5 GMACs
    (197, 178, 162, 141, 115, 96, 78, 60, 47, 21, 13): (197, 192, 172, 156, 131, 107, 90, 72, 56, 33, 17),
    (197, 186, 174, 156, 137, 117, 105, 90, 66, 31, 19): (197, 194, 182, 168, 148, 129, 113, 101, 82, 49, 25),
    (197, 190, 184, 164, 145, 131, 107, 94, 74, 31, 21): (197, 196, 188, 174, 156, 141, 121, 103, 90, 58, 25),
    (197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35): (197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43),
    (197, 196, 194, 190, 176, 160, 145, 131, 115, 68, 47): (197, 197, 196, 192, 184, 170, 154, 139, 129, 94, 58),
}
"""The authors' learned counts (compression_rate.json of their code), which their networks have whatever the image."""
