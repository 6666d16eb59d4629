"""The random pattern: fixed, seeded, another one at every block."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.reduction.methods.random import RandomPattern
from edge_tprune.reduction.registry import Evidence, Stage


def kept(stage: Stage, seed: int = 0, batch: int = 2) -> list[int]:
    x = torch.arange(float(stage.tokens_in))[None, :, None].repeat(batch, 1, 1)
    tokens = RandomPattern(stage, seed=seed)(x, Evidence()).tokens(x, None)[..., 0]
    assert (tokens == tokens[0]).all(), "every image keeps the same"
    return [int(i) for i in tokens[0].tolist()]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(-5, 10**6), tokens=st.integers(2, 30), prefix=st.integers(0, 3), batch=st.integers(1, 3), data=st.data()
)
def test_a_pattern_of_distinct_patches_behind_the_prefix(
    seed: int, tokens: int, prefix: int, batch: int, data: st.DataObject
) -> None:
    tokens += prefix
    keep = data.draw(st.integers(prefix + 1, tokens - 1))
    found = kept(Stage(3, 12, tokens, keep, prefix, prefix > 0), seed, batch)
    assert found[:prefix] == list(range(prefix))
    assert len(found) == keep
    assert found == sorted(set(found)), "in order, none twice"
    assert found[-1] < tokens


def test_the_same_seed_is_the_same_pattern_and_another_is_not() -> None:
    stage = Stage(3, 12, 197, 140, 1, True)
    assert kept(stage) == kept(stage) != kept(stage, seed=1)
    assert kept(stage) != kept(Stage(4, 12, 197, 140, 1, True)), "another block, another pattern"


def test_every_patch_is_as_likely() -> None:
    stage = Stage(1, 12, 21, 11, 1, True)
    counts = torch.zeros(21)
    for seed in range(400):
        counts[kept(stage, seed, 1)] += 1
    assert counts[0] == 400
    assert (counts[1:] - 200).abs().max() < 5 * 10, "within 5 standard deviations of half"
