"""BAT and DPC-KNN against loops over tokens in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_tprune
from edge_tprune.models.loading import load_model
from edge_tprune.models.reference import DigitsInClutter
from edge_tprune.reduction.methods.bat import BAT
from edge_tprune.reduction.methods.dpc_knn import DPCKNN
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.slow_clusters import slow_density_peaks


def slow_bat(
    x: np.ndarray, row: np.ndarray, prefix: int, attentive: int, matched: int, clusters: int, neighbours: int
) -> list[list[int]]:
    """One image: tokens (N, C), class row (H, N); the groups of tokens that become one, in order, the first of each the one that stays."""
    weight = row.mean(0)
    ranking = sorted(range(prefix, len(x)), key=lambda i: -weight[i])
    strong, weak = ranking[:attentive], ranking[attentive:]

    def cosine(i: int, j: int) -> float:
        return float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]))

    a_set, b_set = strong[1::2], strong[::2]
    partner = {a: max(b_set, key=lambda b: cosine(a, b)) for a in a_set}
    order = sorted(a_set, key=lambda a: -cosine(a, partner[a]))
    merged, unmerged = order[:matched], order[matched:]
    groups = [[i] for i in range(prefix)]
    if matched:
        groups += [[a] for a in unmerged]
        groups += [[b, *(a for a in merged if partner[a] == b)] for b in b_set]
    else:
        groups += [[i] for i in [*b_set, *a_set]]
    if clusters:
        centres, joins = slow_density_peaks(x[weak], clusters, neighbours)
        groups += [[weak[c], *(weak[i] for i, centre in joins.items() if centre == c)] for c in centres]
    return groups


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(4, 26),
    prefix=st.integers(1, 2),
    batch=st.integers(1, 3),
    attentive=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    matched=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    neighbours=st.sampled_from([2, 5]),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int, tokens: int, prefix: int, batch: int, attentive: float, matched: float, neighbours: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=(4, 6))[rng.integers(0, 4, (batch, tokens))] + rng.normal(size=(batch, tokens, 6))
    row = rng.random((batch, 2, tokens))
    row /= row.sum(-1, keepdims=True)
    reducer = BAT(Stage(4, 12, tokens, keep, prefix, True), attentive=attentive, matched=matched, neighbours=neighbours)
    assert reducer.pairs <= reducer.attentive // 2 or reducer.attentive == 0
    assert prefix + reducer.attentive - reducer.pairs + reducer.clusters == keep
    features = torch.from_numpy(x).float()
    outcome = reducer(features, Evidence(class_row=torch.from_numpy(row).float()))
    found, members = outcome.tokens(features, None), outcome.sums(torch.eye(tokens).expand(batch, -1, -1))
    for image in range(batch):
        groups = slow_bat(x[image], row[image], prefix, reducer.attentive, reducer.pairs, reducer.clusters, neighbours)
        weight = row[image].mean(0) + 1e-6
        wanted = [sum(weight[i] * x[image, i] for i in group) / sum(weight[i] for i in group) for group in groups]
        np.testing.assert_allclose(found[image].numpy(), np.array(wanted), atol=1e-4)
        assert [set(r.nonzero()[:, 0].tolist()) for r in members[image]] == [set(group) for group in groups]


@pytest.mark.parametrize("keep", range(2, 21))
@pytest.mark.parametrize(("attentive", "matched"), [(0.5, 0.2), (0.0, 0.0), (1.0, 1.0), (0.05, 1.0), (0.95, 0.0)])
def test_any_split_of_any_stage_is_possible(keep: int, attentive: float, matched: float) -> None:
    reducer = BAT(Stage(4, 12, 21, keep, 1, True), attentive=attentive, matched=matched)
    x = torch.randn(2, 21, 6, generator=torch.Generator().manual_seed(keep))
    assert reducer(x, Evidence(class_row=torch.full((2, 2, 21), 1 / 21))).tokens(x, None).shape == (2, keep, 6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(5, 24),
    prefix=st.integers(0, 2),
    sized=st.booleans(),
    neighbours=st.sampled_from([2, 5]),
    data=st.data(),
)
def test_dpc_knn_equals_the_loops(
    seed: int, tokens: int, prefix: int, sized: bool, neighbours: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=(4, 6))[rng.integers(0, 4, (2, tokens))] + rng.normal(size=(2, tokens, 6))
    sizes = torch.from_numpy(rng.integers(1, 5, (2, tokens)).astype(np.float32)) if sized else None
    features = torch.from_numpy(x).float()
    outcome = DPCKNN(Stage(4, 12, tokens, keep, prefix, prefix > 0), neighbours=neighbours)(features, Evidence(sizes=sizes))
    found = outcome.tokens(features, sizes)
    for image in range(2):
        patches = x[image, prefix:]
        centres, joins = slow_density_peaks(patches, keep - prefix, neighbours)
        groups = [[c, *(i for i, centre in joins.items() if centre == c)] for c in centres]
        wanted = [*x[image, :prefix], *(patches[group].mean(0) for group in groups)]
        np.testing.assert_allclose(found[image].numpy(), np.array(wanted), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", ["bat", "dpc_knn"])
def test_what_stands_out_survives_where_features_are_large(method: str) -> None:
    """The reference model's features vary far more than DeiT's; with distances in fixed units, digits were averaged away."""
    loaded = load_model("reference")
    model, transform = loaded.model, loaded.transform()
    images = torch.stack([transform(image) for image, _ in map(DigitsInClutter("train").__getitem__, range(24))])
    pruned = edge_tprune.prune(model, method=method, budget=0.65)
    assert (pruned(images).argmax(1) == model(images).argmax(1)).float().mean() > 0.9
