"""`mctf`: merge tokens that are alike, uninformative and small, in both directions between two sets.

Lee, Choi and Kim, "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers", CVPR 2024
(arXiv 2403.10030), sections 3.2 and 3.3. The published models were fine-tuned with it; here it is applied to any pretrained ViT as it is.

    a_j       informativeness: mean over heads and queries of the attention that token j receives
    s_j       size: how many original tokens j stands for
    W_ij      = W_sim * W_info^(1 / tau_info) * W_size^(1 / tau_size): how strongly i and j attract each other
              W_sim = (1 + cos(x_i, x_j)) / 2,  W_info = 1 / (a_i a_j),  W_size = 1 / (s_i s_j)
    matching  every other patch token is in A, the rest in B. The r/2 A tokens most attracted by a B token merge into it. Then, with W
              computed anew, the r/2 B tokens most attracted by an A token that is left merge into that one, and bring along what
              they have absorbed ("bidirectional bipartite soft matching")
    merging   mean weighted by a_j s_j; sizes add up
    attention log size joins the logits of the blocks that follow

One-step-ahead attention (section 3.3) means that tokens are judged by the attention they take part in next, not by the last block's. Hosted
between attention and MLP, the map of the block itself is at hand. The paper also merges the rows and columns of that map,
because it merges before attention; here attention is over, and nothing is left to merge.

Our choices: temperatures divide exponents, so that 20 and 40 temper the two criteria (as exponents they would drown similarity, and move
the logits ten times as far). tau_sim is 1, because the order of W depends on the other two only in proportion to it. The informativeness
and the weight of a merged token are the sums of its parts', as in a map whose columns merge. A token that receives less than a hundredth of
the mean attention counts as one that receives a hundredth. Where r is odd, the second direction takes one more; where A would run out, it
takes the rest, so that any number of tokens can merge.

All blocks merge by default. The paper's fast form is the same at `blocks=[4, 7, 10]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import as_rows, gather_tokens, top, unit
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.registry import ATTENTION, Evidence, Reducer, Stage, register

LEAST = 0.01  #: informativeness, as a share of the mean: no token is weightless, and W stays within half precision


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
    needs = frozenset({ATTENTION})
    merges = True
    drops = False
    default_blocks = tuple(range(1, 13))
    removal = "count"

    def __init__(self, stage: Stage, *, tau_info: float = 20.0, tau_size: float = 40.0) -> None:
        super().__init__(stage)
        for option, tau in (("tau_info", tau_info), ("tau_size", tau_size)):
            if tau != 0 and not 4 <= tau <= 1000:
                raise UserError(f"method mctf: {option} is {tau:g}; it is a temperature, from 4 to 1000, or 0 to leave it out")
        self.proportional = True
        self.exponents = [-1 / tau if tau else 0.0 for tau in (tau_info, tau_size)]
        self.a, self.b = slice(stage.prefix_tokens + 1, None, 2), slice(stage.prefix_tokens, None, 2)
        removed = stage.tokens_in - stage.tokens_out
        self.from_a = min(removed // 2, (stage.tokens_in - stage.prefix_tokens) // 2 - 1)
        self.from_b = removed - self.from_a

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, B tokens that are left, A tokens that are left; both from most to least attracted."""
        batch, prefix = len(x), self.stage.prefix_tokens
        place = torch.arange(self.stage.tokens_in, device=x.device).expand(batch, -1)
        features = x.float()
        # Only proportions count, so sums over heads and queries do for means: 1 from each head, on average.
        received = evidence.received()
        info, size = received.sum(1).clamp_min(LEAST * received.shape[1]), evidence.sizes
        weight = info if size is None else info * size
        force = self._force(info, size)
        # Tokens of B and of A; their directions and forces are, from the first direction on, those of what they have become and of those that are left.
        in_b, in_a = features[:, self.b], features[:, self.a]
        b, a, force_b, force_a = unit(in_b), unit(in_a), force[:, self.b], force[:, self.a]
        alone = leaving = place[:, self.a]
        if self.from_a:
            ranking, partner = _attracted(a, b, force_a, force_b)
            joins, stays = ranking.split_with_sizes([self.from_a, ranking.shape[1] - self.from_a], 1)
            leaving, alone = alone.gather(1, joins), alone.gather(1, stays)
            a, force_a, partner = gather_tokens(a, stays), force_a.gather(1, stays), partner.gather(1, joins)
            joined = place[:, : b.shape[1], None] == as_rows(partner)
            # A sum points where the mean does, and so does the sum of a token and what joins it in proportion to it.
            share = joined * as_rows(weight.gather(1, leaving)) / weight[:, self.b, None]
            b = unit(in_b + share @ gather_tokens(in_a, joins))
            force_b = self._force(self._grown(info, joined, leaving), self._grown(size, joined, leaving))
        second, destined = _attracted(b, a, force_b, force_a)
        follows, left = second.split_with_sizes([self.from_b, second.shape[1] - self.from_b], 1)
        index = torch.cat([place[:, :prefix], prefix + 2 * left, alone], 1)
        source, target = prefix + 2 * follows, prefix + left.shape[1] + destined.gather(1, follows)
        if self.from_a:
            # A token that joined one of B is, in the end, where that one is.
            ends = torch.cat([target, place[:, prefix : prefix + left.shape[1]]], 1)  # of B tokens, by rank
            ends = ends.gather(1, second.topk(second.shape[1], dim=1, largest=False).indices)  # by place
            source, target = torch.cat([leaving, source], 1), torch.cat([ends.gather(1, partner), target], 1)
        return Merge.into(index, source, target, weights=weight)

    def _force(self, info: Tensor, size: Tensor | None) -> Tensor:
        """f = a^(-1 / tau_info) s^(-1 / tau_size) of each token, (B, N): W_ij has that of both."""
        force = info.pow(self.exponents[0])
        return force if size is None else force * size.pow(self.exponents[1])

    def _grown(self, amount: Tensor | None, joined: Tensor, leaving: Tensor) -> Tensor:
        """Amounts (B, N), None for all 1 -> of B's tokens (B, M), with those of the tokens `leaving` (B, S) that `joined` (B, M, S) them."""
        if amount is None:
            return 1 + joined.float().sum(-1)
        return amount[:, self.b] + (joined * as_rows(amount.gather(1, leaving))).sum(-1)


def _attracted(source: Tensor, target: Tensor, force: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """Who joins whom, by 2 W_ij = f_i f_j (cos_ij + 1).

    Args:
        source: (B, S, C), of unit length.
        target: (B, T, C), likewise.
        force: of the sources, (B, S).
        pull: of the targets, (B, T).

    Returns:
        Places of the sources (B, S), the most attracted first; by place, the target that attracts each most (B, S).
    """
    strongest, partner = ((source @ target.transpose(1, 2) + 1) * as_rows(pull)).max(2)
    return top(strongest * force, force.shape[1]), partner
