"""Vote&Mix against loops over tokens in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.vote_mix import VoteMix
from edge_tprune.reduction.outcome import Merge
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes


def slow_vote_mix(
    x: np.ndarray, keys: np.ndarray, sizes: np.ndarray, prefix: int, keep: int, temperature: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """One image: tokens (N, C), keys (N, H, d), sizes (N,) -> tokens and sizes after mixing, and how near a tie came."""
    metric = keys.mean(1)
    metric = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    patches = range(prefix, len(x))
    votes, typical = dict.fromkeys(patches, 0.0), metric[prefix:].mean(0)
    gap = np.inf
    for i in patches:
        (likeness, partner), *others = sorted(((metric[i] @ metric[j], j) for j in patches if j != i), reverse=True)
        votes[partner] += likeness
        gap = min([gap, *(likeness - other for other, _ in others[:1])])
    scores = {i: votes[i] + 1e-3 * (metric[i] @ typical) for i in patches}
    ranking = sorted(patches, key=scores.__getitem__)
    gap = min([gap, *(scores[b] - scores[a] for a, b in itertools.pairwise(ranking))])
    retained, selected = ranking[: keep - prefix], ranking[keep - prefix :]
    tokens, totals = [x[i] for i in range(prefix)], [sizes[i] for i in range(prefix)]
    parts = {}
    for s in selected:
        odds = {t: np.exp((metric[s] @ metric[t] - 1) / temperature) for t in retained}
        for t in retained:
            parts[s, t] = odds[t] / sum(odds.values())
    for t in retained:
        total = sizes[t] + sum(parts[s, t] * sizes[s] for s in selected)
        tokens.append((sizes[t] * x[t] + sum(parts[s, t] * sizes[s] * x[s] for s in selected)) / total)
        totals.append(total)
    return np.array(tokens), np.array(totals), gap


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(5, 24),
    prefix=st.integers(0, 3),
    batch=st.integers(1, 3),
    sized=st.booleans(),
    temperature=st.sampled_from([0.05, 0.3, 1.0, 20.0]),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int, tokens: int, prefix: int, batch: int, sized: bool, temperature: float, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    rng = np.random.default_rng(seed)
    x, keys = rng.normal(size=(batch, tokens, 5)), rng.normal(size=(batch, tokens, 2, 4))
    sizes, given_sizes = random_sizes(rng, batch, tokens, sized)
    reducer = VoteMix(Stage(2, 12, tokens, keep, prefix, prefix > 0), temperature=temperature)
    features = torch.from_numpy(x).float()
    outcome = reducer(features, Evidence(keys=torch.from_numpy(keys).float(), sizes=given_sizes))
    found, found_sizes = outcome.tokens(features, given_sizes), outcome.sizes(given_sizes)
    for image in range(batch):
        wanted, wanted_sizes, gap = slow_vote_mix(x[image], keys[image], sizes[image], prefix, keep, temperature)
        assume(gap > 1e-6)  # nearer than that, float32 may decide either way
        np.testing.assert_allclose(found[image].numpy(), wanted, atol=2e-4)
        np.testing.assert_allclose(found_sizes[image].numpy(), wanted_sizes, rtol=2e-4)
    assert torch.equal(found[:, :prefix], features[:, :prefix])
    torch.testing.assert_close(found_sizes.sum(1), torch.from_numpy(sizes).float().sum(1), rtol=1e-5, atol=0)


def mixed(keys: torch.Tensor, keep: int, **options: float) -> Merge:
    outcome = VoteMix(Stage(1, 12, keys.shape[1], keep, 1, True), **options)(
        torch.zeros(*keys.shape[:2], 1), Evidence(keys=keys[:, :, None])
    )
    assert isinstance(outcome, Merge)
    return outcome


def angles(*degrees: float) -> torch.Tensor:
    """Keys (1, N, 2) on the unit circle."""
    turn = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([turn.cos(), turn.sin()], -1)[None]


def test_the_token_that_most_others_vote_for_leaves() -> None:
    outcome = mixed(angles(0, 90, 98, 80, 180), 4)  # the class token, then a hub at 90 degrees with a neighbour on each side
    assert outcome.source.tolist() == [[1]]
    assert sorted(outcome.index[0].tolist()) == [0, 2, 3, 4]


def test_a_low_temperature_merges_and_a_high_one_spreads() -> None:
    keys = angles(0, 90, 98, 80, 180)
    cold, hot = mixed(keys, 4, temperature=0.001).link[0, :, 0], mixed(keys, 4, temperature=1000).link[0, :, 0]
    nearest = mixed(keys, 4).index[0].tolist().index(2)
    assert cold[nearest] > 0.99
    torch.testing.assert_close(hot[1:], torch.full((3,), 1 / 3), rtol=0, atol=1e-3)
    assert cold[0] == hot[0] == 0, "nothing flows into the class token"


@pytest.mark.parametrize("temperature", [0.001, 0.01, 1000.0])
def test_equal_tokens_and_zero_keys_stay_finite(temperature: float) -> None:
    for keys in (torch.zeros(1, 9, 3), torch.ones(1, 9, 3), 3e4 * torch.ones(1, 9, 3)):
        outcome = mixed(keys, 4, temperature=temperature)
        assert sorted([*outcome.index[0].tolist(), *outcome.source[0].tolist()]) == list(range(9))
        torch.testing.assert_close(outcome.link.sum(1), torch.ones(1, 5))


def test_proportional_attention_can_be_turned_off() -> None:
    stage = Stage(1, 12, 9, 5, 1, True)
    assert VoteMix(stage).proportional
    assert not VoteMix(stage, proportional=False).proportional


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e6, float("nan")])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=r"temperature is .* from 0\.001 to 1000"):
        VoteMix(Stage(1, 12, 9, 5, 1, True), temperature=temperature)
