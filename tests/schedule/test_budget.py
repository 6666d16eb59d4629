"""Budgets become schedules that realise them, or say what is nearest."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.schedule import NetworkShape, default_blocks, from_budget, from_tokens

SMALL = NetworkShape.plain(197, 1, 12, 384, 384, 1536, 196 * 384 * 768, 384 * 1000)
REGISTERS = NetworkShape.plain(201, 5, 12, 384, 384, 1536, 196 * 384 * 768, 384 * 1000)


@settings(max_examples=60, deadline=None)
@given(
    budget=st.floats(0.05, 1.0),
    blocks=st.sets(st.integers(1, 12), min_size=1, max_size=12),
    multiple=st.sampled_from([1, 1, 2, 8, 16]),
    shape=st.sampled_from([SMALL, REGISTERS]),
)
def test_every_schedule_is_sound_and_near_or_says_so(
    budget: float, blocks: set[int], multiple: int, shape: NetworkShape
) -> None:
    try:
        schedule = from_budget(shape, budget, sorted(blocks), multiple_of=multiple)
    except UserError as error:
        if "nearest reachable" not in str(error):
            raise
        return
    assert shape.check(schedule.tokens) == schedule.tokens
    assert schedule.share == pytest.approx(shape.macs(schedule.tokens) / shape.macs())
    previous = shape.tokens
    for block, count in enumerate(schedule.tokens, 1):
        if count != previous:
            assert block in blocks, "tokens went where no removal was allowed"
            assert count % multiple == 0
        previous = count
    assert abs(schedule.share - budget) <= 0.01 * budget or "nearest reachable" in schedule.remark


@pytest.mark.parametrize("budget", [0.95, 0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.4])
@pytest.mark.parametrize("multiple", [1, 8])
def test_common_budgets_are_met_within_one_percent(budget: float, multiple: int) -> None:
    schedule = from_budget(SMALL, budget, (4, 7, 10), multiple_of=multiple)
    assert abs(schedule.share - budget) <= 0.01 * budget
    assert not schedule.remark


def test_counts_are_as_good_as_an_exhaustive_search_nearby() -> None:
    """With two stages every pair of counts can be tried; among those that keep like shares, none is much nearer."""
    shape = NetworkShape.plain(50, 1, 4, 64, 64, 256, 0, 0)
    for budget in (0.9, 0.8, 0.7, 0.6):
        found = from_budget(shape, budget, (2, 3))
        gaps = [
            abs(shape.share((50, a, b, b)) - budget)
            for a, b in product(range(2, 51), repeat=2)
            if b <= a and abs((a - 1) / 49 - (b - 1) / max(1, a - 1)) < 0.02
        ]
        assert abs(found.share - budget) <= min(gaps) + 0.005


@pytest.mark.parametrize("multiple", [8, 16, 32, 64])
def test_with_multiples_the_nearest_really_is_the_nearest(multiple: int) -> None:
    """Every budget against every triple of multiples: within 1 % where any triple is, else the nearest of all, and it says so."""
    counts = range(multiple, 198, multiple)
    shares = [
        SMALL.share((197,) * 3 + (a,) * 3 + (b,) * 3 + (c,) * 3) for a, b, c in product(counts, repeat=3) if a >= b >= c
    ] + [1.0]
    for budget in (0.95, 0.88, 0.8, 0.72, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4):
        if min(shares) > 1.01 * budget:
            with pytest.raises(UserError, match=f"nearest reachable is {min(shares):.3f}"):
                from_budget(SMALL, budget, (4, 7, 10), multiple_of=multiple)
            continue
        found = from_budget(SMALL, budget, (4, 7, 10), multiple_of=multiple)
        nearest = min(abs(share - budget) for share in shares)
        assert abs(found.share - budget) <= max(nearest, 0.01 * budget) + 1e-12
        assert bool(found.remark) == (abs(found.share - budget) > 0.01 * budget)


def test_the_unpruned_budget_removes_nothing() -> None:
    schedule = from_budget(SMALL, 1.0, (4, 7, 10))
    assert schedule.tokens == (197,) * 12
    assert schedule.share == 1


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01, 65])
def test_budgets_out_of_range_are_refused(budget: float) -> None:
    with pytest.raises(UserError, match="out of range"):
        from_budget(SMALL, budget, (4, 7, 10))


def test_an_unreachable_budget_names_the_nearest() -> None:
    lowest = SMALL.share((197,) * 3 + (2,) * 9)
    with pytest.raises(UserError, match=rf"budget 0\.2 cannot be reached .* nearest reachable is {lowest:.3f}"):
        from_budget(SMALL, 0.2, (4, 7, 10))


def test_blocks_outside_the_model_are_refused() -> None:
    with pytest.raises(UserError, match="has blocks 1 to 12"):
        from_budget(SMALL, 0.5, (4, 13))


def test_default_blocks_keep_their_relative_depth() -> None:
    assert default_blocks(12) == (4, 7, 10)
    assert default_blocks(24) == (7, 13, 19)
    assert default_blocks(1) == (1,)


def test_a_given_schedule_is_kept() -> None:
    tokens = (197, 190, 180, 170, 160, 150, 140, 130, 120, 110, 100, 90)
    assert from_tokens(SMALL, tokens).tokens == tokens
