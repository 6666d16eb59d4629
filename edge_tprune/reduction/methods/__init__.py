"""The methods, one file each. Importing this package registers them."""

from edge_tprune.reduction.methods import evit, none, slice, zero_tprune

__all__ = ["evit", "none", "slice", "zero_tprune"]
