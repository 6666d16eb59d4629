"""Where to cut off what a layer reads before it becomes 8-bit integers: from a histogram of it, by four rules.

A wider range rounds everything more coarsely, a narrower one cuts off more. The rules are those of the field: everything that was seen (min-max);
all but a share (percentile); the least loss of information (entropy: Migacz, "8-bit Inference with TensorRT", 2017); the least mean square error
(Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_tprune.reduction.quantization import IntegerType

BINS = 2048
_KEPT = 0.9999  # of the values, by the percentile
_SHRUNK = np.geomspace(1.0, 0.05, 80)  # ends of the range that a search tries, in shares of what was seen
_PASSES = 2  # over both ends
_LEVELS = 256

Range = tuple[float, float]


@dataclass(frozen=True)
class Histogram:
    """What a layer read."""

    low: float
    high: float
    counts: np.ndarray  #: (BINS,), of equal bins from low to high

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        centres: np.ndarray = self.low + width * (np.arange(len(self.counts)) + 0.5)
        return centres


def min_max(seen: Histogram, inputs: IntegerType) -> Range:
    """Everything that was seen."""
    return seen.low, seen.high


def percentile(seen: Histogram, inputs: IntegerType) -> Range:
    """All but one value in 10,000 at either end."""
    share = np.cumsum(seen.counts) / seen.counts.sum()
    width = (seen.high - seen.low) / len(share)
    first, last = np.searchsorted(share, 1 - _KEPT), np.searchsorted(share, _KEPT)
    return seen.low + width * float(first), seen.low + width * float(last + 1)


def mean_square(seen: Histogram, inputs: IntegerType) -> Range:
    """The least mean square of what rounding and cutting off change."""
    centres, weights = seen.centres, seen.counts / seen.counts.sum()

    def error(low: float, high: float) -> float:
        scale, zero = inputs.scale_and_zero(low, high)
        rounded = (np.clip(np.round(centres / scale) + zero, inputs.lowest, inputs.highest) - zero) * scale
        return float(weights @ (rounded - centres) ** 2)

    return _search(seen, inputs, error)


def entropy(seen: Histogram, inputs: IntegerType) -> Range:
    """The least Kullback-Leibler divergence of the distribution in 256 levels from the one that was seen."""
    centres, counts = seen.centres, seen.counts.astype(np.float64)

    def divergence(low: float, high: float) -> float:
        scale, zero = inputs.scale_and_zero(low, high)
        level = np.round(centres / scale) + zero
        inside = (level >= inputs.lowest) & (level <= inputs.highest)
        if not counts[inside].any():  # it holds nothing that was seen
            return math.inf
        first, last = np.flatnonzero(inside)[[0, -1]]
        p = np.where(inside, counts, 0.0)
        q_counts = p.copy()
        p[first] += counts[:first].sum()  # what is cut off ends up at the edge, and the levels know nothing of it
        p[last] += counts[last + 1 :].sum()
        index = np.clip(level, inputs.lowest, inputs.highest).astype(int) - inputs.lowest
        filled = inside & (counts > 0)
        sums = np.bincount(index[inside], q_counts[inside], _LEVELS)
        bins = np.bincount(index[filled], minlength=_LEVELS)
        q = np.where(filled, (sums / np.maximum(bins, 1))[index], 0.0)
        p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-12)
        seen_p = p > 0
        return float((p[seen_p] * np.log(p[seen_p] / q[seen_p])).sum())

    return _search(seen, inputs, divergence)


RULES: dict[str, Callable[[Histogram, IntegerType], Range]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mean-square": mean_square,
}


def _search(seen: Histogram, inputs: IntegerType, loss: Callable[[float, float], float]) -> Range:
    """The range with the least loss: one end after the other, or both together where zero lies in the middle."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if inputs.symmetric:
        limit = max(-low, high)
        best = float(min(_SHRUNK, key=lambda share: loss(-limit * share, limit * share))) * limit
        return -best, best
    found = low, high
    for _ in range(_PASSES):
        found = found[0], high * float(min(_SHRUNK, key=lambda share: loss(found[0], high * share)))
        found = low * float(min(_SHRUNK, key=lambda share: loss(low * share, found[1]))), found[1]
    return found
