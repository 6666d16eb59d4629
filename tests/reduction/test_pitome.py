"""PiToMe against loops over tokens in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.pitome import PiToMe
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes


def slow_energy(keys: np.ndarray, prefix: int, margin: float) -> tuple[np.ndarray, dict[int, float]]:
    """One image: keys (N, H, d) -> unit metric (N, d) and the energy of each patch token."""
    metric = keys.mean(1)
    metric = metric / np.sqrt((metric**2).sum(1, keepdims=True))
    energy = {}
    for i in range(prefix, len(keys)):
        terms = []
        for j in range(prefix, len(keys)):
            cosine = float(metric[i] @ metric[j])
            terms.append(cosine - margin if cosine > margin else np.exp(cosine - margin) - 1)
        energy[i] = sum(terms) / len(terms)
    return metric, energy


def slow_pitome(
    x: np.ndarray, keys: np.ndarray, sizes: np.ndarray, prefix: int, count: int, margin: float, protects: bool
) -> tuple[dict[int, np.ndarray], dict[int, float], float]:
    """One image -> features and sizes by the token each grew from, and the narrowest decision."""
    metric, energy = slow_energy(keys, prefix, margin)
    ranking = sorted(energy, key=lambda i: -energy[i])
    gaps = [energy[i] - energy[j] for i, j in pairwise(ranking)]
    candidates = ranking[: 2 * count] if protects else ranking
    a_set, b_set = candidates[::2], candidates[1::2]
    partner, likeness = {}, {}
    for a in a_set:
        by_likeness = sorted(((float(metric[a] @ metric[b]), b) for b in b_set), reverse=True)
        likeness[a], partner[a] = by_likeness[0]
        gaps += [by_likeness[0][0] - by_likeness[1][0]] if len(by_likeness) > 1 else []
    chosen = sorted(a_set, key=lambda a: -likeness[a])
    gaps += [likeness[a] - likeness[other] for a, other in pairwise(chosen)]
    groups = {i: [i] for i in range(len(x)) if i not in chosen[:count]}
    for a in chosen[:count]:
        groups[partner[a]].append(a)
    total = {i: sum(sizes[m] for m in group) for i, group in groups.items()}
    features = {i: sum(sizes[m] * x[m] for m in group) / total[i] for i, group in groups.items()}
    return features, total, min(gaps, default=1.0)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(4, 24),
    prefix=st.integers(0, 3),
    batch=st.integers(1, 3),
    block=st.integers(1, 12),
    margin=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    sized=st.booleans(),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int, tokens: int, prefix: int, batch: int, block: int, margin: float, sized: bool, data: st.DataObject
) -> None:
    assume(tokens - prefix > 1)
    count = data.draw(st.integers(1, (tokens - prefix) // 2))
    rng = np.random.default_rng(seed)
    x, keys = rng.normal(size=(batch, tokens, 5)), rng.normal(size=(batch, tokens, 2, 4))
    sizes, given_sizes = random_sizes(rng, batch, tokens, sized)
    reducer = PiToMe(Stage(block, 12, tokens, tokens - count, prefix, prefix > 0), margin=margin)
    outcome = reducer(torch.from_numpy(x).float(), Evidence(keys=torch.from_numpy(keys).float(), sizes=given_sizes))
    found, found_sizes = outcome.tokens(torch.from_numpy(x).float(), given_sizes), outcome.sizes(given_sizes)
    places = outcome.positions(torch.arange(tokens).expand(batch, -1))
    assert torch.equal(places[:, :prefix], torch.arange(prefix).expand(batch, -1))
    for image in range(batch):
        wanted, wanted_sizes, gap = slow_pitome(
            x[image], keys[image], sizes[image], prefix, count, margin * (1 - (block - 1) / 12), block > 6
        )
        if gap < 1e-5:
            continue
        assert set(wanted) == set(places[image].tolist())
        for slot, place in enumerate(places[image].tolist()):
            np.testing.assert_allclose(found[image, slot].numpy(), wanted[place], atol=1e-5)
            assert found_sizes[image, slot].item() == pytest.approx(wanted_sizes[place])


def a_crowd_and_loners(seed: int) -> torch.Tensor:
    """Keys (1, 17, 1, 8): a class token, 12 look-alikes, 4 tokens unlike any other."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, 17, 1, 8, generator=generator)
    keys[:, 1:13] = torch.tensor([10.0, 0, 0, 0, 0, 0, 0, 0]) + 0.3 * keys[:, 1:13]
    keys[:, 13:] = -torch.eye(8)[1:5, None]
    return keys


@pytest.mark.parametrize("seed", range(5))
def test_the_second_half_protects_loners(seed: int) -> None:
    x = torch.randn(1, 17, 3)
    outcome = PiToMe(Stage(9, 12, 17, 11, 1, True))(x, Evidence(keys=a_crowd_and_loners(seed)))
    members = outcome.sums(torch.eye(17)[None])[0]
    for loner in range(13, 17):
        (row,) = members[:, loner].nonzero()[0].tolist()
        assert members[row].sum() == 1, "alone in its token"
    assert members.sum() == 17


def test_the_first_half_pairs_by_energy_and_not_by_place() -> None:
    """Look-alikes are interleaved with others so that alternate places never meet."""
    keys = torch.eye(4)[torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])][None, :, None].clone()
    keys += 0.01 * torch.randn(keys.shape, generator=torch.Generator().manual_seed(0))
    outcome = PiToMe(Stage(1, 12, 8, 5, 0, False))(torch.randn(1, 8, 3), Evidence(keys=keys))
    members = outcome.sums(torch.eye(8)[None])[0]
    for row in members:
        assert row[::2].sum() == 0 or row[1::2].sum() == 0, "the two kinds never merge"


def test_the_halves() -> None:
    assert [PiToMe(Stage(block, 12, 9, 8, 1, True)).protects for block in (1, 6, 7, 12)] == [False, False, True, True]
    assert [PiToMe(Stage(block, 5, 9, 8, 1, True)).protects for block in (1, 3, 4, 5)] == [False, False, True, True]
    assert PiToMe(Stage(1, 12, 9, 8, 1, True)).margin == 0.75
    assert PiToMe(Stage(7, 12, 9, 8, 1, True)).margin == pytest.approx(0.375)


@pytest.mark.parametrize(("tokens", "prefix", "fewest"), [(197, 1, 99), (198, 2, 100), (5, 0, 3), (2, 1, 2)])
def test_at_most_half_merges(tokens: int, prefix: int, fewest: int) -> None:
    assert PiToMe.fewest(tokens, prefix) == fewest


@pytest.mark.parametrize("margin", [-0.1, 1.5])
def test_a_margin_is_a_cosine(margin: float) -> None:
    with pytest.raises(UserError, match="method pitome: margin is"):
        PiToMe(Stage(1, 12, 9, 8, 1, True), margin=margin)
