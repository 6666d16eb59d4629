"""Clustering and matching against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.reduction.matching import density_peaks, exclusions, in_order, pairs
from tests.reduction.slow_clusters import slow_density_peaks


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(3, 24),
    batch=st.integers(1, 3),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    prefix=st.integers(0, 2),
    neighbours=st.sampled_from([2, 3, 5]),
    data=st.data(),
)
def test_density_peaks_equal_the_loops(
    seed: int, tokens: int, batch: int, scale: float, prefix: int, neighbours: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, tokens))
    # A few blobs, as the tokens of an image are; far enough from ties for float32 to see what float64 sees.
    rng = np.random.default_rng(seed)
    x = scale * (3 * rng.normal(size=(4, 6))[rng.integers(0, 4, (batch, tokens))] + rng.normal(size=(batch, tokens, 6)))
    # What a prefix token looks like changes nothing.
    leading = 30 * scale * rng.normal(size=(batch, prefix, 6))
    features = torch.from_numpy(np.concatenate([leading, x], 1)).float()
    centres, others, cluster = density_peaks(features, prefix + count, exclusions(prefix + tokens, prefix), prefix, neighbours)
    for image in range(batch):
        wanted, joins = slow_density_peaks(x[image], count, neighbours)
        assert centres[image].tolist() == [*range(prefix), *(prefix + i for i in wanted)]
        found = {int(i) - prefix: int(centres[image, c]) - prefix for i, c in zip(others[image], cluster[image])}
        assert found == joins


def test_well_separated_blobs_are_found() -> None:
    rng = np.random.default_rng(1)
    blob = np.repeat(np.arange(4), [5, 6, 5, 7])
    x = torch.from_numpy(10.0 * np.eye(4)[blob] + 0.1 * rng.normal(size=(23, 4))).float()[None]
    centres, others, cluster = density_peaks(x, 4, exclusions(23))
    assert sorted(blob[centres[0]]) == [0, 1, 2, 3]
    assert (blob[others[0]] == blob[centres[0]][cluster[0]]).all()


@pytest.mark.parametrize("scale", [2.0**-6, 2.0**8])
def test_clusters_do_not_depend_on_the_scale_of_the_features(scale: float) -> None:
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(3))
    found, scaled = density_peaks(x, 20, exclusions(40)), density_peaks(scale * x, 20, exclusions(40))
    assert all(torch.equal(a, b) for a, b in zip(found, scaled))


def test_of_twins_one_becomes_a_centre() -> None:
    x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    centres, others, cluster = density_peaks(torch.cat([x, x], 1), 6, exclusions(12))
    assert sorted((centres[0] % 6).tolist()) == list(range(6))
    assert (centres[0][cluster[0]] % 6 == others[0] % 6).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), a=st.integers(1, 12), b=st.integers(1, 12))
def test_pairs_equal_the_loops(seed: int, a: int, b: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, a, 5)), rng.normal(size=(2, b, 5))
    order, partner = pairs(torch.from_numpy(left), torch.from_numpy(right))
    for image in range(2):
        likeness = left[image] @ right[image].T
        assert order[image].tolist() == sorted(range(a), key=lambda i: -max(likeness[i]))
        assert partner[image].tolist() == [int(np.argmax(row)) for row in likeness]


def test_in_order() -> None:
    assert in_order(torch.tensor([[4, 0, 2]])).tolist() == [[0, 2, 4]]
