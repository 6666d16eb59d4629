"""The reference model and its task: handwritten digits in clutter, from seeds, with no download.

A canvas of 14 x 14 patches (196 tokens and a class token, as in DeiT at 224 pixels) shows one whole digit at a
random place and scale among fragments of other digits; the label is the whole digit. Most tokens therefore carry
nothing that the answer needs, *which* ones differs from image to image, and telling a whole digit from a fragment takes
several blocks: the three properties that make token reduction worth studying. The digits are the 1797 scans bundled with
scikit-learn (UCI optical recognition of handwritten digits); they are split into train and test *before* anything
is drawn, so no test canvas contains a single stroke that the model was trained on.

``make train-reference`` (``train_reference.py`` beside this file) trains the weights shipped in the package and reports their accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

NAME = "reference"
PATCH = 8
GRID = 14
SIZE = PATCH * GRID
CLASSES = 10
MEAN = (0.14, 0.14, 0.14)
STD = (0.20, 0.20, 0.20)
WEIGHTS = Path(__file__).with_name("reference.safetensors")

_TEST_SOURCES = 500
_SPLIT_SEED = 7
_SMALLEST, _LARGEST = 52, 68  # sides of a drawn digit, pixels: 6.5 to 8.5 patches
_STROKE = 0.4  # brightness of a stroke in a digit's drawing
_STREAM = {"train": 1, "test": 2}  # first word of every canvas's seed: the two splits never share a stream


@lru_cache(maxsize=1)
def _sources() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255.0 / 16.0)).astype(np.uint8), digits.target.astype(np.int64)


@lru_cache(maxsize=2)
def source_indices(split: str) -> np.ndarray:
    """Indices into scikit-learn's 1797 digits that `split` ("train" or "test") may draw from; the two are disjoint."""
    if split not in _STREAM:
        raise ValueError(f"split is {split!r}: use 'train' or 'test'")
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(_sources()[0]))
    return np.sort(order[:_TEST_SOURCES] if split == "test" else order[_TEST_SOURCES:])


def _draw(scan: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """One scan (8, 8) drawn `side` pixels wide, slightly turned and slanted; (side, side) float32 in 0..1."""
    turn, slant = rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.1)
    zoom = 9.0 / side  # one pixel of margin around the 8 x 8 scan, so that strokes never touch the frame
    linear = zoom * np.array([[math.cos(turn), math.sin(turn) + slant], [-math.sin(turn), math.cos(turn)]])
    offset = np.array([4.0, 4.0]) - linear @ np.array([side / 2, side / 2])
    coefficients = (*linear[0], offset[0], *linear[1], offset[1])
    image = Image.fromarray(scan).transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32) / 255.0


def _tint(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 1.0, 3).astype(np.float32)


def compose(split: str, index: int, seed: int = 0) -> tuple[np.ndarray, int, tuple[int, int, int]]:
    """Canvas number `index` of `split`: image (112, 112, 3) uint8, label, and (top, left, side) of the whole digit in pixels.

    The same arguments give the same pixels; different indices are independent draws.
    """
    image, label, box, _ = _compose(split, index, seed)
    return image, label, box


def compose_mask(split: str, index: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same canvas, (112, 112, 3) uint8, and which of its pixels are strokes of the whole digit, (112, 112) bool."""
    image, _, (top, left, side), digit = _compose(split, index, seed)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = digit > _STROKE
    return image, mask


def _compose(split: str, index: int, seed: int) -> tuple[np.ndarray, int, tuple[int, int, int], np.ndarray]:
    """Image, label, box and the whole digit as it was drawn, (side, side) in 0..1."""
    rng = np.random.default_rng([_STREAM[split], seed, index])
    scans, labels = _sources()
    pool = source_indices(split)
    target = int(rng.choice(pool))
    side = int(rng.integers(_SMALLEST, _LARGEST + 1))
    top, left = (int(v) for v in rng.integers(0, SIZE - side + 1, 2))
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    for _ in range(int(rng.integers(14, 25))):
        whole = int(rng.integers(_SMALLEST, _LARGEST + 1))
        height, width = (int(v) for v in np.round(rng.uniform(0.3, 0.5, 2) * whole))
        ty, tx = int(rng.integers(0, SIZE - height + 1)), int(rng.integers(0, SIZE - width + 1))
        if ty < top + side and ty + height > top and tx < left + side and tx + width > left:
            continue  # would touch the whole digit
        y, x = (0 if low else whole - extent for low, extent in zip(rng.integers(0, 2, 2), (height, width)))
        piece = _draw(scans[rng.choice(pool)], whole, rng)[y : y + height, x : x + width]
        place = image[ty : ty + height, tx : tx + width]
        np.maximum(place, piece[..., None] * _tint(rng), out=place)
    place = image[top : top + side, left : left + side]
    digit = _draw(scans[target], side, rng)
    np.maximum(place, digit[..., None] * _tint(rng), out=place)
    image += rng.normal(0.05, 0.05, image.shape).astype(np.float32)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), int(labels[target]), (top, left, side), digit


@dataclass(frozen=True)
class DigitsInClutter:
    """The first `count` canvases of a split as a dataset: `len()`, and `[i]` -> (PIL image, label)."""

    split: str = "test"
    count: int = 2000
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        pixels, label, _ = compose(self.split, index, self.seed)
        return Image.fromarray(pixels), label


def build() -> VisionTransformer:
    """The reference architecture with random weights: a timm ViT, 12 blocks, 96 channels, 3 heads, 197 tokens."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, in_chans=3, num_classes=CLASSES, embed_dim=96, depth=12, num_heads=3, mlp_ratio=4
    )
    model.pretrained_cfg = {
        "input_size": (3, SIZE, SIZE),
        "mean": MEAN,
        "std": STD,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "num_classes": CLASSES,
    }
    return model
