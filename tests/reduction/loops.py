"""What the methods' tests against loops in float64 share."""

from __future__ import annotations

import numpy as np
import torch


def random_sizes(rng: np.random.Generator, batch: int, tokens: int, sized: bool) -> tuple[np.ndarray, torch.Tensor | None]:
    """Sizes (B, N) from 1 to 8, as the loops read them and as a reducer is given them; all 1, of which it is given none, unless `sized`."""
    if not sized:
        return np.ones((batch, tokens)), None
    sizes = rng.integers(1, 9, size=(batch, tokens)).astype(float)
    return sizes, torch.from_numpy(sizes).float()


def slow_halves(tokens: int, prefix: int) -> tuple[list[int], list[int]]:
    """Patch tokens at even places, and those at odd ones."""
    return [i for i in range(prefix, tokens) if i % 2 == 0], [i for i in range(prefix, tokens) if i % 2 == 1]


def slow_significance(class_row: np.ndarray, values: np.ndarray, prefix: int) -> dict[int, float]:
    """One image: class_row (H, N), values (N, H, d) -> significance by patch token, summing to 1."""
    score = {j: float(class_row[:, j].sum() * np.sqrt((values[j] ** 2).sum())) for j in range(prefix, len(values))}
    total = sum(score.values())
    return {j: s / total for j, s in score.items()}
