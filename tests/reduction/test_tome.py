"""ToMe against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.reduction.methods.tome import ToMe
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes, slow_halves


def slow_tome(x: np.ndarray, keys: np.ndarray, sizes: np.ndarray, prefix: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One image: tokens (N, C), keys (N, H, d), sizes (N,) -> merged tokens and sizes, token by token."""
    metric = keys.mean(1)
    metric = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    a_set, b_set = slow_halves(len(x), prefix)
    partner = {a: max(b_set, key=lambda b: metric[a] @ metric[b]) for a in a_set}
    ranking = sorted(a_set, key=lambda a: -(metric[a] @ metric[partner[a]]))
    merged, unmerged = ranking[:count], ranking[count:]
    groups = [[i] for i in range(prefix)] + [[a] for a in (sorted(unmerged) if prefix else unmerged)]
    groups += [[b, *(a for a in merged if partner[a] == b)] for b in b_set]
    total = np.array([sum(sizes[i] for i in group) for group in groups])
    tokens = np.array([sum(sizes[i] * x[i] for i in group) for group in groups]) / total[:, None]
    return tokens, total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(4, 24),
    prefix=st.integers(0, 3),
    batch=st.integers(1, 3),
    sized=st.booleans(),
    data=st.data(),
)
def test_equals_the_loops(seed: int, tokens: int, prefix: int, batch: int, sized: bool, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, (tokens - prefix) // 2)) if tokens - prefix > 1 else 0
    if not count:
        return
    rng = np.random.default_rng(seed)
    x, keys = rng.normal(size=(batch, tokens, 5)), rng.normal(size=(batch, tokens, 2, 4))
    sizes, given_sizes = random_sizes(rng, batch, tokens, sized)
    reducer = ToMe(Stage(2, 12, tokens, tokens - count, prefix, prefix > 0))
    outcome = reducer(torch.from_numpy(x).float(), Evidence(keys=torch.from_numpy(keys).float(), sizes=given_sizes))
    found, found_sizes = outcome.tokens(torch.from_numpy(x).float(), given_sizes), outcome.sizes(given_sizes)
    for image in range(batch):
        wanted, wanted_sizes = slow_tome(x[image], keys[image], sizes[image], prefix, count)
        np.testing.assert_allclose(found[image].numpy(), wanted, atol=1e-5)
        np.testing.assert_allclose(found_sizes[image].numpy(), wanted_sizes, rtol=1e-6)
    assert torch.equal(found[:, :prefix], torch.from_numpy(x).float()[:, :prefix])


def test_merging_identical_tokens_changes_nothing() -> None:
    x = torch.randn(1, 1, 6).expand(2, 9, 6).contiguous()
    outcome = ToMe(Stage(1, 12, 9, 5, 1, True))(x, Evidence(keys=torch.randn(2, 9, 2, 3)))
    torch.testing.assert_close(outcome.tokens(x, None), x[:, :5])


@pytest.mark.parametrize(("tokens", "prefix", "fewest"), [(197, 1, 99), (198, 2, 100), (5, 0, 3), (2, 1, 2)])
def test_at_most_half_merges(tokens: int, prefix: int, fewest: int) -> None:
    assert ToMe.fewest(tokens, prefix) == fewest
