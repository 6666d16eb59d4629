"""Density-peak clustering token by token in float64, from its formulae."""

from __future__ import annotations

import math

import numpy as np


def slow_density_peaks(x: np.ndarray, count: int, neighbours: int = 2) -> tuple[list[int], dict[int, int]]:
    """One image's tokens (N, D): the centres, clearest first, and for every other token the centre that it joins."""
    tokens = len(x)
    unit = sum(float(((x[i] - x[j]) ** 2).sum()) for i in range(tokens) for j in range(tokens)) / tokens**2 or 1.0

    def squared(i: int, j: int) -> float:
        return float(((x[i] - x[j]) ** 2).sum()) / unit

    density = []
    for i in range(tokens):
        nearest = sorted(squared(i, j) for j in range(tokens))[:neighbours]
        density.append(math.exp(-sum(nearest) / len(nearest)))
    farthest = math.sqrt(max(squared(i, j) for i in range(tokens) for j in range(tokens)))

    def is_denser(j: int, i: int) -> bool:
        # Each other's nearest neighbours are equally dense; the earlier counts as denser.
        if abs(2 * math.log(density[j]) - 2 * math.log(density[i])) <= 1e-5:
            return j < i
        return density[j] > density[i]

    clarity = []
    for i in range(tokens):
        denser = [math.sqrt(squared(i, j)) for j in range(tokens) if is_denser(j, i)]
        clarity.append(density[i] * (min(denser) if denser else farthest))
    ranking = sorted(range(tokens), key=lambda i: -clarity[i])
    centres = ranking[:count]
    return centres, {i: min(centres, key=lambda c: squared(i, c)) for i in ranking[count:]}
