"""EViT against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.reduction.methods.evit import EViT
from edge_tprune.reduction.registry import Evidence, Stage


def slow_evit(x: np.ndarray, class_row: np.ndarray, keep: int, prefix: int, fuse: bool) -> np.ndarray:
    """One image: x (N, C), class_row (H, N); returns the tokens one by one."""
    heads, tokens = class_row.shape
    attentiveness = [sum(class_row[h, j] for h in range(heads)) / heads for j in range(tokens)]
    others = sorted(range(prefix, tokens), key=lambda j: -attentiveness[j])
    kept = others[: keep - prefix - (1 if fuse else 0)]
    rows = [x[j] for j in range(prefix)] + [x[j] for j in kept]
    if fuse:
        rows.append(sum(attentiveness[j] * x[j] for j in others if j not in kept))
    return np.stack(rows)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(4, 24),
    prefix=st.integers(1, 2),
    batch=st.integers(1, 3),
    fuse=st.booleans(),
    data=st.data(),
)
def test_equals_the_loop(seed: int, tokens: int, prefix: int, batch: int, fuse: bool, data: st.DataObject) -> None:
    keep = data.draw(st.integers(prefix + 2, tokens))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, tokens, 5))
    row = rng.dirichlet(np.ones(tokens), size=(batch, 3))
    stage = Stage(1, 1, tokens, keep, prefix, True)
    fuse = fuse and keep < tokens
    evidence = Evidence(class_row=torch.from_numpy(row).float())
    tokens = torch.from_numpy(x).float()
    found = EViT(stage, fuse=fuse)(tokens, evidence).tokens(tokens, None)
    for image in range(batch):
        np.testing.assert_allclose(found[image], slow_evit(x[image], row[image], keep, prefix, fuse), atol=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
def test_adversarial_scores_still_give_whole_tokens(fuse: bool) -> None:
    """Ties, one dominant token, zeros: right counts, class token first, no token twice."""
    x = torch.arange(1.0, 13).reshape(1, 12, 1).repeat(4, 1, 1)
    rows = torch.zeros(4, 2, 12)
    rows[0] = 1 / 12
    rows[1, :, 7] = 1.0
    rows[2] = 0.0
    rows[3, 0, :6] = 1 / 6
    found = EViT(Stage(1, 1, 12, 6, 1, True), fuse=fuse)(x, Evidence(class_row=rows)).tokens(x, None)
    assert found.shape == (4, 6, 1)
    assert (found[:, 0, 0] == 1).all()
    kept = found[:, :-1, 0] if fuse else found[..., 0]
    for image in kept:
        assert len(set(image.tolist())) == len(image)
    assert 8.0 in kept[1], "the dominant token stays"


def test_without_fusing_the_order_of_equal_evidence_does_not_matter() -> None:
    """Permuting the image's tokens permutes nothing in the set that is kept."""
    rng = np.random.default_rng(3)
    x, row = torch.from_numpy(rng.normal(size=(1, 15, 4))).float(), torch.from_numpy(rng.dirichlet(np.ones(15), (1, 2))).float()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(14, generator=torch.Generator().manual_seed(0))])
    reducer = EViT(Stage(1, 1, 15, 7, 1, True))
    shuffled = x[:, order]
    plain = reducer(x, Evidence(class_row=row)).tokens(x, None)
    torch.testing.assert_close(plain, reducer(shuffled, Evidence(class_row=row[:, :, order])).tokens(shuffled, None))
