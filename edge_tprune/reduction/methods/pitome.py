"""`pitome`: merge tokens that many others resemble, and protect the isolated ones.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024 (arXiv 2405.16148), section 3.

    metric    v_i = mean over heads of the keys, to unit length
    energy    E_i = mean over patches j of f(cos(v_i, v_j)): high in a large cluster of look-alikes (background), low for a
              token that stands alone (a small object)
              f(c) = c - m where c > m, exp(c - m) - 1 below
    margin    m = margin (1 - (l - 1) / L) in block l of L, counted from 1: clusters are drawn wider the deeper the block
    first half of the blocks    all patches in the order of their energy; every other one is in A, the rest in B; the r A tokens
              most similar to a B token merge into it (ToMe's matching, with energy in the place of position)
    second half of the blocks   only the 2 r patches of highest energy: every other one is in A, the rest in B; each A token
              merges into its most similar B token. All other patches are protected: they stay as they are
    merging   mean weighted by size; sizes add up

The paper prints f(c) = c above the margin, which jumps by m there; the authors' code takes the continuous f above, an ELU. The matching of the first
half and the margin of 0.75 are those of their code for classification. The mean counts a token's likeness to itself, which is the same for all. Each block
removes at most half of its patch tokens.

Blocks: the paper merges in every block; here budgets of 0.65 and more have three or four stages (our choice: cheaper, and nearer to the
unpruned network), in `tuned/pitome.json`; at 0.5 and below nothing better than every block was found.

|           | default                                                  | `faithful`: the authors' code |
|-----------|----------------------------------------------------------|-------------------------------|
| attention | proportional to size: log size joins the attention logits | plain                         |
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.matching import bipartite
from edge_tprune.reduction.ops import gather_tokens, top, unit
from edge_tprune.reduction.outcome import Merge, Outcome
from edge_tprune.reduction.registry import KEYS, Evidence, Reducer, Stage, register


@register
class PiToMe(Reducer):
    """Merges tokens in large clusters of look-alikes.

    Args:
        stage: where it sits.
        margin: cosine above which two tokens count as look-alikes, in the first block; falls to 0 behind the last.
        proportional: add log size to the attention logits of the blocks that follow.
    """

    name = "pitome"
    paper = "Tran et al., NeurIPS 2024, arXiv 2405.16148"
    code = "hchautran/PiToMe"
    faithful: ClassVar = {"proportional": False}
    differs = "attention is proportional to size, as in ToMe"
    needs = frozenset({KEYS})
    merges = True
    drops = False
    default_blocks = tuple(range(1, 13))
    limit = "at most half of a block's patch tokens merge"

    def __init__(self, stage: Stage, *, margin: float = 0.75, proportional: bool = True) -> None:
        super().__init__(stage)
        if not 0 <= margin <= 1:
            raise UserError(f"method pitome: margin is {margin:g}; it is a cosine, from 0 to 1")
        self.proportional = proportional
        self.merged = stage.tokens_in - stage.tokens_out
        self.margin = margin * (1 - (stage.block - 1) / stage.blocks)
        self.protects = 2 * stage.block > stage.blocks + stage.blocks % 2

    @classmethod
    def fewest(cls, tokens_in: int, prefix_tokens: int) -> int:
        """All of A may merge."""
        return tokens_in - (tokens_in - prefix_tokens) // 2

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then A tokens that found no partner or protected tokens, then B tokens."""
        assert evidence.keys is not None
        prefix = self.stage.prefix_tokens
        metric = unit(evidence.keys.float().mean(2))[:, prefix:]
        excess = metric @ metric.transpose(1, 2) - self.margin
        # elu(excess), in operations that ONNX Runtime has in vector form: half the time.
        energy = torch.maximum(excess, excess.clamp_max(0).exp() - 1).mean(-1)
        ranking = top(energy, metric.shape[1])
        ranked = gather_tokens(metric, ranking)
        merge = self._merge_highest(ranked) if self.protects else bipartite(ranked, self.merged, 0)
        start = torch.arange(prefix, device=x.device).expand(len(x), -1)
        index = torch.cat([start, prefix + ranking.gather(1, merge.index)], 1)
        assert merge.target is not None
        return Merge.into(index, prefix + ranking.gather(1, merge.source), prefix + merge.target)

    def _merge_highest(self, metric: Tensor) -> Merge:
        """Of ranked tokens (B, N, D) the even places of the first 2 r merge, each into the most similar of the odd ones."""
        end, device = 2 * self.merged, metric.device
        partner = (metric[:, 0:end:2] @ metric[:, 1:end:2].transpose(1, 2)).argmax(2)
        place = torch.arange(metric.shape[1], device=device).expand(len(metric), -1)
        return Merge.into(torch.cat([place[:, end:], place[:, 1:end:2]], 1), place[:, 0:end:2], partner + metric.shape[1] - end)
