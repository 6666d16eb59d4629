"""MCTF against loops over tokens in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.mctf import MCTF
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes, slow_halves

Groups = list[list[int]]


def slow_mctf(
    x: np.ndarray, attention: np.ndarray, sizes: np.ndarray, prefix: int, count: int, tau_info: float, tau_size: float
) -> tuple[Groups, np.ndarray, float]:
    """One image: tokens (N, C), attention (H, N, N), sizes (N,).

    Returns:
        The tokens that each one that is left is made of, the one it grew from first; what each weighs; the narrowest decision.
    """
    info = attention.mean((0, 1))

    def attraction(i: int, j: int) -> float:
        similar = (1 + x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))) / 2
        informative = (1 / (info[i] * info[j])) ** (1 / tau_info) if tau_info else 1.0
        small = (1 / (sizes[i] * sizes[j])) ** (1 / tau_size) if tau_size else 1.0
        return float(similar * informative * small)

    a_set, b_set = slow_halves(len(x), prefix)
    groups = {i: [i] for i in range(len(x))}
    gaps: list[float] = []

    def merge(source: list[int], target: list[int], merges: int) -> list[int]:
        """The sources that are left, from most to least attracted."""
        best = {}
        for i in source:
            by_strength = sorted(((attraction(i, j), j) for j in target), reverse=True)
            best[i] = by_strength[0]
            gaps.extend(one[0] / other[0] - 1 for one, other in pairwise(by_strength[:2]))
        order = sorted(source, key=lambda i: -best[i][0])
        gaps.extend(best[i][0] / best[j][0] - 1 for i, j in pairwise(order))
        for i in order[:merges]:
            groups[best[i][1]] += groups.pop(i)
        return order[merges:]

    from_a = min(count // 2, len(a_set) - 1)
    left_a = sorted(merge(a_set, b_set, from_a)) if from_a else a_set
    left_b = merge(b_set, left_a, count - from_a)
    return [groups[i] for i in [*range(prefix), *left_a, *left_b]], info * sizes, min(gaps, default=1.0)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(2, 22),
    prefix=st.integers(0, 3),
    batch=st.integers(1, 3),
    tau_info=st.sampled_from([0.0, 4.0, 20.0]),
    tau_size=st.sampled_from([0.0, 5.0, 40.0]),
    sized=st.booleans(),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int,
    tokens: int,
    prefix: int,
    batch: int,
    tau_info: float,
    tau_size: float,
    sized: bool,
    data: st.DataObject,
) -> None:
    assume(tokens - prefix > 1)
    count = data.draw(st.integers(1, tokens - prefix - 1))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, tokens, 5)) + 0.5
    attention = rng.normal(scale=2, size=(batch, 2, tokens, tokens))
    attention = np.exp(attention) / np.exp(attention).sum(-1, keepdims=True)
    sizes, given_sizes = random_sizes(rng, batch, tokens, sized)
    reducer = MCTF(Stage(4, 12, tokens, tokens - count, prefix, prefix > 0), tau_info=tau_info, tau_size=tau_size)
    features = torch.from_numpy(x).float()
    outcome = reducer(features, Evidence(attention=torch.from_numpy(attention).float(), sizes=given_sizes))
    found, found_sizes = outcome.tokens(features, given_sizes), outcome.sizes(given_sizes)
    members = outcome.sums(torch.eye(tokens).expand(batch, -1, -1))
    places = outcome.positions(torch.arange(tokens).expand(batch, -1))
    assert found_sizes is not None
    assert torch.equal(found[:, :prefix], features[:, :prefix])
    torch.testing.assert_close(found_sizes, (members @ torch.from_numpy(sizes).float()[..., None])[..., 0])
    for image in range(batch):
        wanted, weight, gap = slow_mctf(x[image], attention[image], sizes[image], prefix, count, tau_info, tau_size)
        if gap < 1e-4:
            continue
        for slot, group in enumerate(wanted):
            assert places[image, slot] == group[0]
            assert members[image, slot].nonzero()[:, 0].tolist() == sorted(group)
            mean = sum(weight[i] * x[image, i] for i in group) / sum(weight[i] for i in group)
            np.testing.assert_allclose(found[image, slot].numpy(), mean, atol=1e-4)
            assert found_sizes[image, slot].item() == pytest.approx(sum(sizes[image, i] for i in group))


def even_attention(tokens: int) -> torch.Tensor:
    return torch.full((1, 1, tokens, tokens), 1 / tokens)


def test_what_a_token_has_absorbed_goes_along() -> None:
    """Places 0 (A) and 1 (B) are alike, and near 2 (A); 3 (B) is not. So 0 joins 1, then 1 joins 2."""
    x = torch.tensor([[[1.0, 0.01, 0.0], [1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    outcome = MCTF(Stage(1, 12, 4, 2, 0, False))(x, Evidence(attention=even_attention(4)))
    members = outcome.sums(torch.eye(4)[None])[0]
    assert members.tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert outcome.sizes(None)[0].tolist() == [3, 1]
    torch.testing.assert_close(outcome.tokens(x, None)[0, 0], x[0, :3].mean(0))


def test_informative_and_large_tokens_are_spared() -> None:
    """All pairs are alike; what a token receives, or its size, decides."""
    x = torch.ones(1, 8, 3)
    sizes = torch.ones(1, 8)
    logits = torch.zeros(1, 1, 8, 8)
    logits[..., :2] = 2.0
    sizes[:, 4:6] = 30.0
    evidence = Evidence(attention=logits.softmax(-1), sizes=sizes)
    by_info = MCTF(Stage(1, 12, 8, 4, 0, False), tau_size=0.0)(x, evidence).positions(torch.arange(8)[None])
    assert {0, 1} <= set(by_info[0].tolist())
    by_size = MCTF(Stage(1, 12, 8, 4, 0, False), tau_info=0.0)(x, evidence).positions(torch.arange(8)[None])
    assert {4, 5} <= set(by_size[0].tolist())


@pytest.mark.parametrize("tokens", [3, 4, 5, 18, 19])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_any_number_can_merge(tokens: int, prefix: int) -> None:
    tokens += prefix
    generator = torch.Generator().manual_seed(tokens)
    x, attention = torch.randn(2, tokens, 4, generator=generator), torch.rand(2, 2, tokens, tokens, generator=generator)
    for tokens_out in range(prefix + 1, tokens):
        outcome = MCTF(Stage(1, 12, tokens, tokens_out, prefix, prefix > 0))(x, Evidence(attention=attention))
        members = outcome.sums(torch.eye(tokens).expand(2, -1, -1))
        assert members.shape == (2, tokens_out, tokens)
        assert (members.sum(1) == 1).all(), "every token ends in exactly one"


def test_a_token_without_attention_still_weighs() -> None:
    """Attention of exactly 0 gives neither infinite attraction nor a mean over nothing."""
    attention = torch.zeros(1, 1, 7, 7)
    attention[..., 0] = 1.0
    x = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(3))
    outcome = MCTF(Stage(1, 12, 7, 2, 1, True))(x, Evidence(attention=attention))
    torch.testing.assert_close(outcome.tokens(x, None)[0, 1], x[0, 1:].mean(0))


@pytest.mark.parametrize("option", ["tau_info", "tau_size"])
@pytest.mark.parametrize("tau", [-1.0, 1.0, 5000.0])
def test_temperatures_are_checked(option: str, tau: float) -> None:
    with pytest.raises(UserError, match=f"method mctf: {option} is"):
        MCTF(Stage(1, 12, 9, 8, 1, True), **{option: tau})
