"""A space to search without a network."""

from __future__ import annotations

from edge_tprune.schedule import NetworkShape
from edge_tprune.search.cost import MacsCost
from edge_tprune.search.space import MethodSpace, SearchSpace

SHAPE = NetworkShape.plain(197, 1, 12, 192, 192, 768, 28_901_376, 192_000)
OPTIONS = {"similar": (0.25, 0.5, 0.75), "votes": (1, 2)}


def any_count(tokens: int) -> int:
    return 2


SPACE = SearchSpace(MacsCost(SHAPE), 0.65, (MethodSpace("zero", any_count, "share", OPTIONS),), 2, 4)
