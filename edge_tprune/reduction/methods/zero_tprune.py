"""`zero_tprune`: weighted page rank on the attention graph, then similarity, with no training.

Wang et al., "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers", CVPR 2024
(arXiv 2305.17328). No official code exists; what the paper leaves open is marked "our choice".

The attention map A of a head (rows are queries, rows sum to 1) is the adjacency matrix of a directed graph over tokens: token i
votes for token j with weight A_ij. A pruning layer does three things in this order (section 3, "I'-S-I"):

I'  rank all tokens by one vote. Prunes nothing; it guides S.
S   drop near-duplicates: the less important half ("A-group") and the more important half ("B-group") of that ranking are
    compared by the cosine similarity of their keys; each A token takes its best B; the most similar pairs lose their A token.
    The key of a token is the mean over heads (our choice). The token is dropped, not merged.
I   page rank among the survivors, and the lowest ranks are pruned.

    s(t) = A^T s(t-1) per head (WPR, algorithm 1), from the class token sqrt(N) times the others (section 3.3); the class
           token votes and is never pruned; without a class token the start is uniform.
    s_i  = sqrt( sum_h m_h s_hi^2 / sum_h m_h )  across heads (EIR: emphasising informative region)
    m_h  = 1 where v_min <= Var(s_h) <= v_max    (VHF: variance-based head filter), with the scores of a head scaled to mean 1:
           summing to 1 over 197 tokens no variance could reach v_min = 0.01, and every head would be rejected (our choice). If no
           head passes, all count.

Survivors are not gathered for the page rank: votes of dropped tokens are masked, which is the same as deleting their rows and
columns without renormalising the rows (`renormalise` divides by what is left of each row; our choice is off).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import gather_tokens, keep_top, top
from edge_tprune.reduction.registry import ATTENTION, KEYS, Evidence, Reducer, Stage, register

V_MIN, V_MAX = 0.01, 0.7


@register
class ZeroTPrune(Reducer):
    """I'-S-I pruning.

    Args:
        stage: where it sits.
        similar: share of the stage's removals that S makes; I makes the rest.
        votes: page-rank iterations in I; 0 takes the paper's numbers: 30 in the first quarter of the blocks, 5 in the middle, 1 in the
            last quarter.
        head_filter: VHF on or off.
        uniform_start: start from equal scores instead of a heavy class token (the paper's ablation).
        renormalise: divide each survivor's votes by what is left of its attention row after S.
    """

    name = "zero_tprune"
    paper = "Wang et al., CVPR 2024, arXiv 2305.17328"
    needs = frozenset({ATTENTION, KEYS})

    def __init__(
        self,
        stage: Stage,
        *,
        similar: float = 0.5,
        votes: int = 1,
        head_filter: bool = True,
        uniform_start: bool = False,
        renormalise: bool = False,
    ) -> None:
        super().__init__(stage)
        if not 0 <= similar <= 1:
            raise UserError(f"method zero_tprune: similar is {similar:g}; it is a share, from 0 (never S) to 1 (only S)")
        if votes < 0:
            raise UserError(f"method zero_tprune: votes is {votes}; give 1 or more, or 0 for the paper's numbers")
        removed = stage.tokens_in - stage.tokens_out
        self.duplicates = min(round(similar * removed), (stage.tokens_in - stage.prefix_tokens) // 2)
        self.votes = votes or _paper_votes(stage)
        self.head_filter = head_filter
        self.renormalise = renormalise
        start = torch.ones(stage.tokens_in)
        if stage.has_class_token and not uniform_start:
            start[0] = math.sqrt(stage.tokens_in)
        self.register_buffer("start", start / start.sum(), persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Tensor:
        """(B, N, C) -> (B, tokens_out, C): prefix, then survivors from most to least important."""
        assert evidence.attention is not None
        assert evidence.keys is not None
        stage = self.stage
        attention = evidence.attention.float()
        first = _vote(attention, self.start[None, None])
        if self.duplicates == 0:
            score = self._rank(attention, first, None)
        else:
            guide = self._across_heads(first)[:, stage.prefix_tokens :]
            alive = self._drop_duplicates(guide, evidence.keys.float())
            score = self._rank(attention, _vote(attention, self._weighted(attention, self.start * alive, alive)), alive)
            score = torch.where(alive > 0, score, -1.0)
        return keep_top(x, score[:, stage.prefix_tokens :], stage.tokens_out, stage.prefix_tokens)

    def _drop_duplicates(self, guide: Tensor, keys: Tensor) -> Tensor:
        """S-stage: importance (B, M) of the M tokens after the prefix -> (B, N), 1 for survivors and 0 for the dropped."""
        prefix, count = self.stage.prefix_tokens, guide.shape[1]
        ranking = top(guide, count)
        important = count - count // 2
        key = functional.normalize(gather_tokens(keys.mean(1)[:, prefix:], ranking), dim=-1)
        likeness = (key[:, important:] @ key[:, :important].transpose(1, 2)).amax(-1)
        dropped = ranking[:, important:].gather(1, top(likeness, self.duplicates)) + prefix
        position = torch.arange(prefix + count, device=guide.device)
        return 1.0 - (dropped[:, :, None] == position).to(guide.dtype).sum(1)

    def _weighted(self, attention: Tensor, score: Tensor, alive: Tensor) -> Tensor:
        """A voter's weight (B, 1 or H, N), divided by the share of its attention that survivors hold where asked."""
        weight = score[:, None] if score.ndim == 2 else score
        if self.renormalise:
            weight = weight / (attention @ alive[:, None, :, None])[..., 0].clamp_min(1e-6)
        return weight

    def _rank(self, attention: Tensor, score: Tensor, alive: Tensor | None) -> Tensor:
        """I-stage after its first vote: scores (B, H, N) -> importance (B, N)."""
        for _ in range(self.votes - 1):
            if alive is not None:
                score = self._weighted(attention, score * alive[:, None], alive)
            score = _vote(attention, score)
        return self._across_heads(score if alive is None else score * alive[:, None])

    def _across_heads(self, score: Tensor) -> Tensor:
        """EIR over the heads that VHF lets pass: (B, H, N) -> (B, N)."""
        score = score / score.mean(-1, keepdim=True)
        square = score.square()
        if not self.head_filter:
            return square.mean(1).sqrt()
        variance = square.mean(-1, keepdim=True) - 1.0  # the mean is 1
        passes = ((variance >= V_MIN) & (variance <= V_MAX)).to(score.dtype)
        passing = passes.sum(1, keepdim=True)
        passes = torch.where(passing > 0, passes, 1.0)
        return ((square * passes).sum(1) / passes.sum(1)).sqrt()


def _vote(attention: Tensor, score: Tensor) -> Tensor:
    """One step of page rank, A^T s per head: (B, H, N, N) and (B or 1, H or 1, N) -> (B, H, N)."""
    return (score[..., None, :] @ attention)[..., 0, :]


def _paper_votes(stage: Stage) -> int:
    depth = (stage.block - 1) / stage.blocks
    return 30 if depth < 0.25 else 5 if depth < 0.75 else 1
