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


def slow_significance(class_row: np.ndarray, values: np.ndarray, prefix: int) -> dict[int, float]:
    """One image: class_row (H, N), values (N, H, d) -> significance by patch token, summing to 1."""
    heads, tokens = class_row.shape
    score = {
        j: sum(class_row[h, j] * float(np.sqrt((values[j, h] ** 2).sum())) for h in range(heads)) for j in range(prefix, tokens)
    }
    total = sum(score.values())
    return {j: s / total for j, s in score.items()}
