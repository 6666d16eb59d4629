"""Photos that no step trains on: how the students answer them, photo by photo, and whether training made them better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from edge_tprune.finetune.distill import Arithmetic, Students, Teacher, divergence
from edge_tprune.finetune.trainer import processes
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.statistics import Interval, paired_difference

_BATCH = 25
GATE_POINTS = 0.5  #: the unpruned network may be expected to lose at most so many points of top-1 on the hold-out
FEW_PHOTOS = 100
_FEW_CLASSES = 0.1  # of the network's: photos that look like fewer are remarked on
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """One budget's answers, per photo (N,)."""

    loss: Floats  #: what decides: the divergence, or with labels the cross-entropy in nats
    divergence: Floats  #: from the teacher: KL in nats, or 2 - 2 cos of embeddings
    agrees: Floats  #: 100 where the first class is the teacher's, else 0; for embeddings 100
    #: Points of top-1 that each photo is expected to cost, if the teacher's probabilities are right: at most 0. For embeddings 0.
    expected: Floats
    right: Floats | None  #: 100 where the first class is the label, else 0


class Row(msgspec.Struct, frozen=True):
    """One budget on the hold-out, before and after training. A change is after minus before, paired by photo, with its 95 % interval."""

    budget: str
    macs_share: float
    divergence: float
    divergence_before: float
    divergence_change: Interval
    agreement_percent: float
    agreement_before_percent: float
    expected_top1_change_points: float  #: from the unpruned network, by its own probabilities
    top1_change_points: Interval | None  #: from the same budget before training; None without labels


class HoldOut:
    """Judges students on fixed photos; several processes share the photos.

    Args:
        images: (N, 3, H, W), preprocessed as for evaluation.
        labels: (N,), or None.
        teacher: the unpruned network.
        exact: float32 arithmetic on the device.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, teacher: Teacher, exact: Arithmetic) -> None:
        rank, count = processes()
        self.images, self.labels = images[rank::count], None if labels is None else labels[rank::count].numpy()
        self.head = teacher.head
        self.exact = exact
        self.answers = self._answers(teacher.form, exact)

    def judge(self, students: Students, arithmetic: Arithmetic | None = None) -> dict[str, Scores]:
        """Every budget's scores, in float32 unless another arithmetic is given."""
        found = {
            budget: self._scores(self._answers(form, arithmetic or self.exact)) for budget, form in students.pruned.items()
        }
        return found if processes()[1] == 1 else _gather(found)

    @torch.no_grad()
    def _answers(self, form: PrunedViT, arithmetic: Arithmetic) -> Tensor:
        form_of_training = form.attention
        arithmetic.prepare(form, training=False)
        try:
            with arithmetic.autocast():
                return torch.cat([form(part.to(arithmetic.device)).float().cpu() for part in torch.split(self.images, _BATCH)])
        finally:
            form.attention = form_of_training

    def _scores(self, given: Tensor) -> Scores:
        distance = divergence(given.double(), self.answers.double(), 1.0, self.head).clamp_min(0).numpy().astype(np.float64)
        if not self.head:
            whole, nothing = np.full(len(given), 100.0), np.zeros(len(given))
            return Scores(distance, distance, whole, nothing, None)
        first, expected = given.argmax(1), self.answers.argmax(1)
        chances = self.answers.double().softmax(1)
        lost = chances.gather(1, first[:, None])[:, 0] - chances.gather(1, expected[:, None])[:, 0]
        right = None if self.labels is None else 100.0 * (first.numpy() == self.labels)
        loss = distance if self.labels is None else self._cross_entropy(given)
        return Scores(loss, distance, 100.0 * (first == expected).double().numpy(), 100.0 * lost.numpy(), right)

    def _cross_entropy(self, given: Tensor) -> Floats:
        assert self.labels is not None
        chances = given.double().log_softmax(1).numpy()
        return np.asarray(-chances[np.arange(len(chances)), self.labels])


