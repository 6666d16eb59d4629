"""`evit`: keep the tokens that the class token attends to.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR 2022
(arXiv 2202.07800), section 3. The published models were trained with it; here it is applied to any pretrained ViT as it is.

    a_j = mean over heads of softmax(q_cls k_j / sqrt d)          attentiveness, section 3.2
    keep the tokens with the largest a_j
    optionally append x_fused = sum over the removed j of a_j x_j  inattentive token fusion, section 3.3, not normalised

The fused token costs one of the tokens kept. It was trained for in the paper; without training it costs accuracy on DeiT,
so it is off unless asked for.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from edge_tprune.reduction.ops import top
from edge_tprune.reduction.outcome import Append, Keep, Outcome
from edge_tprune.reduction.registry import CLASS_ROW, Evidence, Reducer, Stage, register


@register
class EViT(Reducer):
    """Top-k by class attention.

    Args:
        stage: where it sits.
        fuse: append the attention-weighted sum of the removed tokens as one token.
    """

    name = "evit"
    paper = "Liang et al., ICLR 2022, arXiv 2202.07800"
    code = "youweiliang/evit"
    faithful: ClassVar = {}
    needs = frozenset({CLASS_ROW})
    needs_class_token = True

    def __init__(self, stage: Stage, *, fuse: bool = False) -> None:
        super().__init__(stage)
        # With one token left beside the prefix, or none removed, there is nothing to fuse.
        self.fuse = fuse and stage.prefix_tokens + 1 < stage.tokens_out < stage.tokens_in

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, kept tokens from most to least attended, fused token."""
        attentiveness = evidence.attentiveness()
        if not self.fuse:
            return Keep(top(attentiveness + self.bonus, self.stage.tokens_out))
        kept = self.stage.tokens_out - 1
        ranking = top(attentiveness + self.bonus, self.stage.tokens_in)
        removed = ranking[:, kept:]
        return Append(ranking[:, :kept], removed, attentiveness.gather(1, removed))
