"""`zero_tprune`: weighted page rank on the attention graph, then similarity, with no training.

Wang et al., "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers", CVPR 2024
(arXiv 2305.17328). No official code exists; what the paper leaves open is marked "our choice".

The attention map A of a head (rows are queries, rows sum to 1) is the adjacency matrix of a directed graph over tokens: token i
votes for token j with weight A_ij. A pruning layer does three things in this order (section 3, "I'-S-I"):

I'  rank all tokens by page rank. Prunes nothing; it guides S.
S   drop near-duplicates: the less important half ("A-group") and the more important half ("B-group") of that ranking are
    compared by the cosine similarity of their keys; each A token takes its best B; the most similar pairs lose their A token.
    The cosine is that of whole keys, all heads side by side (our choice).
I   page rank among the survivors, and the lowest ranks are pruned.

    s(t) = A^T s(t-1) per head (WPR, algorithm 1), from the class token sqrt(N) times the others (section 3.3); the class
           token votes and is never pruned; without a class token the start is uniform.
    s_i  = sqrt( sum_h m_h s_hi^2 / sum_h m_h )  across heads (EIR: emphasising informative region)
    m_h  = 1 where v_min <= Var(s_h) <= v_max    (VHF: variance-based head filter), with the scores of a head scaled to mean 1:
           summing to 1 over 197 tokens no variance could reach v_min = 0.01, and every head would be rejected (our choice). If no
           head passes, all count.

Only the order of the scores matters, so the square root and the division by sum m_h, equal for all tokens, are left out.

|                 | default                                                        | `faithful`: the paper                              |
|-----------------|----------------------------------------------------------------|----------------------------------------------------|
| duplicates of S | averaged into their twins, weighted by size (`merge`)          | dropped                                            |
| I               | goes by the ranking of I', since twins have their duplicates' votes | page rank among the survivors                 |
| votes           | one                                                            | 1 in I'; 30, 5, 1 in I by depth                    |
| S removes       | nearly all that a stage removes (`similar`)                    | half of it                                         |
| blocks          | searched for                                                   | 2, 4, 7, 10, 12                                    |

Survivors are not gathered for I: the votes of dropped tokens are masked, which is the same as deleting their rows and columns without
renormalising the rows (`renormalise` divides by what is left of each row; the paper does not say which). The paper searches for blocks, rates and
what S removes, network by network; the blocks above, and half, are our reading of the configurations that it shows.

The paper's ablations are options of the faithful form: `votes`, `emphasis` (EIR), `head_filter` (VHF), `uniform_start`, `partition`, `similar=1` (S alone),
`similar=0` (I alone).
"""

from __future__ import annotations

import math
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.matching import pairs
from edge_tprune.reduction.ops import as_rows, gather_tokens, top, unit
from edge_tprune.reduction.outcome import Keep, Merge, Outcome
from edge_tprune.reduction.registry import ATTENTION, KEYS, Evidence, Reducer, Stage, register

V_MIN, V_MAX = 0.01, 0.7
MOST_VOTES = 1000  #: iterations, each of which is a product of matrices in the graph
PARTITIONS = ("sequential", "alternate", "random")


