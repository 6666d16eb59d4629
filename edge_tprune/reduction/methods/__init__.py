"""The methods, one file each. Importing this package registers them."""

from edge_tprune.reduction.methods import (
    ats,
    bat,
    diffrate,
    dpc_knn,
    evit,
    gtp,
    mctf,
    none,
    pitome,
    pomt,
    ppt,
    random,
    slice,
    tome,
    vote_mix,
    zero_tprune,
)

__all__ = [
    "ats",
    "bat",
    "diffrate",
    "dpc_knn",
    "evit",
    "gtp",
    "mctf",
    "none",
    "pitome",
    "pomt",
    "ppt",
    "random",
    "slice",
    "tome",
    "vote_mix",
    "zero_tprune",
]
