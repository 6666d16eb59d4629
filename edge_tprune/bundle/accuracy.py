"""From what engines answered about images to accuracy records: counts, paired differences and their intervals."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np

from edge_tprune.bundle.divergence import divergence, log_softmax
from edge_tprune.bundle.manifest import Accuracy, ClassCounts, EvaluationData, Fp32Comparison, ImageBits
from edge_tprune.bundle.outputs import EMBEDDING, FEWEST_NEIGHBOURS, cosine_distance, nearest_neighbours
from edge_tprune.statistics import Interval, paired_share_difference, proportion_interval

MeanInterval = Callable[[np.ndarray], Interval]

_RANKS = 5  # classes that are kept of each answer


@dataclass(frozen=True)
class Variant:
    """One budget as one runtime runs it in one precision."""

    budget: str
    runtime: str
    precision: str
    fp32: str | None = None  #: label of the same budget in float32, where it is compared with that

    @property
    def label(self) -> str:
        """The budget's name; `budget@precision` where it is judged beside itself in float32."""
        return self.budget if self.fp32 is None else f"{self.budget}@{self.precision}"


@dataclass(frozen=True)
class BatchAnswers:
    """What all variants answered about a few images, reduced to what is kept."""

    truth: np.ndarray  #: (n,) class of each image, -1 where unknown
    top5: dict[str, np.ndarray] = field(default_factory=dict)  #: label -> (n, 5) int32: classes by descending logit
    kl_nats: dict[str, np.ndarray] = field(default_factory=dict)  #: label -> (n,): KL(unpruned || variant)
    fp32_kl_nats: dict[str, np.ndarray] = field(default_factory=dict)  #: label -> (n,): KL(itself in float32 || variant)
    fp32_difference: dict[str, float] = field(default_factory=dict)  #: label -> largest difference of a logit from float32
    cosine_distance: dict[str, np.ndarray] = field(default_factory=dict)  #: label -> (n,): from the unpruned network's vectors
    fp32_cosine_distance: dict[str, np.ndarray] = field(default_factory=dict)  #: label -> (n,): from its own in float32
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)  #: label -> (n, D) float32


def compare_logits(
    logits: dict[str, np.ndarray], truth: np.ndarray, baseline: str, variants: dict[str, Variant]
) -> BatchAnswers:
    """Ranks and divergences of a few images.

    Args:
        logits: label -> (n, classes).
        truth: (n,).
        baseline: label of the unpruned network.
        variants: by label.
    """
    probabilities = {label: log_softmax(values) for label, values in logits.items()}
    halves = {label: one.fp32 for label, one in variants.items() if one.fp32 is not None}
    return BatchAnswers(
        truth,
        {label: _ranked(values) for label, values in logits.items()},
        {label: divergence(probabilities[baseline], values) for label, values in probabilities.items()},
        {label: divergence(probabilities[exact], probabilities[label]) for label, exact in halves.items()},
        {label: float(np.abs(logits[label] - logits[exact]).max()) for label, exact in halves.items()},
    )


def compare_vectors(
    kind: str, outputs: dict[str, np.ndarray], truth: np.ndarray, baseline: str, variants: dict[str, Variant]
) -> BatchAnswers:
    """Distances of a few images' embeddings, features or tokens; of embeddings also these, because neighbours are found among all images.

    Args:
        kind: which output it is.
        outputs: label -> (n, ...).
        truth: (n,).
        baseline: label of the unpruned network.
        variants: by label.
    """
    halves = {label: one.fp32 for label, one in variants.items() if one.fp32 is not None}
    return BatchAnswers(
        truth,
        cosine_distance={label: cosine_distance(kind, values, outputs[baseline]) for label, values in outputs.items()},
        fp32_cosine_distance={label: cosine_distance(kind, outputs[label], outputs[exact]) for label, exact in halves.items()},
        embeddings={label: values.astype(np.float32) for label, values in outputs.items()} if kind == EMBEDDING else {},
    )


