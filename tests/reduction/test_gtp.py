"""GTP against loops over tokens in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.reduction.methods.gtp import GTP
from edge_tprune.reduction.registry import Evidence, Stage


def slow_ranking(attention: np.ndarray, prefix: int) -> tuple[list[int], float]:
    """One image: attention (H, N, N) -> patches from most to least important, and the narrowest decision."""
    heads, tokens, _ = attention.shape
    importance = {}
    for j in range(prefix, tokens):
        regeneration = max(attention[h, j, j] for h in range(heads))
        broadcasting = max(sum(attention[h, i, j] for i in range(tokens)) for h in range(heads))
        importance[j] = regeneration * broadcasting
    ranking = sorted(importance, key=lambda j: -importance[j])
    return ranking, min((importance[i] / importance[j] - 1 for i, j in pairwise(ranking)), default=1.0)


def slow_spatial_flow(kept: int, removed: int, rows: int, columns: int) -> float:
    """What patch `removed` of a grid passes on to patch `kept`, for alpha = 1."""

    def around(patch: int) -> list[int]:
        row, column = divmod(patch, columns)
        near = [(row + dr, column + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if (dr, dc) != (0, 0)]
        return [r * columns + c for r, c in near if 0 <= r < rows and 0 <= c < columns]

    return 1 / np.sqrt(len(around(kept)) * len(around(removed))) if removed in around(kept) else 0.0


def slow_semantic_flow(x: np.ndarray, kept: list[int], removed: int, neighbours: int) -> tuple[dict[int, float], float]:
    """What token `removed` passes on to each token kept, for alpha = 1, and the narrowest decision."""
    cosine = {i: float(x[i] @ x[removed] / np.sqrt((x[i] @ x[i]) * (x[removed] @ x[removed]))) for i in kept}
    nearest = sorted(kept, key=lambda i: -cosine[i])
    gap = cosine[nearest[neighbours - 1]] - cosine[nearest[neighbours]] if neighbours < len(kept) else 1.0
    weight = {i: max(cosine[i], 0.0) for i in nearest[:neighbours]}
    total = sum(weight.values())
    return {i: w / total if total else 0.0 for i, w in weight.items()}, min(gap, total) if total else gap


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    prefix=st.integers(0, 3),
    batch=st.integers(1, 3),
    graph=st.sampled_from(["semantic", "spatial"]),
    neighbours=st.integers(1, 6),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    sized=st.booleans(),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int,
    rows: int,
    columns: int,
    prefix: int,
    batch: int,
    graph: str,
    neighbours: int,
    alpha: float,
    sized: bool,
    data: st.DataObject,
) -> None:
    patches = rows * columns
    left = data.draw(st.integers(2, patches)) if patches > 1 else 0  # those that earlier stages left
    assume(left)
    keep = data.draw(st.integers(1, left - 1))
    tokens = prefix + left
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, tokens, 5))
    attention = rng.normal(scale=2, size=(batch, 2, tokens, tokens))
    attention = np.exp(attention) / np.exp(attention).sum(-1, keepdims=True)
    sizes = rng.uniform(1, 3, size=(batch, tokens)) if sized else np.ones((batch, tokens))
    places = np.stack([np.r_[np.arange(prefix), prefix + rng.permutation(patches)[:left]] for _ in range(batch)])
    stage = Stage(4, 12, tokens, prefix + keep, prefix, prefix > 0, (rows, columns))
    reducer = GTP(stage, graph=graph, neighbours=neighbours, alpha=alpha)
    given_sizes = torch.from_numpy(sizes).float() if sized else None
    evidence = Evidence(attention=torch.from_numpy(attention).float(), positions=torch.from_numpy(places), sizes=given_sizes)
    features = torch.from_numpy(x).float()
    outcome = reducer(features, evidence)
    found, found_sizes = outcome.tokens(features, given_sizes), outcome.sizes(given_sizes)
    assert torch.equal(found[:, :prefix], features[:, :prefix])
    for image in range(batch):
        ranking, gap = slow_ranking(attention[image], prefix)
        kept, removed = ranking[:keep], ranking[keep:]
        wanted = {i: x[image, i].copy() for i in kept}
        wanted_sizes = {i: sizes[image, i] for i in kept}
        for j in removed:
            if graph == "spatial":
                flow = {i: slow_spatial_flow(places[image, i] - prefix, places[image, j] - prefix, rows, columns) for i in kept}
            else:
                flow, narrowest = slow_semantic_flow(x[image], kept, j, min(neighbours, keep))
                gap = min(gap, narrowest)
            for i, share in flow.items():
                wanted[i] += alpha * share * x[image, j]
                wanted_sizes[i] += alpha * share * sizes[image, j]
        if gap < 1e-4:
            continue
        assert outcome.positions(evidence.positions)[image, prefix:].tolist() == [places[image, i] for i in kept]
        np.testing.assert_allclose(found[image, prefix:].numpy(), [wanted[i] for i in kept], atol=1e-4)
        np.testing.assert_allclose(found_sizes[image, prefix:].numpy(), [wanted_sizes[i] for i in kept], rtol=1e-4)


def random_evidence(tokens: int) -> tuple[torch.Tensor, Evidence]:
    generator = torch.Generator().manual_seed(5)
    attention = (2 * torch.randn(2, 2, tokens, tokens, generator=generator)).softmax(-1)
    places = torch.arange(tokens).expand(2, -1)
    return torch.randn(2, tokens, 4, generator=generator), Evidence(attention=attention, positions=places)


@pytest.mark.parametrize("graph", ["semantic", "spatial"])
def test_alpha_0_drops(graph: str) -> None:
    x, evidence = random_evidence(17)
    outcome = GTP(Stage(1, 12, 17, 10, 1, True, (4, 4)), graph=graph, alpha=0.0)(x, evidence)
    assert evidence.positions is not None
    kept = outcome.positions(evidence.positions)
    assert torch.equal(outcome.tokens(x, None), x.gather(1, kept[..., None].expand(-1, -1, 4)))
    assert torch.equal(outcome.sizes(None), torch.ones(2, 10))


@pytest.mark.parametrize("seed", range(5))
def test_a_semantic_flow_sums_to_alpha(seed: int) -> None:
    """Whatever the tokens, even all alike or all zero, none passes on more than alpha of itself."""
    x, evidence = random_evidence(17)
    for tokens in (x, x.abs(), torch.ones_like(x), torch.zeros_like(x), 1e4 * x.abs()):
        outcome = GTP(Stage(1, 12, 17, 10, 1, True), alpha=0.3)(tokens, evidence)
        parts = outcome.sums(torch.eye(17).expand(2, -1, -1)).sum(1)
        removed = parts[parts != 1]
        assert (removed <= 0.3 + 1e-5).all()
        if tokens.min() > 0.01:
            torch.testing.assert_close(removed, torch.full_like(removed, 0.3), rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["class token", "none"])
def test_the_spatial_graph_knows_the_grid_and_what_is_left_of_it(prefix: str) -> None:
    """On an image that is not square and after earlier stages, parts go to neighbours in the image only."""
    torch.manual_seed(0)
    first = int(prefix == "class token")
    model = VisionTransformer(
        img_size=(24, 40), patch_size=8, embed_dim=24, depth=3, num_heads=3, class_token=bool(first), global_pool="avg"
    ).eval()
    pruned = edge_tprune.prune(model, method="gtp", schedule=[first + n for n in (12, 8, 8)], graph="spatial")
    traced = pruned.trace(torch.randn(4, 3, 24, 40))
    for image in range(4):
        for token in traced[0][image, first:, first:]:
            (own,) = (token == 1).nonzero()[0].tolist()
            for other in token.nonzero()[:, 0].tolist():
                assert max(abs(own // 5 - other // 5), abs(own % 5 - other % 5)) <= 1
    assert (traced[1][:, first:] > 0).sum() > (traced[0][:, first:] > 0).sum(), "the second stage passes on what the first did"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"graph": "spectral"}, "graph is 'spectral'; it is one of semantic, spatial"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": -0.1}, "alpha is -0.1"),
    ],
)
def test_options_are_checked(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=f"method gtp: {says}"):
        GTP(Stage(1, 12, 17, 10, 1, True), **options)  # type: ignore[arg-type]
