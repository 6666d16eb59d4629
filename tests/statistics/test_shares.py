"""Intervals of shares, and of differences of paired ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.statistics import (
    mcnemar,
    paired_share_difference,
    proportion_interval,
)


@given(st.integers(0, 40), st.integers(1, 40))
def test_proportions_are_exact_intervals(count, total):
    if count > total:
        with pytest.raises(ValueError, match="count <= total"):
            proportion_interval(count, total)
        return
    interval = proportion_interval(count, total)

    def at_least(share, least):
        return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(least, total + 1))

    assert interval.low <= interval.value <= interval.high
    if count:  # were the share at the lower end, so many would come once in forty times
        assert at_least(interval.low, count) == pytest.approx(0.025)
    if count < total:
        assert 1 - at_least(interval.high, count + 1) == pytest.approx(0.025)


@given(st.integers(0, 14), st.integers(0, 14))
def test_mcnemar_counts_every_way_the_split_could_have_gone(first, second):
    discordant = first + second
    ways = [math.comb(discordant, k) for k in range(discordant + 1)]
    as_uneven = sum(way for k, way in enumerate(ways) if abs(2 * k - discordant) >= abs(first - second))
    assert mcnemar(first, second) == pytest.approx(as_uneven / 2**discordant)
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(80, 400))
def test_a_paired_difference_of_shares_is_centred_and_covers_its_value(first: int, second: int, total: int) -> None:
    found = paired_share_difference(first, second, total)
    assert found.value == pytest.approx((first - second) / total)
    assert -1 <= found.low < found.high <= 1
    mirrored = paired_share_difference(second, first, total)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert paired_share_difference(4 * first, 4 * second, 4 * total).high - found.value <= found.high - found.value + 1e-12


def test_a_paired_difference_of_shares_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    only_first, only_second, total, covered = 0.06, 0.03, 300, 0
    for _ in range(2000):
        counts = rng.multinomial(total, [only_first, only_second, 1 - only_first - only_second])
        found = paired_share_difference(int(counts[0]), int(counts[1]), total)
        covered += found.low <= only_first - only_second <= found.high
    assert 0.935 <= covered / 2000 <= 0.975


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_make_no_sense_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="make no sense"):
        paired_share_difference(*counts)