def _gather(found: dict[str, Scores]) -> dict[str, Scores]:
    """What all processes found, in the order of their ranks."""
    parts: list[Any] = [None] * processes()[1]
    dist.all_gather_object(parts, found)

    def joined(budget: str, field: str) -> Any:
        values = [getattr(part[budget], field) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    return {b: Scores(*(joined(b, field) for field in ("loss", "divergence", "agrees", "expected", "right"))) for b in found}


def mean_loss(scores: Mapping[str, Scores]) -> Floats:
    """Per photo, the mean loss over the budgets that remove tokens; of the unpruned one where it is alone."""
    pruned = [s.loss for name, s in scores.items() if float(name) < 1] or [s.loss for s in scores.values()]
    return np.asarray(np.mean(pruned, axis=0))


def improvement(before: Mapping[str, Scores], after: Mapping[str, Scores]) -> Interval:
    """How much the mean loss over the pruned budgets changed, paired by photo; better is below 0."""
    return paired_difference(mean_loss(after), mean_loss(before))


NEGLIGIBLE = 1e-3
"""Of the loss before: a smaller change may be resolved, as rounding has a sign too, and is nothing to write weights for."""


def is_improvement(change: Interval, before: Mapping[str, Scores]) -> bool:
    """Whether a change of the mean loss is an improvement: resolved, and not negligible."""
    return change.high is not None and change.high < 0 and change.value <= -NEGLIGIBLE * float(mean_loss(before).mean())


def rows(shares: Mapping[str, float], before: Mapping[str, Scores], after: Mapping[str, Scores]) -> list[Row]:
    """The table of a hold-out, a row per budget."""
    return [
        Row(
            budget=name,
            macs_share=shares[name],
            divergence=float(now.divergence.mean()),
            divergence_before=float(before[name].divergence.mean()),
            divergence_change=paired_difference(now.divergence, before[name].divergence),
            agreement_percent=float(now.agrees.mean()),
            agreement_before_percent=float(before[name].agrees.mean()),
            expected_top1_change_points=float(now.expected.mean()),
            top1_change_points=None if now.right is None else _change(now.right, before[name].right),
        )
        for name, now in after.items()
    ]


def _change(now: Floats, before: Floats | None) -> Interval:
    assert before is not None
    return paired_difference(now, before)


def remarks(photos: int, answers: Tensor, head: bool) -> list[str]:
    """What to know before training: that photos are few, or look like few of the network's classes.

    The number of classes that photos look like is the exponential of the entropy of the network's mean probabilities.

    Args:
        photos: how many there are, with the held-out ones.
        answers: of the unpruned network to the held-out ones: (N, classes), or embeddings.
        head: whether answers are logits.
    """
    found = []
    if photos < FEW_PHOTOS:
        found.append(
            f"note: {photos} photos are few: expect only a part of the gain that 1000 photos bring. With {len(answers)} held-out photos "
            "the improvement may not be resolved"
        )
    if head:
        mean, classes = answers.double().softmax(1).mean(0), answers.shape[1]
        alike = float((-(mean * mean.clamp_min(1e-12).log()).sum()).exp())
        if alike < _FEW_CLASSES * classes:
            found.append(
                f"note: to the network, the photos look like about {alike:.0f} of its {classes} classes: the gain is for such photos, and "
                "smaller for others"
            )
    return found


def gate(after: Mapping[str, Scores], before: Mapping[str, Scores], unpruned: Sequence[str] = ("1", "1.0")) -> str:
    """Why the unpruned network may not be kept so, or "" where it may.

    With labels its top-1 must not be clearly lower than before (the whole paired interval below 0). Without, what its changed answers are expected
    to cost by the first network's own probabilities must stay within `GATE_POINTS`.
    """
    for name in unpruned:
        if name not in after:
            continue
        now, then = after[name].right, before[name].right
        if now is not None and then is not None:
            change = paired_difference(now, then)
            if change.high is not None and change.high < 0:
                return f"the unpruned network lost {-change.value:.1f} points of top-1 on the held-out photos"
        lost = float(-after[name].expected.mean())
        if now is None and lost > GATE_POINTS:
            return (
                f"the unpruned network's changed answers are expected to cost {lost:.1f} points of top-1 on the held-out "
                f"photos (at most {GATE_POINTS:g} are allowed)"
            )
    return ""
