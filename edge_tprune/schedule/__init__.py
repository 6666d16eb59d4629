"""Budgets, schedules and their MACs. Plain integers: imports neither torch nor numpy."""

from edge_tprune.schedule.budget import (
    DEFAULT_BLOCKS,
    TOLERANCE,
    Removal,
    Schedule,
    default_blocks,
    from_budget,
    from_counts,
    from_tokens,
)
from edge_tprune.schedule.macs import PLACES, BlockShape, NetworkShape, Place

__all__ = [
    "DEFAULT_BLOCKS",
    "PLACES",
    "TOLERANCE",
    "BlockShape",
    "NetworkShape",
    "Place",
    "Removal",
    "Schedule",
    "default_blocks",
    "from_budget",
    "from_counts",
    "from_tokens",
]
