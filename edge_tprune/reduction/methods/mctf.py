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

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import gather_tokens, top
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.registry import ATTENTION, Evidence, Reducer, Stage, register

LEAST = 0.01  #: informativeness, as a share of the mean: no token is weightless, and W stays within half precision


@dataclass(frozen=True)
class Step:
    """One direction of the matching, among P patch tokens: some sources join targets."""

    source: slice
    target: slice
    ranking: Tensor  #: (B, sources): places among the sources, those that join a target first
    link: Tensor  #: (B, targets, S): 1 where one of the first S of the ranking joins a target

    def added(self, amounts: Tensor) -> Tensor:
        """Amounts (B, P, D) that add up -> (B, P - S, D): sources that stay, then targets."""
        count = self.link.shape[2]
        source = gather_tokens(amounts[:, self.source], self.ranking)
        joined = self.link.to(amounts.dtype) @ source[:, :count]
        return torch.cat([source[:, count:], amounts[:, self.target] + joined], 1)

    def positions(self, positions: Tensor) -> Tensor:
        """Places (B, P) -> (B, P - S): of the tokens that stay."""
        alone = self.ranking[:, self.link.shape[2] :]
        return torch.cat([positions[:, self.source].gather(1, alone), positions[:, self.target]], 1)


@dataclass(frozen=True)
class Fused(Outcome):
    """Steps one after another. The features and sizes they lead to are at hand, since each step but the first looks at the last one's."""

    prefix: int
    steps: tuple[Step, ...]
    features: Tensor  #: (B, K, C)
    counts: Tensor  #: (B, K)

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, K, C): of the tokens that the reducer looked at."""
        return self.features

    def added(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D): sums."""
        patches = amounts[:, self.prefix :]
        for step in self.steps:
            patches = step.added(patches)
        return torch.cat([amounts[:, : self.prefix], patches], 1)

    def sizes(self, sizes: Tensor | None) -> Tensor:
        """(B, K), in float32: of the tokens that the reducer looked at."""
        return self.counts

    def positions(self, positions: Tensor) -> Tensor:
        """(B, N) -> (B, K): of the tokens that stayed."""
        patches = positions[:, self.prefix :]
        for step in self.steps:
            patches = step.positions(patches)
        return torch.cat([positions[:, : self.prefix], patches], 1)


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
    default_blocks = tuple(range(1, 13))
    removal = "count"

    exponents: Tensor

    def __init__(self, stage: Stage, *, tau_info: float = 20.0, tau_size: float = 40.0) -> None:
        super().__init__(stage)
        for option, tau in (("tau_info", tau_info), ("tau_size", tau_size)):
            if tau != 0 and not 4 <= tau <= 1000:
                raise UserError(f"method mctf: {option} is {tau:g}; it is a temperature, from 4 to 1000, or 0 to leave it out")
        self.proportional = True
        exponents = torch.tensor([-1 / tau if tau else 0.0 for tau in (tau_info, tau_size)])
        self.register_buffer("exponents", exponents, persistent=False)
        removed = stage.tokens_in - stage.tokens_out
        self.in_a = (stage.tokens_in - stage.prefix_tokens) // 2
        self.from_a = min(removed // 2, self.in_a - 1)
        self.from_b = removed - self.from_a

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, B tokens that are left, A tokens that are left; both from most to least attracted."""
        assert evidence.attention is not None
        prefix, channels = self.stage.prefix_tokens, x.shape[2]
        received = evidence.attention.float().mean((1, 2))
        sizes = torch.ones_like(received) if evidence.sizes is None else evidence.sizes
        info = received[:, prefix:, None].clamp_min(LEAST / self.stage.tokens_in)
        size = sizes[:, prefix:, None]
        # Features times weight, weight, informativeness, size: all of these add up where tokens merge, so they move together, and
        # the weighted mean is taken once, at the end.
        weight = info * size
        sums = torch.cat([x[:, prefix:].float() * weight, weight, info, size], 2)
        steps = []
        a, b = slice(1, None, 2), slice(0, None, 2)
        if self.from_a:
            steps.append(self._step(sums, a, b, self.from_a))
            sums = steps[0].added(sums)
            a, b = slice(0, self.in_a - self.from_a), slice(self.in_a - self.from_a, None)
        steps.append(self._step(sums, b, a, self.from_b))
        sums = steps[-1].added(sums)
        means = sums[..., :channels] / sums[..., channels : channels + 1]
        features = torch.cat([x[:, :prefix], means.to(x.dtype)], 1)
        return Fused(prefix, tuple(steps), features, torch.cat([sizes[:, :prefix], sums[..., -1]], 1))

    def _step(self, sums: Tensor, source: slice, target: slice, count: int) -> Step:
        """The `count` source tokens that are most attracted by a target join the one that attracts them most."""
        pull = self._pull(sums)
        attraction = pull[:, source] @ pull[:, target].transpose(1, 2)
        ranking = top(attraction.amax(2), attraction.shape[1])
        partner = attraction.argmax(2).gather(1, ranking[:, :count])
        targets = torch.arange(attraction.shape[2], device=sums.device)
        return Step(source, target, ranking, (targets[:, None] == partner[:, None]).float())

    def _pull(self, sums: Tensor) -> Tensor:
        """(B, P, C + 1) whose scalar products are 2 W_ij: f_i f_j (cos_ij + 1), where f = a^(-1 / tau_info) s^(-1 / tau_size)."""
        factor = sums[..., -2:].pow(self.exponents).prod(2, keepdim=True)
        features = sums[..., :-3]
        # A sum of features points where their mean does, so its length does not matter, unless it is 0.
        return torch.cat([features * (factor / features.norm(dim=2, keepdim=True).clamp_min(1e-6)), factor], 2)
