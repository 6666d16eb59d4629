"""How far pruned networks are from the unpruned one, image by image, in PyTorch: what a search over configurations minimises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_tprune.bundle.outputs import EMBEDDING, FEATURES, LOGITS, TOKENS, cosine_distance
from edge_tprune.documents import MethodOptions
from edge_tprune.errors import UserError
from edge_tprune.models.data import Dataset, batches
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.first_blocks import FirstBlocks
from edge_tprune.reduction.host import PrunedViT, network_shape

DIVERGENCE, ERROR, DISTANCE = "kl", "top1", "cosine"
#: Score -> the most that it can be; none is less than 0.
MOST = {DIVERGENCE: math.inf, ERROR: 1.0, DISTANCE: 2.0}
SCORES = {LOGITS: (DIVERGENCE, ERROR), **dict.fromkeys((EMBEDDING, FEATURES, TOKENS), (DISTANCE,))}
"""By output: what a network can be judged by, the default first."""
BATCH = 20


class Scorer:
    """Losses of pruned networks on fixed images.

    Args:
        model: the unpruned network, in eval mode.
        images: batches (B, 3, H, W).
        labels: batches (B,), for top-1 errors in per cent; without them the loss is KL(unpruned || pruned) in nats, of outputs other than logits
            the cosine distance from the unpruned network's vectors.
        output: what the networks give, one of `edge_tprune.models.adapter.OUTPUTS`.
        kept_bytes: memory for the tokens between blocks of the unpruned network, in every process that scores: where those after every block
            need more, after some.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Sequence[Tensor],
        labels: Sequence[Tensor] | None = None,
        output: str = LOGITS,
        kept_bytes: float = 500e6,
    ) -> None:
        self.model, self.images, self.labels, self.output = model, images, labels, output
        none, shape = registry.method("none"), network_shape(model, output=output)
        unpruned = PrunedViT(model, none, shape.full_schedule(), {}, output=output)
        tokens_bytes = 4 * shape.tokens * shape.block_shapes[0].attention_channels * sum(map(len, images))
        kept = min(shape.blocks - 1, int(kept_bytes // tokens_bytes))
        places = [round(shape.blocks * number / (kept + 1)) for number in range(1, kept + 1)]
        self._first = FirstBlocks(unpruned, images, places)
        answers = [self._first.outputs(unpruned, number) for number in range(len(images))]
        if not all(bool(answer.isfinite().all()) for answer in answers):
            raise UserError(
                "the network's outputs for these images are not finite: are its weights those of a trained network?"
            )
        self.unpruned = list(map(_log_probabilities, answers)) if output == LOGITS else answers

    def __call__(
        self, method: str, tokens: tuple[int, ...], options: MethodOptions, batches: int | None = None
    ) -> Iterator[list[float]]:
        """The losses of each batch, as they are computed; of the first `batches` only where that is given."""
        pruned = PrunedViT(self.model, registry.method(method), tokens, options, output=self.output)
        for number in range(len(self.images[:batches])):
            with torch.inference_mode():
                answer, expected = self._first.outputs(pruned, number), self.unpruned[number]
                if self.output != LOGITS:
                    losses = torch.from_numpy(cosine_distance(self.output, answer.numpy(), expected.numpy()))
                elif self.labels is not None:
                    losses = 100.0 * (answer.argmax(1) != self.labels[number])
                else:
                    losses = (expected.exp() * (expected - _log_probabilities(answer))).sum(1).clamp_min(0)
            if not bool(answer.isfinite().all()):
                raise UserError(f"method {method}: the pruned network's outputs are not finite with the tokens {list(tokens)}")
            yield losses.tolist()


def _log_probabilities(logits: Tensor) -> Tensor:
    """(B, classes) in float64; of a single logit, that of a class against its absence (a sigmoid), two."""
    logits = logits.double()
    return (torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits).log_softmax(-1)


@dataclass(frozen=True)
class FixedOptions:
    """A scorer with options that a search does not vary."""

    scorer: Scorer
    options: MethodOptions

    def __call__(
        self, method: str, tokens: tuple[int, ...], options: MethodOptions, batches: int | None = None
    ) -> Iterator[list[float]]:
        """As the scorer."""
        return self.scorer(method, tokens, {**self.options, **options}, batches)


def read_images(
    loaded: LoadedModel, dataset: Dataset, score: str, report: Callable[[str, int, int], None], output: str = LOGITS
) -> Scorer:
    """The scorer of a data set and an output. `report` is called as (what, done, of)."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for pixels, truth in batches(dataset, loaded.transform(), BATCH):
        report("reading images", len(images) * BATCH, len(dataset))
        images.append(torch.from_numpy(pixels))
        labels.append(torch.from_numpy(truth))
    return Scorer(loaded.model, images, labels if score == ERROR else None, output)
