"""DiffRate against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.diffrate import PUBLISHED, DiffRate
from edge_tprune.reduction.methods.evit import EViT
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes


def slow_diffrate(
    x: np.ndarray, class_row: np.ndarray, sizes: np.ndarray, prefix: int, keep: int, dropped: int
) -> tuple[list[list[int]], list[float]]:
    """One image: x (N, C), class_row (H, N) -> which tokens each of the resulting ones is made of, in order, and their sizes."""
    tokens = len(x)

    def cosine(a: int, b: int) -> float:
        return float(x[a] @ x[b] / np.linalg.norm(x[a]) / np.linalg.norm(x[b]))

    ranked = sorted(range(prefix, tokens), key=lambda j: -class_row[:, j].mean())
    left = ranked[: len(ranked) - dropped]
    kept, tail = left[: keep - prefix], left[keep - prefix :]
    groups, total = {j: [j] for j in kept}, {j: float(sizes[j]) for j in kept}
    for t in tail:
        goal = max(kept, key=lambda k: cosine(t, k))
        groups[goal].append(t)
        total[goal] += sizes[t] * max(0.0, cosine(t, goal))
    return [[i] for i in range(prefix)] + [groups[j] for j in kept], [*sizes[:prefix], *(total[j] for j in kept)]


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
        groups, total = slow_diffrate(x[image], row[image], sizes[image], prefix, keep, round(pruned * (tokens - keep)))
        wanted = [x[image, group].mean(0) for group in groups]
        np.testing.assert_allclose(found[image].numpy(), wanted, atol=1e-5)
        if found_sizes is None:
            assert total == [1.0] * keep
        else:
            np.testing.assert_allclose(found_sizes[image].numpy(), total, rtol=1e-5)


def test_published_schedules_have_published_drops() -> None:
    """DeiT-T at 0.8 GMACs: block 5 drops six of 172 tokens and merges twelve; the last block only drops."""
    schedule = (197, 196, 190, 172, 154, 125, 107, 96, 84, 78, 70, 3)
    before = (197, *schedule)
    survivors = [
        DiffRate(Stage(b, 12, before[b - 1], before[b], 1, True, schedule=schedule), pruned=1.0).survivors for b in range(1, 13)
    ]
    assert survivors == [197, 197, 196, 186, 166, 147, 117, 103, 92, 80, 74, 3]
    for after, dropped in PUBLISHED.items():
        assert len(after) == len(dropped) == 11
        assert all(n >= d >= m for n, d, m in zip((197, *after), dropped, after))
    other = Stage(5, 12, 172, 154, 1, True, schedule=(*schedule[:9], 77, 70, 3))
    assert DiffRate(other, pruned=1.0).survivors == 154


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
