"""How far pruned networks are from the unpruned one, image by image, in PyTorch: what a search over configurations minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edge_tprune.models.data import Dataset, batches
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT

DIVERGENCE, ERROR = "kl", "top1"
SCORES = (DIVERGENCE, ERROR)
BATCH = 20


class Scorer:
    """Losses of pruned networks on fixed images.

    Args:
        model: the unpruned network, in eval mode.
        images: batches (B, 3, H, W).
        labels: batches (B,), for top-1 errors in per cent; without them the loss is KL(unpruned || pruned) in nats.
    """

    def __init__(self, model: VisionTransformer, images: Sequence[Tensor], labels: Sequence[Tensor] | None = None) -> None:
        self.model, self.images, self.labels = model, images, labels
        with torch.inference_mode():
            self.unpruned = [model(batch).double().log_softmax(-1) for batch in images]

    def __call__(
        self, method: str, tokens: tuple[int, ...], options: Mapping[str, Any], batches: int | None = None
    ) -> Iterator[list[float]]:
        """The losses of each batch, as they are computed; of the first `batches` only where that is given."""
        pruned = PrunedViT(self.model, registry.method(method), tokens, options)
        for number, batch in enumerate(self.images[:batches]):
            with torch.inference_mode():
                logits = pruned(batch)
                if self.labels is not None:
                    losses = 100.0 * (logits.argmax(1) != self.labels[number])
                else:
                    expected = self.unpruned[number]
                    losses = (expected.exp() * (expected - logits.double().log_softmax(-1))).sum(1).clamp_min(0)
            yield losses.tolist()

    def mean(self, method: str, tokens: tuple[int, ...], options: Mapping[str, Any], batches: int | None = None) -> float:
        """The mean loss over the images."""
        losses = [loss for part in self(method, tokens, options, batches) for loss in part]
        return sum(losses) / len(losses)


def read_images(loaded: LoadedModel, dataset: Dataset, score: str, report: Callable[[str, int, int], None]) -> Scorer:
    """The scorer of a data set. `report` is called as (what, done, of)."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for pixels, truth in batches(dataset, loaded.transform(), BATCH):
        report("reading images", len(images) * BATCH, len(dataset))
        images.append(torch.from_numpy(pixels))
        labels.append(torch.from_numpy(truth))
    return Scorer(loaded.model, images, labels if score == ERROR else None)
