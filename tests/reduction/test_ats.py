"""ATS against a walk along the cumulative sum in float64, quantile by quantile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_tprune.reduction.methods.ats import ATS
from edge_tprune.reduction.registry import Evidence, Stage
from tests.reduction.loops import slow_significance


def slow_ats(score: dict[int, float], count: int) -> tuple[set[int], float]:
    """The tokens that stay, and how near a quantile came to a border between two tokens."""
    rising = sorted(score, key=lambda j: score[j])
    taken, nearest = set(), 1.0
    for i in range(1, count + 1):
        quantile, walked = (2 * i - 1) / (2 * count), 0.0
        for j in rising:
            walked += score[j]
            nearest = min(nearest, abs(walked - quantile) * count)
        walked = 0.0
        for j in rising:
            walked += score[j]
            if walked >= quantile:
                taken.add(j)
                break
    left = sorted((j for j in score if j not in taken), key=lambda j: -score[j])
    return taken | set(left[: count - len(taken)]), nearest


def run(class_row: np.ndarray, values: np.ndarray, stage: Stage) -> list[list[int]]:
    """The indices that stay, read off tokens that carry their own index."""
    x = torch.arange(float(stage.tokens_in))[None, :, None].repeat(len(class_row), 1, 1)
    evidence = Evidence(class_row=torch.from_numpy(class_row).float(), values=torch.from_numpy(values).float())
    return ATS(stage)(x, evidence).tokens(x, None)[..., 0].int().tolist()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    patches=st.integers(2, 24),
    prefix=st.integers(1, 3),
    batch=st.integers(1, 3),
    sharpness=st.sampled_from([0.1, 1.0, 3.0]),
    data=st.data(),
)
def test_equals_the_walk(seed: int, patches: int, prefix: int, batch: int, sharpness: float, data: st.DataObject) -> None:
    tokens = patches + prefix
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    rng = np.random.default_rng(seed)
    row = np.exp(sharpness * rng.normal(size=(batch, 3, tokens)))
    row /= row.sum(-1, keepdims=True)
    values = rng.normal(size=(batch, tokens, 3, 4))
    found = run(row, values, Stage(4, 12, tokens, keep, prefix, True))
    for image in range(batch):
        wanted, nearest = slow_ats(slow_significance(row[image], values[image], prefix), keep - prefix)
        assume(nearest > 1e-4)
        assert found[image][:prefix] == list(range(prefix))
        assert len(found[image]) == keep
        assert set(found[image][prefix:]) == wanted


def with_scores(*scores: float) -> tuple[np.ndarray, np.ndarray]:
    """One image of one head with a class token and patch tokens of these scores."""
    values = np.zeros((1, 1 + len(scores), 1, 2))
    values[0, :, 0, 0] = 1.0
    return np.array([[[0.1, *scores]]]), values


def test_background_is_sampled_where_the_top_would_not_reach_it() -> None:
    """Of 4 tokens at 0.1 and 12 at 0.05, the 8 highest are the 4 and 4 more; 8 quantiles take one in 2.5 of the 12 instead of the first."""
    scores = [0.05 + 0.0001 * i for i in range(12)] + [0.1 + 0.0001 * i for i in range(4)]
    row, values = with_scores(*scores)
    found = set(run(row, values, Stage(4, 12, 17, 9, 1, True))[0]) - {0}
    top = set(range(9, 17))
    assert found != top
    assert found & set(range(1, 9)), "some of the least significant stay"
    assert slow_ats({j + 1: s / sum(scores) for j, s in enumerate(scores)}, 8)[0] == found


def test_a_token_worth_several_quantiles_stays_once_and_the_next_best_fill_up() -> None:
    row, values = with_scores(0.001, 0.002, 0.99, 0.004, 0.003)
    assert set(run(row, values, Stage(4, 12, 6, 4, 1, True))[0]) == {0, 3, 4, 5}


@pytest.mark.parametrize("scores", [[0.0] * 10, [0.1] * 10, [0.0] * 9 + [1.0], [1e-30] * 9 + [1e-20]])
def test_adversarial_scores_still_give_distinct_tokens(scores: list[float]) -> None:
    for keep in (2, 5, 10):
        found = run(*with_scores(*scores), Stage(4, 12, 11, keep, 1, True))[0]
        assert found[0] == 0
        assert len(set(found)) == keep
        assert scores[9] == scores[0] or 10 in found, "the dominant token stays"


def test_many_tokens_keep_their_exact_counts() -> None:
    """1024 patch tokens, from flat to sharp: float32 sums never sample a token too many."""
    rng = np.random.default_rng(0)
    for sharpness in (0.0, 0.01, 1.0, 4.0):
        row, values = with_scores(*np.exp(sharpness * rng.normal(size=1024)))
        for keep in (2, 400, 1024):
            found = run(row, values, Stage(4, 12, 1025, keep, 1, True))[0]
            assert len(set(found)) == keep
            scores = row[0, 0]
            sure = np.flatnonzero(scores[1:] * (keep - 1) >= 1.001 * scores[1:].sum()) + 1
            assert set(sure.tolist()) <= set(found), "what is worth a whole quantile stays"
