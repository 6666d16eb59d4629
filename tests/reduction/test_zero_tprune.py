"""Zero-TPrune against loops over tokens and heads in float64, written from the paper's formulae."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import edge_tprune
from edge_tprune.reduction.methods.zero_tprune import V_MAX, V_MIN, ZeroTPrune, _paper_votes
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.registry import Evidence, Stage


def slow_vote(attention: np.ndarray, score: list[float]) -> list[float]:
    """Token j receives sum_i s_i A_ij."""
    tokens = len(score)
    return [sum(score[i] * attention[i, j] for i in range(tokens)) for j in range(tokens)]


def slow_importance(scores: list[list[float]], members: list[int], head_filter: bool) -> dict[int, float]:
    """EIR with VHF over the members, scores scaled to mean 1 over them."""
    scaled = []
    for score in scores:
        mean = sum(score[i] for i in members) / len(members)
        scaled.append({i: score[i] / mean for i in members})
    passes = []
    for head in scaled:
        variance = sum((head[i] - 1) ** 2 for i in members) / len(members)
        passes.append(not head_filter or V_MIN <= variance <= V_MAX)
    if not any(passes):
        passes = [True] * len(passes)
    return {i: math.sqrt(sum(h[i] ** 2 for h, p in zip(scaled, passes) if p) / sum(passes)) for i in members}


def slow_zero_tprune(
    attention: np.ndarray,
    keys: np.ndarray,
    stage: Stage,
    *,
    similar: float,
    votes: int,
    head_filter: bool,
    uniform: bool,
    renormalise: bool,
    partition: str = "sequential",
    merge: bool = True,
) -> tuple[list[int], dict[int, int]]:
    """One image: attention (H, N, N), keys (N, H, d); returns the tokens that stay, prefix first, and the duplicates with their twins."""
    tokens, prefix = stage.tokens_in, stage.prefix_tokens
    start = [math.sqrt(tokens) if i == 0 and stage.has_class_token and not uniform else 1.0 for i in range(tokens)]
    members = list(range(tokens))
    twins: dict[int, int] = {}
    duplicates = min(round(similar * (tokens - stage.tokens_out)), (tokens - prefix) // 2)
    if duplicates:
        first = [start] * len(attention)
        for _ in range(votes if merge else 1):
            first = [slow_vote(a, score) for a, score in zip(attention, first)]
        guide = slow_importance(first, members, head_filter)
        ranking = sorted(range(prefix, tokens), key=lambda i: -guide[i])
        half = len(ranking) - len(ranking) // 2
        more, less = (ranking[:half], ranking[half:]) if partition == "sequential" else (ranking[::2], ranking[1::2])

        def cosine(a: int, b: int) -> float:
            left, right = keys[a].ravel(), keys[b].ravel()
            return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))

        likeness = {a: max(cosine(a, b) for b in more) for a in less}
        dropped = sorted(less, key=lambda a: -likeness[a])[:duplicates]
        twins = {a: max(more, key=lambda b: cosine(a, b)) for a in dropped}
        if merge:
            return [*range(prefix), *[i for i in ranking if i not in dropped][: stage.tokens_out - prefix]], twins
        members = [i for i in members if i not in dropped]
    scores = []
    for head in attention:
        survivors = head[np.ix_(members, members)]
        if renormalise and duplicates:
            survivors = survivors / survivors.sum(1, keepdims=True)
        score = [start[i] for i in members]
        for _ in range(votes):
            score = slow_vote(survivors, score)
        scores.append(dict(zip(members, score)))
    importance = slow_importance(scores, members, head_filter)  # type: ignore[arg-type]
    ranked = sorted((i for i in members if i >= prefix), key=lambda i: -importance[i])
    return [*range(prefix), *ranked[: stage.tokens_out - prefix]], twins


def evidence_of(
    rng: np.random.Generator, batch: int, heads: int, tokens: int, sharpness: float
) -> tuple[np.ndarray, np.ndarray]:
    logits = rng.normal(size=(batch, heads, tokens, tokens)) * 0.5 + sharpness * rng.normal(size=(batch, heads, 1, tokens))
    attention = np.exp(logits)
    return attention / attention.sum(-1, keepdims=True), rng.normal(size=(batch, tokens, heads, 4))


def run(attention: np.ndarray, keys: np.ndarray, stage: Stage, **options: Any) -> np.ndarray:
    """The indices that stay."""
    return decide(attention, keys, stage, **options).positions(torch.arange(stage.tokens_in).repeat(len(attention), 1)).numpy()


def decide(attention: np.ndarray, keys: np.ndarray, stage: Stage, **options: Any) -> Outcome:
    tokens = torch.zeros(len(attention), stage.tokens_in, 1)
    evidence = Evidence(attention=torch.from_numpy(attention).float(), keys=torch.from_numpy(keys).float())
    return ZeroTPrune(stage, **options)(tokens, evidence)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.integers(6, 22),
    prefix=st.integers(0, 2),
    batch=st.integers(1, 3),
    similar=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    votes=st.sampled_from([1, 2, 5]),
    head_filter=st.booleans(),
    uniform=st.booleans(),
    renormalise=st.booleans(),
    sharpness=st.sampled_from([0.01, 0.3, 1.0, 3.0]),
    partition=st.sampled_from(["sequential", "alternate"]),
    merge=st.booleans(),
    data=st.data(),
)
def test_equals_the_loops(
    seed: int,
    tokens: int,
    prefix: int,
    batch: int,
    similar: float,
    votes: int,
    head_filter: bool,
    uniform: bool,
    renormalise: bool,
    sharpness: float,
    partition: str,
    merge: bool,
    data: st.DataObject,
) -> None:
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    stage = Stage(2, 12, tokens, keep, prefix, has_class_token=prefix > 0)
    attention, keys = evidence_of(np.random.default_rng(seed), batch, 3, tokens, sharpness)
    options = {
        "similar": similar,
        "votes": votes,
        "head_filter": head_filter,
        "uniform_start": uniform,
        "renormalise": renormalise and not merge,
        "partition": partition,
        "merge": merge,
    }
    found = run(attention, keys, stage, **options)
    outcome = decide(attention, keys, stage, **options)
    members = outcome.sums(torch.eye(tokens).expand(batch, -1, -1))
    for image in range(batch):
        wanted, twins = slow_zero_tprune(
            attention[image],
            keys[image],
            stage,
            similar=similar,
            votes=votes,
            head_filter=head_filter,
            uniform=uniform,
            renormalise=renormalise,
            partition=partition,
            merge=merge,
        )
        assert found[image].tolist() == wanted
        for row, token in zip(members[image], wanted):
            assert set(row.nonzero()[:, 0].tolist()) == {token, *(a for a, b in twins.items() if b == token and merge)}


def test_to_the_letter_of_the_paper_what_is_dropped_leaves_no_trace(vit: VisionTransformer, images: torch.Tensor) -> None:
    """Without merging, the tokens that stay are as they were and attention is plain; with it, only duplicates make a difference."""
    logits = {
        (similar, merge): edge_tprune.prune(vit, method="zero_tprune", schedule=[17, 11, 11, 11], similar=similar, merge=merge)(
            images
        )
        for similar in (0.0, 1.0)
        for merge in (False, True)
    }
    assert torch.equal(logits[0.0, False], logits[0.0, True])
    assert not torch.allclose(logits[1.0, False], logits[1.0, True], atol=1e-4)
    attention, keys = evidence_of(np.random.default_rng(2), 2, 3, 15, 0.5)
    x = torch.randn(2, 15, 6)
    outcome = decide(attention, keys, Stage(1, 12, 15, 8, 1, True), similar=0.6, merge=False)
    kept = outcome.positions(torch.arange(15).repeat(2, 1))
    assert torch.equal(outcome.tokens(x, None), torch.stack([image[places] for image, places in zip(x, kept)]))
    assert outcome.sizes(None) is None


def test_votes_converge_to_the_stationary_distribution() -> None:
    """Page rank in the limit is the left eigenvector of A with eigenvalue 1, whatever the start."""
    attention, keys = evidence_of(np.random.default_rng(0), 1, 1, 12, 1.0)
    values, vectors = np.linalg.eig(attention[0, 0].T)
    stationary = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    wanted = [0, *(1 + np.argsort(-stationary[1:])[:5])]
    found = run(attention, keys, Stage(1, 12, 12, 6, 1, True), similar=0.0, votes=60)
    assert found[0].tolist() == wanted


def test_exact_duplicates_go_first() -> None:
    """Two tokens with the same key and little importance: S drops one of each such pair before I prunes anything."""
    rng = np.random.default_rng(5)
    attention, keys = evidence_of(rng, 1, 2, 17, 0.5)
    found_plain = run(attention, keys, Stage(1, 12, 17, 16, 1, True), similar=0.0, votes=1)[0]
    weakest = (set(range(17)) - set(found_plain.tolist())).pop()
    strongest = found_plain[1]
    keys[0, weakest] = keys[0, strongest]
    found = run(attention, keys, Stage(1, 12, 17, 16, 1, True), similar=1.0, votes=1)[0]
    assert set(range(17)) - set(found.tolist()) == {weakest}


def test_adversarial_maps_still_give_distinct_tokens() -> None:
    """Uniform maps (a constant image), one token that takes every vote, identical keys."""
    uniform = np.full((1, 2, 14, 14), 1 / 14)
    hub = np.full((1, 2, 14, 14), 1e-9)
    hub[..., 9] = 1.0
    keys = np.ones((1, 14, 2, 3))
    for attention in (uniform, hub):
        for options in (
            {"similar": 0.5},
            {"similar": 0.5, "merge": False},
            {"similar": 0.0, "votes": 3},
            {"similar": 1.0, "renormalise": True, "merge": False},
        ):
            found = run(attention, keys, Stage(1, 12, 14, 6, 1, True), **options)[0]
            assert found[0] == 0
            assert len(set(found.tolist())) == 6
    assert 9 in run(hub, keys, Stage(1, 12, 14, 3, 1, True), similar=0.0)[0]


def test_zero_keys_do_not_poison_the_scores() -> None:
    attention, keys = evidence_of(np.random.default_rng(1), 1, 2, 10, 0.5)
    found = run(attention, np.zeros_like(keys), Stage(1, 12, 10, 5, 1, True), similar=0.5)[0]
    assert len(set(found.tolist())) == 5


@pytest.mark.parametrize(("block", "votes"), [(1, 30), (3, 30), (4, 5), (9, 5), (10, 1), (12, 1)])
def test_the_papers_numbers_of_votes(block: int, votes: int) -> None:
    assert _paper_votes(Stage(block, 12, 10, 5, 1, True)) == votes
