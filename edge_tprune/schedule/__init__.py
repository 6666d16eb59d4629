"""Budgets, schedules and their MACs. Plain integers: imports neither torch nor numpy."""

from edge_tprune.schedule.budget import DEFAULT_BLOCKS, TOLERANCE, Removal, Schedule, default_blocks, from_budget, from_tokens
from edge_tprune.schedule.macs import NetworkShape

__all__ = ["DEFAULT_BLOCKS", "TOLERANCE", "NetworkShape", "Removal", "Schedule", "default_blocks", "from_budget", "from_tokens"]
