"""Density-peak clustering token by token in float64, from its formulae."""

from __future__ import annotations

import math

import numpy as np


def slow_density_peaks(x: np.ndarray, count: int, neighbours: int = 2) -> tuple[list[int], dict[int, int]]:
    """One image's tokens (N, D): the centres, clearest first, and for every other token the centre that it joins."""
    tokens = len(x)

    def squared(i: int, j: int) -> float:
        return float(((x[i] - x[j]) ** 2).sum())

    radius = []
    for i in range(tokens):
        nearest = sorted(squared(i, j) for j in range(tokens))[:neighbours]
        radius.append(sum(nearest) / len(nearest))
    mean = sum(radius) / tokens or 1.0
    # Each other's nearest neighbours are equally dense; the earlier counts as denser.
    density = [math.exp(-radius[i] / (4 * mean) - 5e-6 * i) for i in range(tokens)]
    farthest = math.sqrt(max(squared(i, j) for i in range(tokens) for j in range(tokens)))

    clarity = []
    for i in range(tokens):
        denser = [math.sqrt(squared(i, j)) for j in range(tokens) if density[j] > density[i]]
        clarity.append(density[i] * (min(denser) if denser else farthest))
    ranking = sorted(range(tokens), key=lambda i: -clarity[i])
    centres = ranking[:count]
    return centres, {i: min(centres, key=lambda c: squared(i, c)) for i in ranking[count:]}
