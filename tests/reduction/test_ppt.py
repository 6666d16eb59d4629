"""PPT against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.ppt import PPT
from edge_tprune.reduction.methods.tome import ToMe
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes, slow_halves, slow_significance


def variance(score: dict[int, float]) -> float:
    mean = sum(score.values()) / len(score)
    return sum((s - mean) ** 2 for s in score.values()) / (len(score) - 1)


def slow_groups(score: dict[int, float], keys: np.ndarray, prefix: int, count: int, tau: float) -> list[list[int]]:
    """One image: which tokens each of the resulting ones is made of, in order."""
    start = [[i] for i in range(prefix)]
    if variance(score) >= tau:
        return start + [[j] for j in sorted(score, key=lambda j: -score[j])[: len(score) - count]]
    key = keys.mean(1)
    a_set, b_set = slow_halves(len(keys), prefix)

    def cosine(a: int, b: int) -> float:
        return float(key[a] @ key[b] / np.linalg.norm(key[a]) / np.linalg.norm(key[b]))

    partner = {a: max(b_set, key=lambda b: cosine(a, b)) for a in a_set}
    merged = sorted(a_set, key=lambda a: -cosine(a, partner[a]))[:count]
    alone = [[a] for a in a_set if a not in merged]
    return start + alone + [[b, *(a for a in merged if partner[a] == b)] for b in b_set]


def random_images(seed: int, batch: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class rows (B, 3, N), from flat to peaked, keys and values (B, N, 3, 4)."""
    rng = np.random.default_rng(seed)
    row = np.exp(rng.choice([0.1, 1.0, 3.0], size=(batch, 1, 1)) * rng.normal(size=(batch, 3, tokens)))
    return row / row.sum(-1, keepdims=True), rng.normal(size=(batch, tokens, 3, 4)), rng.normal(size=(batch, tokens, 3, 4))


def evidence_of(row: np.ndarray, keys: np.ndarray, values: np.ndarray, sizes: torch.Tensor | None = None) -> Evidence:
    row, keys, values = (torch.from_numpy(t).float() for t in (row, keys, values))
    return Evidence(keys=keys, values=values, class_row=row, sizes=sizes)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    patches=st.integers(2, 22),
    prefix=st.integers(1, 3),
    batch=st.integers(1, 4),
    sized=st.booleans(),
    tau=st.sampled_from([0.0, 1e-4, 1e-3, 4e-3, 1e-2, 1.0]),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int, patches: int, prefix: int, batch: int, sized: bool, tau: float, data: st.DataObject
) -> None:
    tokens = patches + prefix
    count = data.draw(st.integers(1, patches // 2))
    row, keys, values = random_images(seed, batch, tokens)
    rng = np.random.default_rng(seed + 1)
    x = rng.normal(size=(batch, tokens, 5))
    sizes, given_sizes = random_sizes(rng, batch, tokens, sized)
    features = torch.from_numpy(x).float()
    outcome = PPT(Stage(4, 12, tokens, tokens - count, prefix, True), tau=tau)(
        features, evidence_of(row, keys, values, given_sizes)
    )
    found, found_sizes = outcome.tokens(features, given_sizes), outcome.sizes(given_sizes)
    for image in range(batch):
        score = slow_significance(row[image], values[image], prefix)
        assume(abs(variance(score) - tau) > 1e-6)
        groups = slow_groups(score, keys[image], prefix, count, tau)
        total = [sum(sizes[image, i] for i in group) for group in groups]
        wanted = [sum(sizes[image, i] * x[image, i] for i in group) / t for group, t in zip(groups, total)]
        np.testing.assert_allclose(found[image].numpy(), wanted, atol=1e-5)
        np.testing.assert_allclose(found_sizes[image].numpy(), total, rtol=1e-6)


def test_images_of_one_batch_take_their_own_branches() -> None:
    """A flat and a peaked image: the one keeps all of its mass, the other loses what it drops."""
    _, keys, values = random_images(0, 2, 21)
    row = np.full((2, 3, 21), 1 / 21)
    row[1] = 1e-4
    row[1, :, 5:9] = 0.2
    values[:] = 1.0
    outcome = PPT(Stage(4, 12, 21, 15, 1, True))(torch.zeros(2, 21, 3), evidence_of(row, keys, values))
    sizes = outcome.sizes(None)
    assert sizes is not None
    assert sizes[0].sum() == 21
    assert sizes[1].tolist() == [1.0] * 15
    members = outcome.sums(torch.eye(21).expand(2, -1, -1))
    assert members[1, 1:5].argmax(1).sort().values.tolist() == [5, 6, 7, 8], "the peak stays, and comes first"


def test_a_high_threshold_is_tome() -> None:
    row, keys, values = random_images(3, 3, 19)
    x, evidence, stage = torch.randn(3, 19, 6), evidence_of(row, keys, values), Stage(4, 12, 19, 12, 1, True)
    assert torch.equal(PPT(stage, tau=1.0)(x, evidence).tokens(x, None), ToMe(stage)(x, evidence).tokens(x, None))


def test_the_variance_is_independent_of_the_scale_of_the_values() -> None:
    row, keys, values = random_images(4, 3, 19)
    x, stage = torch.randn(3, 19, 6), Stage(4, 12, 19, 12, 1, True)
    results = [PPT(stage, tau=2e-3)(x, evidence_of(row, keys, s * values)).tokens(x, None) for s in (1.0, 1e-3, 1e4)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("tokens", "prefix", "fewest"), [(197, 1, 99), (198, 2, 100), (5, 0, 3), (2, 1, 2)])
def test_at_most_half_leaves(tokens: int, prefix: int, fewest: int) -> None:
    assert PPT.fewest(tokens, prefix) == fewest


@pytest.mark.parametrize("tau", [-1e-9, 1.5, float("nan")])
def test_a_threshold_that_is_no_variance_is_refused(tau: float) -> None:
    with pytest.raises(UserError, match="method ppt: tau is"):
        PPT(Stage(4, 12, 19, 12, 1, True), tau=tau)
