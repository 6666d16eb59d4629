"""How far one network's output is from another's, in the output's own terms, in numbers that need neither torch nor labels.

Logits are compared by their largest difference, top-1 and KL divergence (`edge_tprune.bundle.divergence`). The other outputs are vectors:
one per image (embedding) or one per patch (features, tokens). These are compared by their largest difference in units of the root
mean square of the expected output, because their scale differs from network to network; by the cosine distance; and embeddings by the
nearest neighbours among the images (recall@1 of the unpruned model's).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

OutputKind = Literal["logits", "embedding", "features", "tokens"]
LOGITS, EMBEDDING, FEATURES, TOKENS = "logits", "embedding", "features", "tokens"

RANKS = {LOGITS: 2, EMBEDDING: 2, FEATURES: 4, TOKENS: 3}  #: dimensions of an output, that of the batch included
_CHANNELS = {EMBEDDING: 1, FEATURES: 1, TOKENS: 2}  #: the axis of a vector's channels; axis 0 is the image
_BLOCK = 1024  # images whose neighbours are looked for at once
FEWEST_NEIGHBOURS = 3  #: images: with two, each is the other's neighbour whatever the network


_LARGE = 10.0  #: root mean square of logits, beyond that of any classifier that is sure of itself


def max_difference(kind: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of an output from the expected one, in its `unit`.

    NaN or infinite where a number of `found` is not finite.

    Args:
        kind: which output it is.
        found: any shape.
        expected: of the same shape.
    """
    worst = float(np.abs(found.astype(np.float64) - expected).max())
    return worst / unit(kind, expected)


def unit(kind: str, expected: np.ndarray) -> float:
    """What differences of an output are counted in: its root mean square; of logits 1, or a tenth of that where it is more.

    The softmax of logits knows no scale but 1. Where they are hundreds, or are no logits but amounts, rounding alone moves them by more than it
    moves those of a classifier.
    """
    return max(1.0, scale(expected) / _LARGE) if kind == LOGITS else scale(expected)


def scale(expected: np.ndarray) -> float:
    """The root mean square of an output; 1 where it is all zero."""
    return float(np.sqrt(np.square(expected.astype(np.float64)).mean())) or 1.0


def cosine_distance(kind: str, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """1 - cosine of two outputs' vectors, (n,): of each image's embedding, or the mean over all its patches or tokens.

    Args:
        kind: "embedding", "features" or "tokens".
        found: (n, D), (n, C, H, W) or (n, N, C).
        expected: of the same shape.
    """
    axis = _CHANNELS[kind]
    cosine = (_to_unit(found, axis) * _to_unit(expected, axis)).sum(axis)
    return np.asarray(np.clip(1.0 - cosine, 0.0, 2.0).reshape(len(found), -1).mean(1))


def nearest_neighbours(embeddings: np.ndarray) -> np.ndarray:
    """Of each image the other one whose embedding has the largest cosine with it: (N,) int64; ties go to the lower index.

    Args:
        embeddings: (N, D), N at least 2.
    """
    unit = _to_unit(embeddings, 1)
    found = np.empty(len(unit), np.int64)
    for first in range(0, len(unit), _BLOCK):
        rows = slice(first, first + _BLOCK)
        cosine = unit[rows] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(first, first + len(cosine))] = -np.inf
        found[rows] = cosine.argmax(1)
    return found


def _to_unit(vectors: np.ndarray, axis: int) -> np.ndarray:
    exact = vectors.astype(np.float64)
    length = np.sqrt(np.square(exact).sum(axis, keepdims=True))
    return np.asarray(exact / np.where(length > 0, length, 1.0))
