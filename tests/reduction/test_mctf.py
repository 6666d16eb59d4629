"""MCTF against loops over tokens in float64."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.mctf import MCTF
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import random_sizes


@dataclass
class Token:
    """A token and what has merged into it, by place."""

    members: list[int]
    x: np.ndarray  #: (N, C), of all tokens
    info: np.ndarray  #: (N,)
    sizes: np.ndarray  #: (N,)

    def feature(self) -> np.ndarray:
        total = sum(self.info[m] * self.sizes[m] for m in self.members)
        return sum(self.info[m] * self.sizes[m] * self.x[m] for m in self.members) / total

    def total_info(self) -> float:
        return sum(self.info[m] for m in self.members)

    def size(self) -> float:
        return sum(self.sizes[m] for m in self.members)


def attraction(i: Token, j: Token, tau_info: float, tau_size: float) -> float:
    a, b = i.feature(), j.feature()
    similar = (1 + a @ b / np.sqrt((a @ a) * (b @ b))) / 2
    informative = 1 / (i.total_info() * j.total_info())
    small = 1 / (i.size() * j.size())
    return similar * (informative ** (1 / tau_info) if tau_info else 1) * (small ** (1 / tau_size) if tau_size else 1)


def slow_merge(source: list[Token], target: list[Token], count: int, *taus: float) -> tuple[list[Token], float]:
    """Merges the `count` most attracted sources; the others from most to least attracted, and the narrowest decision."""
    strength = [[attraction(s, t, *taus) for t in target] for s in source]
    best = [max(row) for row in strength]
    order = sorted(range(len(source)), key=lambda s: -best[s])
    gaps = [best[i] / best[j] - 1 for i, j in pairwise(order)]
    gaps += [sorted(row)[-1] / sorted(row)[-2] - 1 for row in strength if len(row) > 1]
    for s in order[:count]:
        target[strength[s].index(best[s])].members.extend(source[s].members)
    return [source[s] for s in order[count:]], min(gaps, default=1.0)


def slow_mctf(
    x: np.ndarray, attention: np.ndarray, sizes: np.ndarray, prefix: int, count: int, *taus: float
) -> tuple[list[Token], float]:
    """One image: tokens (N, C), attention (H, N, N), sizes (N,) -> patch tokens that are left, and the narrowest decision."""
    info = np.maximum(attention.mean((0, 1)), 0.01 / len(x))
    tokens = [Token([i], x, info, sizes) for i in range(prefix, len(x))]
    a, b = tokens[1::2], tokens[0::2]
    from_a = min(count // 2, len(a) - 1)
    gap = 1.0
    if from_a:
        a, gap = slow_merge(a, b, from_a, *taus)
    b, other = slow_merge(b, a, count - from_a, *taus)
    return b + a, min(gap, other)


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
        wanted, gap = slow_mctf(x[image], attention[image], sizes[image], prefix, count, tau_info, tau_size)
        if gap < 1e-4:
            continue
        for slot, token in enumerate(wanted, prefix):
            assert places[image, slot] == token.members[0]
            assert members[image, slot].nonzero()[:, 0].tolist() == sorted(token.members)
            np.testing.assert_allclose(found[image, slot].numpy(), token.feature(), atol=1e-4)
            assert found_sizes[image, slot].item() == pytest.approx(token.size())


def even_attention(tokens: int) -> torch.Tensor:
    return torch.full((1, 1, tokens, tokens), 1 / tokens)


def test_what_a_token_has_absorbed_goes_along() -> None:
    """Places 1 (A) and 0 (B) are alike, and near 3 (A); 2 (B) is not. So 1 joins 0, then 0 joins 3."""
    x = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.01, 0.0], [0.0, 0.0, 1.0], [1.0, 0.5, 0.0]]])
    outcome = MCTF(Stage(1, 12, 4, 2, 0, False))(x, Evidence(attention=even_attention(4)))
    members = outcome.sums(torch.eye(4)[None])[0]
    assert members.tolist() == [[0, 0, 1, 0], [1, 1, 0, 1]]
    assert outcome.sizes(None)[0].tolist() == [1, 3]
    torch.testing.assert_close(outcome.tokens(x, None)[0, 1], (x[0, 0] + x[0, 1] + x[0, 3]) / 3)


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


def test_tokens_that_nobody_attends_to_still_weigh() -> None:
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
