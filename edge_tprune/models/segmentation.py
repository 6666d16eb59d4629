"""A dense task on the canvases of the reference model: which pixels are strokes of the whole digit, read from the features of patches.

The head is shipped (42 KB): two linear layers with a ReLU between them, patch by patch, from a patch's 96 channels to its 8 x 8 pixels.
It was trained on the unpruned backbone's features, which stayed as they were; nothing in it knows of pruning.
`train_segmentation.py` beside this file trains it from seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from edge_tprune.models.reference import GRID, PATCH, SIZE

HEAD = Path(__file__).with_name("segmentation.safetensors")


@dataclass(frozen=True)
class MaskHead:
    """From features to a mask."""

    hidden_weight: np.ndarray  #: (hidden, channels)
    hidden_bias: np.ndarray  #: (hidden,)
    pixel_weight: np.ndarray  #: (64, hidden)
    pixel_bias: np.ndarray  #: (64,)

    @classmethod
    def load(cls, file: Path = HEAD) -> MaskHead:
        """The shipped head, or another one that was trained."""
        return cls(**load_file(file))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (n, C, 14, 14), as `--output features` gives them -> which pixels are of the digit, (n, 112, 112) bool."""
        patches = features.reshape(len(features), features.shape[1], -1).transpose(0, 2, 1)
        hidden = np.maximum(patches @ self.hidden_weight.T + self.hidden_bias, 0)
        return to_image(hidden @ self.pixel_weight.T + self.pixel_bias > 0)


def to_image(pixels: np.ndarray) -> np.ndarray:
    """The pixels of patches (n, 196, 64) side by side: (n, 112, 112)."""
    grid = pixels.reshape(len(pixels), GRID, GRID, PATCH, PATCH)
    return np.asarray(grid.transpose(0, 1, 3, 2, 4).reshape(len(pixels), SIZE, SIZE))


def to_patches(masks: np.ndarray) -> np.ndarray:
    """The inverse of `to_image`."""
    grid = masks.reshape(len(masks), GRID, PATCH, GRID, PATCH)
    return np.asarray(grid.transpose(0, 1, 3, 2, 4).reshape(len(masks), GRID * GRID, PATCH * PATCH))


def intersection_over_union(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of masks (n, H, W) bool, image by image: (n,). 1 where both are empty."""
    common = (found & truth).sum((1, 2))
    either = (found | truth).sum((1, 2))
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)
