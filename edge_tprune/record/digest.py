"""The distribution of any number of latencies in a bounded amount of memory."""

from __future__ import annotations

import math

import numpy as np

from edge_tprune.statistics import nearest_rank

_MOST_KEYS = 100_000  #: distinct values that are counted separately; beyond that neighbours are joined


class Digest:
    """Counts of integer values in bins of 2^k ns.

    A bin is one nanosecond wide, so percentiles are exact, until more than `most` distinct values have come; then bins are joined
    in pairs. Latencies that spread over a millisecond are resolved to 16 ns, however many there are. Mean, deviation,
    least and greatest are always exact (means are merged as in Chan, Golub and LeVeque 1979).
    """

    def __init__(self, most: int = _MOST_KEYS) -> None:
        self._most = most
        self._shift = 0
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self.count = 0
        self.total = 0.0
        self._squares = 0.0  #: sum of squared deviations from the mean
        self.least: int | None = None
        self.greatest: int | None = None

    @property
    def width_ns(self) -> int:
        """How far a percentile may be off."""
        return 1 << self._shift

    def add(self, values: np.ndarray) -> None:
        """Takes in `values` (N,), int64, not negative."""
        if not values.size:
            return
        total, mean = float(values.sum()), float(values.mean())
        if self.count:
            gap = mean - self.total / self.count
            self._squares += gap * gap * self.count * values.size / (self.count + values.size)
        self._squares += float(np.square(values - mean).sum())
        self.total += total
        self.count += int(values.size)
        low, high = int(values.min()), int(values.max())
        self.least = low if self.least is None else min(self.least, low)
        self.greatest = high if self.greatest is None else max(self.greatest, high)
        keys, counts = np.unique(values >> self._shift, return_counts=True)
        self._merge(np.concatenate([self._keys, keys]), np.concatenate([self._counts, counts]))
        while self._keys.size > self._most:
            self._shift += 1
            self._merge(self._keys >> 1, self._counts)

    def percentile(self, percent: float) -> float | None:
        """The nearest-rank percentile: the least value that at least `percent` % do not exceed; None where there is none."""
        if not self.count or self.least is None or self.greatest is None:
            return None
        rank = nearest_rank(self.count, percent / 100)
        key = int(self._keys[np.searchsorted(np.cumsum(self._counts), rank, side="right")])
        middle = (key << self._shift) + (self.width_ns - 1) / 2
        return float(min(max(middle, self.least), self.greatest))

    @property
    def mean(self) -> float | None:
        """Arithmetic mean; None where there is no value."""
        return self.total / self.count if self.count else None

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation (n - 1); None for fewer than two values."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else None

    def _merge(self, keys: np.ndarray, counts: np.ndarray) -> None:
        self._keys, where = np.unique(keys, return_inverse=True)
        self._counts = np.bincount(where, weights=counts).astype(np.int64)
