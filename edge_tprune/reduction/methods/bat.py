"""`bat`: Beyond Attentive Tokens: decouple, then cluster the inattentive and merge the alike among the attentive.

Long et al., "Beyond Attentive Tokens: Incorporating Token Importance and Diversity for Efficient Vision Transformers", CVPR 2023
(arXiv 2211.11315), section 3. No code was published; what the paper leaves open is marked "our choice". The paper trains
with it; here it is applied to any pretrained ViT as it is.

    a_j         mean over heads of softmax(q_cls k_j / sqrt d)
    decouple    the tokens with the largest a_j are attentive, the others inattentive (section 3.2)
    cluster     inattentive tokens: density peaks (`edge_tprune.reduction.matching.density_peaks`); each cluster becomes one token, the mean of its
                tokens weighted by a_j (section 3.3)
    match       attentive tokens: bipartite matching by cosine, the most similar ("homogeneous") pairs merge, weighted likewise (section 3.3)

Our choices, where the paper leaves it open: `attentive` and `matched` below split a stage's tokens and removals between the two; attentive tokens
alternate between the two sides of the matching in the order of a_j; likeness and distance are those of the features after the attention
residual; the unit of density is the image's own. The class token takes no part.

|           | default                                                          | `faithful`: the paper |
|-----------|------------------------------------------------------------------|-----------------------|
| attention | proportional to size, as in ToMe, without which far more is lost | plain                 |
| density   | of a token itself and the nearest to it (`neighbours=2`)         | of the nearest five   |
| blocks    | searched for                                                     | 4, 7, 10              |

The paper's ablations are options of the faithful form: `matched=0` (without matching), `cluster=false` (without clustering), `neighbours` (k).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.matching import NEIGHBOURS, density_peaks, exclusions, neighbours_of, pairs
from edge_tprune.reduction.ops import gather_tokens, top, unit
from edge_tprune.reduction.outcome import Keep, Merge, Outcome
from edge_tprune.reduction.registry import CLASS_ROW, Evidence, Reducer, Stage, register


@register
class BAT(Reducer):
    """Clusters inattentive tokens, merges alike attentive ones.

    Args:
        stage: where it sits.
        attentive: share of a stage's patch tokens that are attentive.
        matched: share of a stage's removals made by matching attentive tokens; clustering makes the rest.
        neighbours: how many nearest tokens, itself included, make a token's density.
        cluster: false drops the inattentive tokens; all that stay are attentive, whatever `attentive` says.
        proportional: add log size to the attention logits of the blocks that follow.
    """

    name = "bat"
    paper = "Long et al., CVPR 2023, arXiv 2211.11315"
    faithful: ClassVar = {"neighbours": 5, "proportional": False}
    differs = "attention is proportional to size, and a token's density is computed from two neighbours instead of five"
    needs = frozenset({CLASS_ROW})
    needs_class_token = True
    merges = True
    worth_searching: ClassVar = {"attentive": (0.3, 0.4, 0.5, 0.6, 0.7), "matched": (0.0, 0.1, 0.2, 0.3, 0.4)}

    exclusion: Tensor
    order: Tensor

    def __init__(
        self,
        stage: Stage,
        *,
        attentive: float = 0.4,
        matched: float = 0.1,
        neighbours: int = NEIGHBOURS,
        cluster: bool = True,
        proportional: bool = True,
    ) -> None:
        super().__init__(stage)
        for name, share in (("attentive", attentive), ("matched", matched)):
            if not 0 <= share <= 1:
                raise UserError(f"method bat: {name} is {share:g}; it is a share, from 0 to 1")
        self.neighbours = neighbours_of(self.name, neighbours)
        self.drops = not cluster
        self.proportional = proportional
        patches, removed = stage.tokens_in - stage.prefix_tokens, stage.tokens_in - stage.tokens_out
        self.clusters = 0
        if cluster:
            self.attentive, self.pairs = _split(patches, removed, attentive, matched)
            self.clusters = patches - self.attentive - (removed - self.pairs)
        else:
            self.pairs = min(round(matched * removed), patches - removed, removed)
            self.attentive = patches - removed + self.pairs
        # Also what keeps the weight of a token that nothing attends to above 0.
        self.bonus += 1e-6
        self.register_buffer("exclusion", exclusions(patches - self.attentive), persistent=False)
        # Places in the order of attentiveness: prefix, attentive tokens of either side of the matching, inattentive ones.
        places = torch.arange(patches) + stage.prefix_tokens
        first, rest = places[: self.attentive], places[self.attentive :]
        order = torch.cat([torch.arange(stage.prefix_tokens), first[::2], first[1::2], rest])
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, attentive tokens, clusters."""
        attentiveness = evidence.attentiveness() + self.bonus
        ranking = top(attentiveness, self.stage.tokens_in).index_select(1, self.order)
        prefix, attentive, inattentive = ranking.split_with_sizes(
            [self.stage.prefix_tokens, self.attentive, len(self.exclusion)], 1
        )
        stay, leave, target = [prefix], [], []
        if self.pairs:
            sides = [self.attentive - self.attentive // 2, self.attentive // 2]
            b, a = attentive.split_with_sizes(sides, 1)
            feature_b, feature_a = unit(gather_tokens(x, attentive).float()).split_with_sizes(sides, 1)
            order, partner = pairs(feature_a, feature_b)
            matched, others = order.split_with_sizes([self.pairs, order.shape[1] - self.pairs], 1)
            stay += [a.gather(1, others), b]
            leave.append(a.gather(1, matched))
            target.append(self.stage.prefix_tokens + others.shape[1] + partner.gather(1, matched))
        else:
            stay.append(attentive)
        if self.clusters:
            centres, others, cluster = density_peaks(
                gather_tokens(x, inattentive).float(), self.clusters, self.exclusion, neighbours=self.neighbours
            )
            stay.append(inattentive.gather(1, centres))
            leave.append(inattentive.gather(1, others))
            target.append(self.stage.tokens_out - self.clusters + cluster)
        if not leave:
            return Keep(torch.cat(stay, 1))
        return Merge.into(torch.cat(stay, 1), torch.cat(leave, 1), torch.cat(target, 1), weights=attentiveness)


def _split(patches: int, removed: int, attentive: float, matched: float) -> tuple[int, int]:
    """How many of a stage's patch tokens are attentive, and how many removals matching makes.

    The shares are wishes: at most half of the attentive find a partner, and of the inattentive, where there are any, one cluster at
    least is left. Where that falls short of what the schedule removes, fewer tokens count as attentive.
    """
    for count in range(round(attentive * patches), -1, -1):
        fewest = max(0, removed - max(0, patches - count - 1))
        most = min(removed, count // 2)
        if fewest <= most:
            return count, max(fewest, min(most, round(matched * removed)))
    raise AssertionError("a stage keeps at least one patch token")
