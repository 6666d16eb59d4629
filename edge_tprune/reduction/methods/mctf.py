"""`mctf`: merge tokens that are alike, uninformative and small, in both directions between two sets.

Lee, Choi and Kim, "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers", CVPR 2024
(arXiv 2403.10030), sections 3.2 and 3.3. The published models were fine-tuned with it; here it is applied to any pretrained ViT as it is.

    a_j       informativeness: mean over heads and queries of the attention that token j receives
    s_j       size: how many original tokens j stands for
    W_ij      = W_sim * W_info^(1 / tau_info) * W_size^(1 / tau_size): how strongly i and j attract each other
              W_sim = (1 + cos(x_i, x_j)) / 2,  W_info = 1 / (a_i a_j),  W_size = 1 / (s_i s_j)
    matching  tokens at even places are in A, the others in B. The r/2 A tokens most attracted by a B token merge into it. Then the r/2 B
              tokens most attracted by an A token that is left merge into that one, and bring along what they have absorbed
              ("bidirectional bipartite soft matching"); W is that of the tokens as they came
    merging   mean weighted by a_j s_j; sizes add up
    attention log size joins the logits of the blocks that follow

One-step-ahead attention (section 3.3): tokens are judged by the attention they are about to take part in. The block computes its attention map,
then its tokens merge, then so does the map: columns by sums, rows by the weights of their tokens; the merged map meets the values of
the merged tokens. So the method sits between map and values (`edge_tprune.reduction.host`), and the block's value and output projections
have fewer tokens to work on.

The temperatures are those of the authors' evaluation (tau_sim = 1, which is left out, tau_info = 20, tau_size = 40). Where r is odd, the second
direction takes one more; where A would run out, it takes the rest, so that any number of tokens can merge (our addition: the
authors' code stops at half). `blocks=[4, 7, 10]` is the paper's fast form.

Blocks: the paper merges in every block from the 2nd; here budgets of 0.65 and more have three or four stages (our choice: cheaper, and nearer to the
unpruned network), in `tuned/mctf.json`; at 0.5 and below four.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.matching import halves, in_order
from edge_tprune.reduction.ops import as_rows, gather_tokens, top, unit
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.registry import ATTENTION, Evidence, Reducer, Stage, register

LEAST = 1e-12  #: informativeness of a token that receives nothing


@register
class MCTF(Reducer):
    """Merges by similarity, informativeness and size.

    Args:
        stage: where it sits.
        tau_info: temperature of informativeness; larger counts less, 0 leaves it out.
        tau_size: temperature of size, likewise.
    """

    name = "mctf"
    paper = "Lee et al., CVPR 2024, arXiv 2403.10030"
    code = "mlvlab/MCTF"
    faithful: ClassVar = {}
    place = "values"
    needs = frozenset({ATTENTION})
    merges = True
    drops = False
    default_blocks = tuple(range(2, 13))
    removal = "count"

    def __init__(self, stage: Stage, *, tau_info: float = 20.0, tau_size: float = 40.0) -> None:
        super().__init__(stage)
        for option, tau in (("tau_info", tau_info), ("tau_size", tau_size)):
            if tau != 0 and not 4 <= tau <= 1000:
                raise UserError(f"method mctf: {option} is {tau:g}; it is a temperature, from 4 to 1000, or 0 to leave it out")
        self.proportional = True
        self.exponents = [-1 / tau if tau else 0.0 for tau in (tau_info, tau_size)]
        self.a, self.b = halves(stage.prefix_tokens)
        count_a = len(range(stage.tokens_in)[self.a])
        removed = stage.tokens_in - stage.tokens_out
        self.from_a = min(removed // 2, count_a - 1)
        self.from_b = removed - self.from_a

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, A tokens that are left in their order, B tokens that are left from most to least attracted."""
        # Only proportions count, so sums over heads and queries do for means.
        info, sizes = evidence.received().sum(1).clamp_min(LEAST), evidence.sizes
        attraction = self._attraction(x.float(), info, sizes)
        (_, count_a, count_b), prefix = attraction.shape, self.stage.prefix_tokens
        place = torch.arange(self.stage.tokens_in, device=x.device).expand(len(x), -1)
        # First direction. Places from here on are those within A and within B.
        strongest, partner = attraction.max(2)
        merged_a, left_a = top(strongest, count_a).split_with_sizes([self.from_a, count_a - self.from_a], 1)
        left_a = in_order(left_a)
        # Second direction, into the A tokens that are left.
        strongest, goal = gather_tokens(attraction, left_a).max(1)
        ranking = top(strongest, count_b)
        merged_b, left_b = ranking.split_with_sizes([self.from_b, count_b - self.from_b], 1)
        target = prefix + goal.gather(1, merged_b)
        kept, merged = [place[:, :prefix], self.a.start + 2 * left_a, self.b.start + 2 * left_b], self.b.start + 2 * merged_b
        if self.from_a:
            # What joined a B token is where that one is in the end.
            ends = torch.cat([target, place[:, prefix + count_a - self.from_a : self.stage.tokens_out]], 1)  # of B, by rank
            ends = ends.gather(1, ranking.topk(count_b, dim=1, largest=False).indices)  # of B, by place
            target = torch.cat([ends.gather(1, partner.gather(1, merged_a)), target], 1)
            merged = torch.cat([self.a.start + 2 * merged_a, merged], 1)
        return Merge.into(torch.cat(kept, 1), merged, target, weights=info if sizes is None else info * sizes)

    def _attraction(self, x: Tensor, info: Tensor, sizes: Tensor | None) -> Tensor:
        """Tokens (B, N, C), informativeness and sizes (B, N) -> 2 W_ij of A and B, (B, A tokens, B tokens), but for a factor."""
        # W_info and W_size are products of what each of the two tokens has.
        force = info.pow(self.exponents[0])
        force = force if sizes is None else force * sizes.pow(self.exponents[1])
        direction = unit(x)
        cosine = direction[:, self.a] @ direction[:, self.b].transpose(1, 2)
        return (cosine + 1) * force[:, self.a, None] * as_rows(force[:, self.b])
