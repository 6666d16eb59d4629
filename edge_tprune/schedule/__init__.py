"""Budgets, schedules and their MACs. Plain integers: imports neither torch nor numpy."""

from edge_tprune.schedule.budget import DEFAULT_BLOCKS, TOLERANCE, Removal, Schedule, default_blocks, from_budget, from_tokens
from edge_tprune.schedule.macs import BlockShape, NetworkShape

__all__ = [
    "DEFAULT_BLOCKS",
    "TOLERANCE",
    "BlockShape",
    "NetworkShape",
    "Removal",
    "Schedule",
    "default_blocks",
    "from_budget",
    "from_tokens",
]
