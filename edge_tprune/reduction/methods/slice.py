"""`slice`: the slice oracle. Tokens are cut by a plain slice, wherever they lie in the image.

It computes nothing, so a network pruned by it is the speed limit of every method with the same schedule and place. Its accuracy is that of a
fixed pattern (the top of the image is kept): it exists for benchmarks, not for use.
"""

from __future__ import annotations

from torch import Tensor

from edge_tprune.reduction.outcome import First, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage, register
from edge_tprune.schedule import Place


@register
class SliceOracle(Reducer):
    """Keeps the first tokens of the sequence.

    Args:
        stage: where it sits.
        place: where in the block (`edge_tprune.schedule.Place`).
    """

    name = "slice"
    paper = "the speed limit: cuts tokens without looking at them"

    def __init__(self, stage: Stage, *, place: Place = "mlp") -> None:
        super().__init__(stage)
        self.place = place

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """The first tokens_out."""
        return First(self.stage.tokens_out)
