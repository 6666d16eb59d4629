"""Distances between outputs that are vectors, against loops over every vector."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_tprune.bundle.accuracy import Variant, compare_vectors, summarise
from edge_tprune.bundle.manifest import EvaluationData
from edge_tprune.bundle.outputs import cosine_distance, max_difference, nearest_neighbours
from edge_tprune.statistics import mean_interval

RNG = np.random.default_rng(3)


def slow_distance(one: np.ndarray, other: np.ndarray) -> float:
    return 1 - float(sum(a * b for a, b in zip(one, other))) / math.sqrt(float((one**2).sum() * (other**2).sum()))


@pytest.mark.parametrize(("kind", "shape"), [("embedding", (5,)), ("features", (5, 2, 3)), ("tokens", (7, 5))])
def test_cosine_distance_is_the_mean_over_the_vectors_of_an_image(kind: str, shape: tuple[int, ...]) -> None:
    one, other = RNG.normal(size=(4, *shape)), RNG.normal(size=(4, *shape))
    for image, found in enumerate(cosine_distance(kind, one, other)):
        a, b = one[image], other[image]
        if kind == "features":
            a, b = a.reshape(5, -1).T, b.reshape(5, -1).T
        rows = list(zip(a.reshape(-1, 5), b.reshape(-1, 5)))
        assert found == pytest.approx(np.mean([slow_distance(x, y) for x, y in rows]))
    np.testing.assert_allclose(cosine_distance(kind, 3 * one, one), 0, atol=1e-12)


def test_the_largest_difference_of_vectors_is_relative_to_their_size() -> None:
    expected = RNG.normal(size=(2, 3, 5))
    found = expected.copy()
    found[1, 2, 3] += 0.5
    assert max_difference("logits", found, expected) == pytest.approx(0.5)
    for factor in (1e-3, 1.0, 1e3):
        relative = max_difference("embedding", factor * found, factor * expected)
        assert relative == pytest.approx(0.5 / math.sqrt((expected**2).mean()))
    found[0, 0, 0] = np.nan
    assert not max_difference("tokens", found, expected) <= 1e9


def test_nearest_neighbours() -> None:
    vectors = RNG.normal(size=(1500, 6))  # more than one block
    found = nearest_neighbours(vectors)
    for image in (0, 3, 1023, 1024, 1499):
        others = [i for i in range(len(vectors)) if i != image]
        assert found[image] == min(others, key=lambda i: slow_distance(vectors[image], vectors[i]))


def test_records_of_embeddings() -> None:
    """Agreement is that of nearest neighbours, and with labels top-1 is the neighbour's class; both paired with the unpruned network's."""
    unpruned = RNG.normal(size=(40, 6)).astype(np.float32)
    pruned = (unpruned + 0.4 * RNG.normal(size=(40, 6))).astype(np.float32)
    truth = RNG.integers(0, 3, 40)
    variants = {name: Variant(name, "onnxruntime", "fp32") for name in ("1.0", "0.5")}
    parts = [
        compare_vectors("embedding", {"1.0": unpruned[part], "0.5": pruned[part]}, truth[part], "1.0", variants)
        for part in (slice(0, 16), slice(16, 40))
    ]
    data = EvaluationData(name="some", images=40, labelled=True, sha256="0" * 64)
    found = summarise(parts, variants, "1.0", data, 0, mean_interval)
    before, after = nearest_neighbours(unpruned), nearest_neighbours(pruned)
    record = found.records["0.5"]
    assert record.agreement_percent is not None
    assert record.agreement_percent.value == pytest.approx(100 * (before == after).mean())
    assert record.top1_percent == pytest.approx(100 * (truth[after] == truth).mean())
    assert record.top1_change_points is not None
    assert record.top1_change_points.value == pytest.approx(
        100 * ((truth[after] == truth).mean() - (truth[before] == truth).mean())
    )
    assert record.cosine_distance is not None
    assert record.cosine_distance.value == pytest.approx(cosine_distance("embedding", pruned, unpruned).mean())
    assert record.kl_nats is None
    assert set(found.arrays) == {
        "labels",
        *(f"{kind}/{name}" for kind in ("cosine_distance", "neighbour") for name in variants),
    }
    whole = found.records["1.0"]
    assert whole.agreement_percent is not None
    assert whole.agreement_percent.value == 100


def test_large_logits_are_compared_in_units_of_their_size() -> None:
    """Rounding moves amounts of hundreds by more than it moves a classifier's logits."""
    expected = np.random.default_rng(0).normal(size=(4, 10))
    for factor, wanted in ((1, 1e-3), (10, 1e-3), (1000, 1e-3 / 100)):
        scaled = expected / np.sqrt(np.square(expected).mean()) * factor
        assert max_difference("logits", scaled + 1e-3, scaled) == pytest.approx(wanted, rel=1e-6)
    assert max_difference("logits", scaled * np.nan, scaled) != max_difference("logits", scaled, scaled)
