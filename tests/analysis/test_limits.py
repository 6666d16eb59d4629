"""Constraints and the room that is left to them."""

from __future__ import annotations

import pytest

from edge_tprune.analysis.choice import choose
from edge_tprune.statistics import Interval


@pytest.mark.parametrize(
    ("interval", "sure"),
    [
        (Interval(9, 8, 9.5), True),
        (Interval(9, 8, 11), False),
        (Interval(9, 8, None), None),  # too few rounds to know how slow it can get
        (Interval(9, None, 9.5), True),  # how fast it can get does not matter
        (None, None),
    ],
)
def test_headroom_is_sure_where_the_end_that_matters_keeps_the_bound(profiles, interval, sure):
    row = profiles.row(p95_ms=9.0, p50_ms=8.0, intervals={} if interval is None else {"p95_ms": interval})
    (headroom,) = choose([row], {"max_p95_ms": 10}, "latency").headroom
    assert headroom.sure is sure
