"""A wrong order of classes is noticed, a right one is not doubted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from edge_tprune.bundle.label_check import binomial_tail, doubt_labels
from edge_tprune.errors import UserError
from edge_tprune.models.class_names import ClassNames


def answers(labels: np.ndarray, classes: int, accuracy: float, seed: int) -> np.ndarray:
    """What a model of this accuracy ranks first; where it is wrong, anything."""
    rng = np.random.default_rng(seed)
    wrong = rng.integers(0, classes, len(labels))
    return np.where(rng.random(len(labels)) < accuracy, labels, wrong)


@pytest.mark.parametrize("trials", [1, 7, 50, 3000])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.97])
def test_the_binomial_tail_is_scipys(trials: int, share: float) -> None:
    for successes in {0, 1, trials // 3, int(trials * share), trials}:
        assert binomial_tail(successes, trials, share) == pytest.approx(
            binom.sf(successes - 1, trials, share), rel=1e-6, abs=1e-300
        )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("classes", "each", "accuracy"), [(2, 20, 0.95), (10, 20, 0.8), (12, 5, 0.6), (1000, 1, 0.75), (100, 4, 0.3)]
)
def test_right_labels_are_not_doubted(seed: int, classes: int, each: int, accuracy: float) -> None:
    labels = np.repeat(np.arange(classes), each)
    assert doubt_labels(labels, answers(labels, classes, accuracy, seed)) is None


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("classes", "each", "accuracy"), [(10, 20, 0.8), (12, 20, 0.6), (1000, 1, 0.75)])
def test_an_order_that_fits_nowhere_is_doubted(seed: int, classes: int, each: int, accuracy: float) -> None:
    labels = np.repeat(np.arange(classes), each)
    predicted = answers(labels, classes, accuracy, seed)
    doubt = doubt_labels((labels + 1) % classes, predicted)
    assert doubt is not None
    assert "the order of the classes may be wrong" in doubt


def test_an_order_that_fits_some_classes_is_doubted() -> None:
    """0, 1, 10, 11, 2, ..: two of twelve classes are right, which is above chance."""
    labels = np.repeat(np.arange(12), 20)
    order = np.array(sorted(range(12), key=str)).argsort()
    names = ClassNames(tuple("abcdefghijkl"), "the checkpoint")
    doubt = doubt_labels(order[labels], answers(labels, 12, 0.8, 0), names)
    assert doubt is not None
    assert "10 of 12 classes" in doubt
    assert "class" in doubt


def test_one_class_that_the_model_mistakes_is_no_reason_for_doubt() -> None:
    labels = np.repeat(np.arange(20), 10)
    predicted = answers(labels, 20, 0.9, 1)
    predicted[labels == 3] = 4
    assert doubt_labels(labels, predicted) is None


def test_a_model_that_always_says_the_same_is_doubted() -> None:
    labels = np.array([0] * 80 + [1] * 20)
    doubt = doubt_labels(labels, np.zeros(100, int))
    assert doubt is not None
    assert "right on 80 of 100 images, and chance gives 80" in doubt


@pytest.mark.parametrize(("labels", "predicted"), [([], []), ([-1, -1], [0, 1]), ([0, 1, 1], [0, 1, 1]), ([5], [5])])
def test_nothing_to_doubt(labels: list[int], predicted: list[int]) -> None:
    assert doubt_labels(np.array(labels, int), np.array(predicted, int)) is None


def test_descriptions_are_of_every_class_or_of_none() -> None:
    with pytest.raises(UserError, match="the file has 1 descriptions of 2 classes"):
        ClassNames(("a", "b"), "the file", ("A",))
