"""A method of your own: python examples/own_method.py

The same file serves the command line: edge-tprune explain reference:17 --method keep_bright --plugin examples/own_method.py
"""

import timm
import torch

import edge_tprune
from edge_tprune.reduction import Evidence, Keep, Outcome, Reducer, Stage, register, top


@register
class KeepBright(Reducer):
    """Keeps the tokens with the largest mean feature.

    Args:
        stage: where it sits.
        absolute: take the mean of magnitudes.
    """

    name, paper = "keep_bright", "none"

    def __init__(self, stage: Stage, *, absolute: bool = True) -> None:
        super().__init__(stage)
        self.absolute = absolute

    def forward(self, x: torch.Tensor, evidence: Evidence) -> Outcome:
        """x: (B, tokens_in, C). `self.bonus` ranks class and register tokens first, so they stay."""
        features = x.float().abs() if self.absolute else x.float()
        return Keep(top(features.mean(-1) + self.bonus, self.stage.tokens_out))


if __name__ == "__main__":
    model = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
    pruned = edge_tprune.prune(model, method="keep_bright", budget=0.65, absolute=False)
    with torch.no_grad():
        print(tuple(pruned(torch.randn(1, 3, 224, 224)).shape), pruned.schedule)