def _ranked(logits: np.ndarray) -> np.ndarray:
    """Classes (n, at most 5) by descending logit; ties go to the lower class, so results do not depend on the sort.

    Of a single logit its sign, 0 or 1.
    """
    if logits.shape[1] == 1:
        return np.asarray((logits > 0).astype(np.int32))
    return np.asarray(np.argsort(-logits, axis=1, kind="stable")[:, :_RANKS].astype(np.int32))


@dataclass(frozen=True)
class Evaluation:
    """What every variant answered about all images."""

    records: dict[str, Accuracy]  #: by label
    answers: BatchAnswers
    neighbours: dict[str, np.ndarray] = field(default_factory=dict)  #: label -> (N,) the nearest other image, of embeddings

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The per-image results by the names that they are stored under."""
        top5 = {f"top5/{label}": values for label, values in self.answers.top5.items()}
        kl_nats = {f"kl_nats/{label}": values for label, values in self.answers.kl_nats.items()}
        distances = {f"cosine_distance/{label}": values for label, values in self.answers.cosine_distance.items()}
        neighbours = {f"neighbour/{label}": values for label, values in self.neighbours.items()}
        return {"labels": self.answers.truth, **top5, **kl_nats, **distances, **neighbours}


def summarise(
    parts: list[BatchAnswers],
    variants: dict[str, Variant],
    baseline: str,
    data: EvaluationData,
    classes: int,
    interval: MeanInterval,
) -> Evaluation:
    """The records of all variants.

    Args:
        parts: what was answered, in order of the images.
        variants: by label.
        baseline: label of the unpruned network, which all are compared with.
        data: which images.
        classes: number of the model's outputs; top-5 of five or fewer says nothing.
        interval: of a mean over images.
    """
    all_images = _joined(parts)
    if all_images.cosine_distance:
        return _summarise_vectors(all_images, variants, baseline, data, interval)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    records = {}
    for label, variant in variants.items():
        same = all_images.top5[label][:, 0] == all_images.top5[baseline][:, 0]
        base, base5 = (_right(all_images, baseline, ranks, classes) for ranks in (1, _RANKS))
        right, right5 = (
            (base, base5) if label == baseline else (_right(all_images, label, ranks, classes) for ranks in (1, _RANKS))
        )
        records[label] = Accuracy(
            data=data,
            images=len(all_images.truth),
            runtime=variant.runtime,
            precision=variant.precision,
            evaluated_utc=now,
            top1_percent=_mean(right),
            top1_change_points=_change(right, base, interval),
            top5_percent=_mean(right5),
            top5_change_points=_change(right5, base5, interval),
            agreement_percent=_agreement(same, interval, label == baseline),
            kl_nats=interval(all_images.kl_nats[label]).within(0),
            per_image=ImageBits(agrees=_bits(same), top1_right=None if right is None else _bits(right > 0)),
            per_class=None if right is None or base is None else count_by_class(all_images.truth, right > 0, base > 0),
            against_fp32=_against_fp32(all_images, variant, interval),
        )
    return Evaluation(records, all_images)


def _summarise_vectors(
    all_images: BatchAnswers, variants: dict[str, Variant], baseline: str, data: EvaluationData, interval: MeanInterval
) -> Evaluation:
    """The records where outputs are vectors. Arguments as for `summarise`."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    enough = len(all_images.truth) >= FEWEST_NEIGHBOURS
    neighbours = {label: nearest_neighbours(vectors) for label, vectors in all_images.embeddings.items() if enough}
    labelled = bool(neighbours) and not (all_images.truth < 0).any()
    right = {label: 100.0 * (all_images.truth[near] == all_images.truth) for label, near in neighbours.items() if labelled}
    records = {}
    for label, variant in variants.items():
        same = neighbours[label] == neighbours[baseline] if neighbours else None
        own = right.get(label)
        rounding = None
        if variant.fp32 is not None:
            rounding = Fp32Comparison(cosine_distance=interval(all_images.fp32_cosine_distance[label]).within(0))
        records[label] = Accuracy(
            data=data,
            images=len(all_images.truth),
            runtime=variant.runtime,
            precision=variant.precision,
            evaluated_utc=now,
            top1_percent=_mean(own),
            top1_change_points=_change(own, right.get(baseline), interval),
            top5_percent=None,
            top5_change_points=None,
            agreement_percent=None if same is None else _agreement(same, interval, label == baseline),
            cosine_distance=interval(all_images.cosine_distance[label]).within(0),
            per_image=None
            if same is None
            else ImageBits(agrees=_bits(same), top1_right=None if own is None else _bits(own > 0)),
            against_fp32=rounding,
        )
    return Evaluation(records, all_images, neighbours)


