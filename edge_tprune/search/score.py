"""How far pruned networks are from the unpruned one, image by image, in PyTorch: what a search over configurations minimises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.schedule import Schedule

DIVERGENCE, ERROR = "kl", "top1"


class Scorer:
    """Losses of one method on fixed images.

    Args:
        model: the unpruned network, in eval mode.
        method: the reduction.
        images: batches (B, 3, H, W).
        labels: batches (B,), for top-1 errors in per cent; without them the loss is KL(unpruned || pruned) in nats.
    """

    def __init__(
        self, model: VisionTransformer, method: str, images: Sequence[Tensor], labels: Sequence[Tensor] | None = None
    ) -> None:
        self.model, self.method, self.images, self.labels = model, registry.method(method), images, labels
        with torch.inference_mode():
            self.unpruned = [model(batch).double().log_softmax(-1) for batch in images]

    def __call__(self, schedule: Schedule, options: Mapping[str, Any]) -> Iterator[list[float]]:
        """The losses of each batch, as they are computed."""
        pruned = PrunedViT(self.model, self.method, schedule.tokens, options)
        for number, batch in enumerate(self.images):
            with torch.inference_mode():
                logits = pruned(batch)
                if self.labels is not None:
                    losses = 100.0 * (logits.argmax(1) != self.labels[number])
                else:
                    expected = self.unpruned[number]
                    losses = (expected.exp() * (expected - logits.double().log_softmax(-1))).sum(1).clamp_min(0)
            yield losses.tolist()
