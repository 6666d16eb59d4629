"""Pillow's resizing as matrices, so that a graph can do it with matrix products, which every runtime has.

`Image.resize` of 8-bit images goes over rows, then over columns. Each output pixel is a weighted sum of the input pixels within the filter's
support, which grows with the scale where an image is made smaller (this is what "antialias" means); weights are rounded to 22 binary digits
after the point, and each of the two results to a whole number from 0 to 255 (Pillow, `src/libImaging/Resample.c`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_DIGITS = 22


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    return 0.0 if x >= 1.0 else math.sin(math.pi * x) / (math.pi * x) * (0.54 + 0.46 * math.cos(math.pi * x))


def _cubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(math.pi * x) / (math.pi * x)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0


#: Interpolation -> (filter, its support in output pixels).
_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


def resize_matrix(size: int, resized: int, interpolation: str) -> np.ndarray:
    """The weights of one axis: (resized, size) float64, by which a column of `size` pixels is multiplied from the left.

    Args:
        size: pixels that come in.
        resized: pixels that go out.
        interpolation: "bicubic" and the like, or "nearest".
    """
    matrix = np.zeros((resized, size))
    if size == resized:
        return np.eye(size)
    scale = size / resized
    if interpolation == "nearest":
        # Pillow goes from place to place by adding: at ties, its rounding errors say which pixel is the nearest.
        places = np.minimum(np.cumsum(np.r_[scale * 0.5, np.full(resized - 1, scale)]).astype(int), size - 1)
        matrix[np.arange(resized), places] = 1.0
        return matrix
    function, support = _FILTERS[interpolation]
    stretch = max(scale, 1.0)
    for row in range(resized):
        center = (row + 0.5) * scale
        first = max(0, int(center - support * stretch + 0.5))
        last = min(size, int(center + support * stretch + 0.5))
        weights = np.array([function((place - center + 0.5) / stretch) for place in range(first, last)])
        weights /= weights.sum() or 1.0
        matrix[row, first:last] = np.trunc(weights * (1 << _DIGITS) + np.where(weights < 0, -0.5, 0.5)) / (1 << _DIGITS)
    return matrix


def cropped_matrix(size: int, resized: int, offset: int, kept: int, interpolation: str) -> np.ndarray:
    """Resizing and cropping one axis: (kept, size). Rows of places outside the resized image are zero.

    Args:
        size: pixels that come in.
        resized: pixels of the resized image.
        offset: where the crop begins in it; negative where it begins before it.
        kept: pixels of the crop.
        interpolation: as for `resize_matrix`.
    """
    full = resize_matrix(size, resized, interpolation)
    places = np.arange(offset, offset + kept)
    inside = (places >= 0) & (places < resized)
    matrix = np.zeros((kept, size))
    matrix[inside] = full[places[inside]]
    return matrix
