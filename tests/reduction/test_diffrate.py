"""DiffRate against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.diffrate import DiffRate
from edge_tprune.reduction.methods.evit import EViT
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes


def slow_groups(x: np.ndarray, class_row: np.ndarray, prefix: int, keep: int, pruned: float) -> list[list[int]]:
    """One image: x (N, C), class_row (H, N) -> which tokens each of the resulting ones is made of, in order."""
    tokens = len(x)
    ranked = sorted(range(prefix, tokens), key=lambda j: -class_row[:, j].mean())
    left = ranked[: len(ranked) - round(pruned * (tokens - keep))]
    kept, tail = left[: keep - prefix], left[keep - prefix :]
    groups = {j: [j] for j in kept}
    for t in tail:
        groups[max(kept, key=lambda k: x[t] @ x[k] / np.linalg.norm(x[t]) / np.linalg.norm(x[k]))].append(t)
    return [[i] for i in range(prefix)] + [groups[j] for j in kept]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    patches=st.integers(2, 22),
    prefix=st.integers(1, 3),
    batch=st.integers(1, 3),
    sized=st.booleans(),
    pruned=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int, patches: int, prefix: int, batch: int, sized: bool, pruned: float, data: st.DataObject
) -> None:
    tokens = patches + prefix
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, tokens, 5))
    row = rng.dirichlet(np.ones(tokens), size=(batch, 3))
    sizes, given_sizes = random_sizes(rng, batch, tokens, sized)
    features = torch.from_numpy(x).float()
    reducer = DiffRate(Stage(4, 12, tokens, keep, prefix, True), pruned=pruned)
    outcome = reducer(features, Evidence(class_row=torch.from_numpy(row).float(), sizes=given_sizes))
    found, found_sizes = outcome.tokens(features, given_sizes), outcome.sizes(given_sizes)
    for image in range(batch):
        groups = slow_groups(x[image], row[image], prefix, keep, pruned)
        total = [sum(sizes[image, i] for i in group) for group in groups]
        wanted = [sum(sizes[image, i] * x[image, i] for i in group) / t for group, t in zip(groups, total)]
        np.testing.assert_allclose(found[image].numpy(), wanted, atol=1e-5)
        if found_sizes is None:
            assert total == [1.0] * keep
        else:
            np.testing.assert_allclose(found_sizes[image].numpy(), total, rtol=1e-6)


def test_dropping_all_is_evit() -> None:
    x, row = torch.randn(2, 15, 4), torch.rand(2, 3, 15)
    stage, evidence = Stage(4, 12, 15, 7, 1, True), Evidence(class_row=row)
    assert torch.equal(DiffRate(stage, pruned=1.0)(x, evidence).tokens(x, None), EViT(stage)(x, evidence).tokens(x, None))


def test_merging_all_loses_nothing() -> None:
    outcome = DiffRate(Stage(4, 12, 15, 7, 1, True), pruned=0.0)(
        torch.randn(2, 15, 4), Evidence(class_row=torch.rand(2, 3, 15))
    )
    members = outcome.sums(torch.eye(15).expand(2, -1, -1))
    assert torch.equal(members.sum(1), torch.ones(2, 15))


@pytest.mark.parametrize("kind", ["constant", "zeros", "dominant", "opposite"])
def test_adversarial_images_still_give_whole_tokens(kind: str) -> None:
    x, row = torch.ones(1, 13, 4), torch.full((1, 2, 13), 1 / 13)
    if kind == "zeros":
        x = torch.zeros(1, 13, 4)
    elif kind == "dominant":
        row = torch.zeros(1, 2, 13)
        row[..., 8] = 1.0
    elif kind == "opposite":
        x[:, 5:] = -1.0
    for keep in (2, 6, 12):
        outcome = DiffRate(Stage(4, 12, 13, keep, 1, True), pruned=0.3)(x, Evidence(class_row=row))
        assert outcome.tokens(x, None).isfinite().all()
        members = outcome.sums(torch.eye(13)[None])[0]
        assert members.shape == (keep, 13)
        assert members[0].tolist() == [1.0] + [0.0] * 12
        assert (members.sum(1) >= 1).all()
        assert members.sum() == 13 - round(0.3 * (13 - keep))
        assert kind != "dominant" or members[1, 8] == 1


@pytest.mark.parametrize("pruned", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(pruned: float) -> None:
    with pytest.raises(UserError, match="method diffrate: pruned is"):
        DiffRate(Stage(4, 12, 19, 12, 1, True), pruned=pruned)
