"""`vote_mix`: tokens vote for their nearest neighbour; the most voted ones are mixed softly into the rest.

Peng et al., "Vote&Mix: Plug-and-Play Token Reduction for Efficient Vision Transformer" (VoMix), ICME 2025 (arXiv 2408.17062). No official code
was found; what the formulae leave open, or what a network that keeps its attention as it is cannot follow, is marked "our choice".

    metric    m_i = mean over heads of the keys, to unit length; similarity S_ij = m_i m_j, S_ii left out
    vote      each token i votes for p_i = argmax_j S_ij with the weight S_ip_i; a token's score is the sum of its votes: a high score
              means that many others look like it (homogeneity)
    select    the tokens with the highest scores leave
    mix       selected token s goes to every retained token t in the parts w_ts = softmax over t of S_ts / temperature
    value     x_t = (x_t + sum_s w_ts x_s) / (1 + sum_s w_ts), all weighted by size: mixing equal tokens changes nothing

The paper mixes the queries of its attention, so that attention itself has fewer rows; here the tokens are mixed after attention, as every other method
does, and features bear far less mixing than queries (our choice). At temperature 1, which spreads a token nearly evenly, DeiT-Tiny's divergence
from the unpruned network was four times that at the default; below it the gain is small, and the parts begin to depend on how a runtime rounds the
similarities. Proportional attention lowered the divergence as well (our choice).

Prefix tokens neither vote nor can be voted for nor are mixed into (our choice). Many tokens tie: those without a vote, and any two that only vote
for each other. Of those the one most like the mean of all leaves first (our choice).

The paper removes a share of the tokens in every layer (`--blocks 1,2,3,4,5,6,7,8,9,10,11,12`). At budgets from 0.6 on, four or five stages are the
default: they are nearer to the unpruned network, and cost less.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import gather_tokens, top, unit
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.registry import KEYS, Evidence, Reducer, Stage, register


@register
class VoteMix(Reducer):
    """Votes for look-alikes and mixes the most voted.

    Args:
        stage: where it sits.
        temperature: of the softmax that spreads a selected token over the retained ones: towards 0 it merges into the most similar one,
            at 1 it is spread nearly evenly.
        proportional: add log size to the attention logits of the blocks that follow.
    """

    name = "vote_mix"
    paper = "Peng et al., ICME 2025, arXiv 2408.17062"
    differs = "tokens mix after attention instead of its queries before it; no public code was found"
    needs = frozenset({KEYS})
    merges = True
    drops = False
    default_blocks = tuple(range(1, 13))

    own: Tensor

    def __init__(self, stage: Stage, *, temperature: float = 0.02, proportional: bool = True) -> None:
        super().__init__(stage)
        if not 1e-3 <= temperature <= 1000:
            raise UserError(f"method vote_mix: temperature is {temperature:g}; it is a number, from 0.001 to 1000")
        self.temperature = temperature
        self.proportional = proportional
        patches = stage.tokens_in - stage.prefix_tokens
        self.retained = stage.tokens_out - stage.prefix_tokens
        # Similarities are at least -1: with this off its diagonal no token votes for itself.
        self.register_buffer("own", 4.0 * torch.eye(patches), persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then the retained tokens from least to most voted."""
        assert evidence.keys is not None
        first = self.stage.prefix_tokens
        metric = unit(evidence.keys.float().mean(2))[:, first:]
        ranking = top(-self._homogeneity(metric), metric.shape[1])
        ranked = gather_tokens(metric, ranking)
        likeness = ranked[:, : self.retained] @ ranked[:, self.retained :].transpose(1, 2)
        link = functional.pad((likeness / self.temperature).softmax(1), (0, 0, first, 0))  # nothing flows into the prefix
        start = torch.arange(first, device=x.device).expand(len(x), -1)
        ranking = first + ranking
        return Merge(torch.cat([start, ranking[:, : self.retained]], 1), ranking[:, self.retained :], link)

    def _homogeneity(self, metric: Tensor) -> Tensor:
        """The votes each patch received: (B, n, D) of unit length -> (B, n)."""
        weight, partner = (metric @ metric.transpose(1, 2) - self.own).topk(1, dim=2)
        ballots = (partner == torch.arange(metric.shape[1], device=metric.device)).to(weight.dtype)
        votes = (weight.transpose(1, 2) @ ballots)[:, 0]
        return votes + 1e-3 * (metric @ metric.mean(1)[..., None])[..., 0]  # the second part only breaks ties
