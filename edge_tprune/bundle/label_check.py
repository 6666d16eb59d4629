"""Whether labels can be those of the model: a wrong order of classes gives a number, and no error."""

from __future__ import annotations

import math

import numpy as np

from edge_tprune.models.class_names import ClassNames

_CHANCE = 0.05  # an accuracy that chance reaches more often than this is not above it
_EXCHANGED = 1e-3  # the same, for another order of classes that fits better
_GAIN = 0.1  # share of the images that it must fit better


def doubt_labels(labels: np.ndarray, predicted: np.ndarray, names: ClassNames | None = None) -> str | None:
    """Why the order of the classes may be wrong, in words; None where nothing speaks for that.

    Two signs are looked for. The model is right no more often than one that knows nothing of the image, but answers as often with each class
    (expected agreement by chance, as in Cohen's kappa). Or most images of some classes get one and the same other class: what the model
    answers to half of the images of a class is compared with its label on the other half.

    Args:
        labels: (N,), the class of each image; below 0 where unknown.
        predicted: (N,), the class that the unpruned model ranks first.
        names: of the classes.
    """
    known = labels >= 0
    labels, predicted = labels[known], predicted[known]
    count, right = len(labels), int((labels == predicted).sum())
    if count == 0 or right == count:
        return None
    chance = _agreement_by_chance(labels, predicted)
    if binomial_tail(right, count, chance) > _CHANCE:
        return (
            f"the unpruned model is right on {right} of {count} images, and chance gives {chance * count:.3g}: "
            "the order of the classes may be wrong"
        )
    return _doubt_order(labels, predicted, names)


def _agreement_by_chance(labels: np.ndarray, predicted: np.ndarray) -> float:
    length = int(max(labels.max(), predicted.max())) + 1
    given, answered = (np.bincount(values, minlength=length) / len(values) for values in (labels, predicted))
    return float((given * answered).sum())


def _doubt_order(labels: np.ndarray, predicted: np.ndarray, names: ClassNames | None) -> str | None:
    """Whether other labels, learned from half of the images, fit the other half much better."""
    first = np.zeros(len(labels), bool)
    other = {}  # class -> what its images are mostly taken for
    for i in np.unique(labels):
        places = np.flatnonzero(labels == i)
        first[places[::2]] = True
        counts = np.bincount(predicted[places[::2]])
        own = int(counts[i]) if i < len(counts) else 0
        other[int(i)] = int(i) if own == counts.max() else int(counts.argmax())
    held, answers = labels[~first], predicted[~first]
    if len(held) == 0:
        return None
    mapped = np.array([other[int(i)] for i in held])
    better, worse = int(((mapped == answers) & (held != answers)).sum()), int(((mapped != answers) & (held == answers)).sum())
    if better - worse < _GAIN * len(held) or binomial_tail(better, better + worse, 0.5) > _EXCHANGED:
        return None
    exchanged = [i for i, j in other.items() if i != j]
    taken = {i: int(((labels == i) & (predicted == other[i])).sum()) for i in exchanged}
    worst = max(exchanged, key=lambda i: taken[i])
    return (
        f"most images of {len(exchanged)} of {len(other)} classes are taken for one and the same other class ({_title(worst, names)} for "
        f"{_title(other[worst], names)}: {taken[worst]} of {int((labels == worst).sum())}): the order of the classes may be wrong"
    )


def _title(i: int, names: ClassNames | None) -> str:
    return f"class {i}" if names is None or i >= len(names.names) else f"class {i}, {names.title(i)},"


def binomial_tail(successes: int, trials: int, share: float) -> float:
    """The probability of at least `successes` in `trials` independent tries that each succeed with probability `share`."""
    if successes <= 0:
        return 1.0
    if share <= 0 or successes > trials:
        return 0.0
    if share >= 1:
        return 1.0
    ways = math.lgamma(trials + 1)
    terms = [
        ways - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * math.log(share) + (trials - k) * math.log1p(-share)
        for k in range(successes, trials + 1)
    ]
    largest = max(terms)
    return min(1.0, math.exp(largest) * sum(math.exp(term - largest) for term in terms))