@register
class ZeroTPrune(Reducer):
    """I'-S-I pruning.

    Args:
        stage: where it sits.
        similar: share of the stage's removals that S makes; I makes the rest.
        votes: page-rank iterations in I (where `merge`, in I'); 0 takes the paper's numbers: 30 in the first quarter of the blocks, 5 in the
            middle, 1 in the last quarter.
        emphasis: EIR on, or the plain mean across heads.
        head_filter: VHF on or off.
        uniform_start: start from equal scores instead of a heavy class token.
        renormalise: divide each survivor's votes by what is left of its attention row after S; only where S drops (`merge` off).
        partition: "sequential": the A-group is the less important half of the ranking; "alternate": every other token of it; "random": a random half,
            drawn once per block.
        merge: the duplicates that S finds are averaged into their twins, weighted by size, and log size is added to the logits of the blocks that
            follow, as in ToMe; false drops them.
    """

    name = "zero_tprune"
    paper = "Wang et al., CVPR 2024, arXiv 2305.17328"
    faithful: ClassVar = {"merge": False, "votes": 0, "similar": 0.5}
    differs = "similar tokens merge instead of being dropped, and are nearly all of a stage's removals; tokens are ranked by one PageRank iteration"
    paper_blocks = (2, 4, 7, 10, 12)
    needs = frozenset({ATTENTION, KEYS})
    merges = True
    worth_searching: ClassVar = {"similar": (0.25, 0.5, 0.65, 0.75, 0.85, 0.95), "votes": (0, 1, 2, 5)}

    start: Tensor
    position: Tensor
    a: Tensor
    b: Tensor
    kept_places: Tensor

    def __init__(
        self,
        stage: Stage,
        *,
        similar: float = 0.95,
        votes: int = 1,
        emphasis: bool = True,
        head_filter: bool = True,
        uniform_start: bool = False,
        renormalise: bool = False,
        partition: str = "sequential",
        merge: bool = True,
    ) -> None:
        super().__init__(stage)
        if partition not in PARTITIONS:
            raise UserError(f"method zero_tprune: partition is {partition!r}; it is one of {', '.join(PARTITIONS)}")
        if not 0 <= similar <= 1:
            raise UserError(f"method zero_tprune: similar is {similar:g}; it is a share, from 0 (never S) to 1 (only S)")
        if not 0 <= votes <= MOST_VOTES:
            raise UserError(f"method zero_tprune: votes is {votes}; give 1 to {MOST_VOTES}, or 0 for the paper's numbers")
        if renormalise and merge:
            raise UserError(
                "method zero_tprune: renormalise has nothing to divide where duplicates merge: add --option merge=false"
            )
        removed = stage.tokens_in - stage.tokens_out
        self.duplicates = min(round(similar * removed), (stage.tokens_in - stage.prefix_tokens) // 2)
        self.proportional = merge
        self.votes = votes or _paper_votes(stage)
        self.partition = partition
        self.emphasis = emphasis
        self.head_filter = head_filter
        self.renormalise = renormalise
        start = torch.ones(stage.tokens_in)
        if stage.has_class_token and not uniform_start:
            start[0] = math.sqrt(stage.tokens_in)
        self.register_buffer("start", (start / start.sum())[None, None, None], persistent=False)
        first, tokens = stage.prefix_tokens, stage.tokens_in
        #: Places in the ranking of the A-group and the B-group.
        places = torch.arange(tokens)
        a, b = _groups(partition, stage)
        self.slices = None if partition == "random" else (_as_slice(a, partition), _as_slice(b, partition))
        self.register_buffer("position", places, persistent=False)
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)
        self.register_buffer("kept_places", torch.cat([places[:first], b]), persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then survivors from most to least important."""
        assert evidence.attention is not None
        assert evidence.keys is not None
        attention = evidence.attention.float()
        if not self.duplicates:
            return Keep(top(self._page_rank(attention, self.votes) + self.bonus, self.stage.tokens_out))
        # Where S merges, I goes by the ranking of I'.
        ranking = top(self._page_rank(attention, self.votes if self.proportional else 1) + self.bonus, self.stage.tokens_in)
        if self.slices is None:
            a, b = ranking.index_select(1, self.a), ranking.index_select(1, self.b)
        else:
            a, b = (ranking[:, part] for part in self.slices)
        key = unit(evidence.keys.float().flatten(2))
        order, best = pairs(gather_tokens(key, a), gather_tokens(key, b))
        chosen, others = order.split_with_sizes([self.duplicates, order.shape[1] - self.duplicates], 1)
        dropped = a.gather(1, chosen)
        if not self.proportional:
            alive = torch.where(dropped[:, None, :, None] == self.position, 0.0, 1.0).amin(2, keepdim=True)
            return Keep(top(self._page_rank(attention, self.votes, alive) + self.bonus, self.stage.tokens_out))
        if self.partition == "sequential":  # the B-group comes before all of the A-group in the ranking
            border = len(self.kept_places)
            survivors = ranking[:, : min(border, self.stage.tokens_out)]
            if self.stage.tokens_out > border:
                next_ones = others.topk(self.stage.tokens_out - border, dim=1, largest=False).values
                survivors = torch.cat([survivors, a.gather(1, next_ones)], 1)
            return Merge.into(survivors, dropped, self.stage.prefix_tokens + best.gather(1, chosen))
        # The ranking without the duplicates, by its places.
        left = torch.cat([self.kept_places.expand(len(x), -1), self.a[others]], 1)
        first = left.topk(self.stage.tokens_out, dim=1, largest=False).values
        survivors = ranking.gather(1, first)
        return Merge(survivors, dropped, survivors[:, :, None] == as_rows(b.gather(1, best.gather(1, chosen))))

    def _page_rank(self, attention: Tensor, rounds: int, alive: Tensor | None = None) -> Tensor:
        """WPR, EIR and VHF: importance (B, N) up to a monotone map, after `rounds` among the tokens alive (B, 1, 1, N; all where None)."""
        ballot = self.start
        for _ in range(rounds):
            if alive is not None:
                ballot = ballot * alive
                if self.renormalise:
                    ballot = ballot / (attention @ alive.transpose(2, 3)).transpose(2, 3).clamp_min(1e-6)
            ballot = ballot @ attention  # A^T s of every head: (B or 1, H or 1, 1, N) and (B, H, N, N) -> (B, H, 1, N)
        if alive is not None:
            ballot = ballot * alive  # what the dropped received is no part of any head's mean; they rank last with 0
            ballot = ballot / ballot.sum(-1, keepdim=True)
        return self._combined(ballot, alive is not None)

    def _combined(self, share: Tensor, some_dropped: bool) -> Tensor:
        """EIR over the heads that VHF lets pass: scores that sum to 1, as they stay where all tokens vote, (B, H, 1, N) -> (B, N), up to a monotone map."""
        square = share * share
        score = square if self.emphasis else share
        if not self.head_filter:
            return score.sum((1, 2))
        count = self.stage.tokens_in - (self.duplicates if some_dropped else 0)
        # Var of scores with mean 1 is count * sum(s^2) / sum(s)^2 - 1; a head passes within [V_MIN, V_MAX].
        spread = square.sum(-1, keepdim=True)
        passes = spread.clamp((1 + V_MIN) / count, (1 + V_MAX) / count) == spread
        # A head that fails weighs next to nothing instead of nothing: if all fail, all count alike, without a second branch.
        return (torch.where(passes, 1.0, 1e-9) * score).sum((1, 2))


def _groups(partition: str, stage: Stage) -> tuple[Tensor, Tensor]:
    """Places in the ranking of the A-group, which is compared and pruned, and of the B-group, which is compared with."""
    ranked = torch.arange(stage.prefix_tokens, stage.tokens_in)
    half = len(ranked) - len(ranked) // 2
    if partition == "sequential":
        return ranked[half:], ranked[:half]
    if partition == "random":
        ranked = torch.tensor(Random(stage.block).sample(ranked.tolist(), len(ranked)), dtype=torch.int64)
    return ranked[1::2], ranked[::2]


def _as_slice(places: Tensor, partition: str) -> slice:
    """Places that follow one another, or every other one, as a slice: a cheaper look-up."""
    step = 1 if partition == "sequential" else 2
    first = int(places[0]) if len(places) else 0
    return slice(first, first + step * len(places), step)


def _paper_votes(stage: Stage) -> int:
    depth = (stage.block - 1) / stage.blocks
    return 30 if depth < 0.25 else 5 if depth < 0.75 else 1
