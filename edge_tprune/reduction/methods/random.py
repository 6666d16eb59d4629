"""`random`: a fixed random pattern of patch tokens, the same for every image.

What a reduction has to beat to be worth its scores. The pattern is drawn once per block, from `seed` and the block's number, and stored as
indices: nothing in the graph is random, and a network built twice is the same. Papers' "random drop" draws again for every
image; here it is seeds, not images, over which luck evens out.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from edge_tprune.reduction.outcome import Keep, Outcome
from edge_tprune.reduction.registry import Evidence, Reducer, Stage, register


@register
class RandomPattern(Reducer):
    """Keeps a fixed random pattern of tokens.

    Args:
        stage: where it sits.
        seed: another seed draws another pattern.
    """

    name = "random"
    paper = "baseline: a random pattern, drawn once"

    index: Tensor

    def __init__(self, stage: Stage, *, seed: int = 0) -> None:
        super().__init__(stage)
        prefix = stage.prefix_tokens
        # Python's generator, since it draws the same on every device and with every version of PyTorch.
        kept = Random(f"{seed} {stage.block}").sample(range(prefix, stage.tokens_in), stage.tokens_out - prefix)
        self.register_buffer("index", torch.tensor([[*range(prefix), *sorted(kept)]]), persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then the pattern, in the tokens' order."""
        return Keep(self.index.expand(len(x), -1))
