"""POMT against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.reduction.methods.pomt import POMT
from edge_tprune.reduction.registry import Evidence, Stage


def slow_pomt(x: np.ndarray, attention: np.ndarray, values: np.ndarray, keep: int, prefix: int) -> np.ndarray:
    """One image: x (N, C), attention (H, N, N), values (N, H, d); returns the tokens one by one."""
    heads, tokens = attention.shape[:2]
    patches = range(prefix, tokens)
    received = {j: sum(max(attention[h, i, j] for h in range(heads)) for i in patches) for j in patches}
    content = [sum(max(values[j, h, d] for h in range(heads)) for d in range(values.shape[2])) for j in range(tokens)]
    odds = [np.exp(c - max(content)) for c in content]
    importance = {j: received[j] / max(received.values()) + odds[j] / sum(odds) for j in patches}
    ranking = sorted(patches, key=lambda j: -importance[j])
    if keep == prefix + 1:
        return np.stack([*(x[j] for j in range(prefix)), x[ranking[0]]])
    kept, rest = ranking[: keep - prefix - 1], ranking[keep - prefix - 1 :]
    mean = sum(x[j] for j in rest) / len(rest)
    return np.stack([*(x[j] for j in range(prefix)), *(x[j] for j in kept), mean])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(5, 24),
    prefix=st.integers(0, 3),
    batch=st.integers(1, 3),
    data=st.data(),
)
def test_equals_the_loops(seed: int, tokens: int, prefix: int, batch: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    rng = np.random.default_rng(seed)
    x, values = rng.normal(size=(batch, tokens, 5)), rng.normal(size=(batch, tokens, 2, 4))
    attention = rng.dirichlet(np.ones(tokens), size=(batch, 2, tokens))
    evidence = Evidence(attention=torch.from_numpy(attention).float(), values=torch.from_numpy(values).float())
    features = torch.from_numpy(x).float()
    found = POMT(Stage(4, 12, tokens, keep, prefix, prefix > 0))(features, evidence).tokens(features, None)
    for image in range(batch):
        np.testing.assert_allclose(found[image], slow_pomt(x[image], attention[image], values[image], keep, prefix), atol=1e-5)


def test_the_appended_token_stands_for_all_it_took_in() -> None:
    x, attention, values = torch.randn(2, 12, 3), torch.randn(2, 2, 12, 12).softmax(-1), torch.randn(2, 12, 2, 4)
    for keep in (3, 7, 11):
        outcome = POMT(Stage(4, 12, 12, keep, 1, True))(x, Evidence(attention=attention, values=values))
        sizes = outcome.sizes(None)
        assert sizes is not None
        assert sizes.tolist() == [[1.0] * (keep - 1) + [12.0 - (keep - 1)]] * 2
        torch.testing.assert_close((outcome.tokens(x, None) * sizes[..., None]).sum(1), x.sum(1))


def test_a_token_that_nothing_attends_to_is_kept_for_its_values() -> None:
    """Attention that is the same everywhere leaves the choice to the values."""
    attention, values = torch.full((1, 2, 10, 10), 0.1), torch.zeros(1, 10, 2, 4)
    values[0, 6] = 3.0
    outcome = POMT(Stage(4, 12, 10, 3, 1, True))(torch.zeros(1, 10, 1), Evidence(attention=attention, values=values))
    kept = outcome.sums(torch.eye(10)[None])
    assert kept[0, 1].argmax() == 6


def test_attention_that_patches_never_receive_gives_no_nan() -> None:
    """Everything looks at the class token: the largest a_j is 0."""
    attention = torch.zeros(1, 2, 10, 10)
    attention[..., 0] = 1.0
    x = torch.randn(1, 10, 3)
    outcome = POMT(Stage(4, 12, 10, 5, 1, True))(x, Evidence(attention=attention, values=torch.zeros(1, 10, 2, 4)))
    assert outcome.tokens(x, None).isfinite().all()
    assert (outcome.sums(torch.eye(10)[None]).sum(1) == 1).all()
