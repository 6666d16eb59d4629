"""Makers of small folders of images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_image(file: Path, seed: int = 0, side: tuple[int, int] = (12, 10), **options: Any) -> Path:
    """Noise, in whatever format the name or `options` say."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side[1], side[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    return file


def save_classes(root: Path, names: Iterable[str], each: int = 1) -> Path:
    """One directory per name, with `each` images."""
    for name in names:
        for i in range(each):
            save_image(root / name / f"{i}.png", i, (4, 4))
    return root