def count_by_class(truth: np.ndarray, right: np.ndarray, unpruned_right: np.ndarray) -> ClassCounts:
    """Top-1 by class.

    Args:
        truth: (N,) the class of each image.
        right: (N,) whether the budget is right.
        unpruned_right: (N,) whether the unpruned model is.
    """
    classes, place = np.unique(truth, return_inverse=True)

    def count(chosen: np.ndarray) -> tuple[int, ...]:
        return tuple(np.bincount(place[chosen], minlength=len(classes)).tolist())

    return ClassCounts(
        classes=tuple(classes.tolist()),
        images=count(np.ones(len(truth), bool)),
        unpruned_right=count(unpruned_right),
        lost=count(unpruned_right & ~right),
        gained=count(right & ~unpruned_right),
    )


def _joined(parts: list[BatchAnswers]) -> BatchAnswers:
    def join(name: str) -> dict[str, np.ndarray]:
        return {label: np.concatenate([getattr(part, name)[label] for part in parts]) for label in getattr(parts[0], name)}

    return BatchAnswers(
        np.concatenate([part.truth for part in parts]),
        join("top5"),
        join("kl_nats"),
        join("fp32_kl_nats"),
        {label: max(part.fp32_difference[label] for part in parts) for label in parts[0].fp32_difference},
        join("cosine_distance"),
        join("fp32_cosine_distance"),
        join("embeddings"),
    )


def _right(answers: BatchAnswers, label: str, ranks: int, classes: int) -> np.ndarray | None:
    """(N,): 100 where an image's class is among the first `ranks`, else 0. None without labels, or where it always is."""
    if ranks >= classes or (answers.truth < 0).any():
        return None
    found: np.ndarray = 100.0 * (answers.top5[label][:, :ranks] == answers.truth[:, None]).any(1)
    return found


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


def _change(values: np.ndarray | None, base: np.ndarray | None, interval: MeanInterval) -> Interval | None:
    """Change in points, of images that are right (100) or not (0). Where none changed, few images do not say that none ever would."""
    if values is None or base is None:
        return None
    change = values - base
    if values is base or len(change) < 2 or (change != change[0]).any():
        return interval(change)
    found = paired_share_difference(int((change > 0).sum()), int((change < 0).sum()), len(change))
    assert found.low is not None
    assert found.high is not None
    return Interval(100 * found.value, 100 * found.low, 100 * found.high)


def _agreement(same: np.ndarray, interval: MeanInterval, itself: bool = False) -> Interval:
    """Images (N,) whose first class is the same, per cent. Where all are, few images do not say that all would be."""
    if itself or len(same) < 2 or not same.all():
        return interval(100.0 * same).within(0, 100)
    low = proportion_interval(len(same), len(same)).low
    assert low is not None
    return Interval(100.0, 100 * low, 100.0)


def _against_fp32(answers: BatchAnswers, variant: Variant, interval: MeanInterval) -> Fp32Comparison | None:
    if variant.fp32 is None:
        return None
    same = answers.top5[variant.label][:, 0] == answers.top5[variant.fp32][:, 0]
    return Fp32Comparison(
        agreement_percent=_agreement(same, interval),
        kl_nats=interval(answers.fp32_kl_nats[variant.label]).within(0),
        max_abs_logit_difference=answers.fp32_difference[variant.label],
    )


def _bits(flags: np.ndarray) -> str:
    """One bit per image, first image first, as base64: profiles carry it, so that any two budgets can be paired image by image."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()
