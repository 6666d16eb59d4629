"""Golden data: images and PyTorch's logits for them, by which every device finds out whether an engine is the network it should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_tprune.bundle.arrays import DamagedArrays, read_arrays
from edge_tprune.bundle.manifest import GOLDEN, KIND, Manifest
from edge_tprune.errors import UserError
from edge_tprune.runtime.engine import Engine

TOLERANCE = 1e-3  #: how far logits may be from the golden ones, absolute
HALF_TOLERANCE = 1.0
"""The same in half precision, whose rounding may turn a near tie between two tokens: logits of that image then move by tenths. An engine that
computes something else, or overflows, is off by whole numbers or not finite."""
_MOST_BYTES = 1 << 32


@dataclass(frozen=True)
class Golden:
    """What every graph was proved on."""

    images: np.ndarray  #: (G, B, 3, H, W) float32
    logits: dict[str, np.ndarray]  #: by budget: (G, B, classes) float32, from PyTorch in float32


def read_golden(path: Path, manifest: Manifest) -> Golden:
    """The golden data of the bundle at `path`.

    Raises:
        UserError: the file is damaged, or its arrays are not those of this manifest.
    """
    try:
        arrays = read_arrays(path / GOLDEN, _MOST_BYTES, compressed=False)
        images = _array(arrays, "input", manifest.model.input.shape)
        logits = {b.name: _array(arrays, f"logits/{b.name}", manifest.model.output.shape) for b in manifest.budgets}
        for name, values in logits.items():
            if len(values) != len(images):
                raise DamagedArrays(
                    f"logits/{name} are of {len(values)} batches, and there are {len(images)} batches of images"
                )
    except DamagedArrays as error:
        raise UserError(f"bundle {path}: {GOLDEN} is damaged: {error}. {KIND.remedy}") from error
    return Golden(images, logits)


def _array(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any number of batches of `shape`."""
    if name not in arrays:
        raise DamagedArrays(f"it has no array {name!r}")
    array = arrays[name]
    if array.dtype != np.float32 or array.shape[1:] != shape or not len(array):
        raise DamagedArrays(f"{name} is {array.dtype} {array.shape}, not batches of float32 {shape}")
    if not np.isfinite(array).all():
        raise DamagedArrays(f"{name} holds numbers that are not finite")
    return array


def golden_difference(engine: Engine, images: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of an engine's logits from the golden ones, NaN or infinite where a logit is not finite.

    Args:
        engine: opened.
        images: (G, B, 3, H, W).
        expected: (G, B, classes).

    Raises:
        UserError: the engine takes or gives other shapes.
    """
    if engine.output_shape != expected.shape[1:]:
        raise UserError(f"the engine gives logits of shape {engine.output_shape}, but the golden ones are {expected.shape[1:]}")
    logits = np.stack([engine.run(image) for image in images])
    return float(np.abs(logits.astype(np.float64) - expected).max())


def golden_tolerance(precision: str, tolerance: float = TOLERANCE) -> float:
    """What `golden_difference` may be in a precision."""
    return tolerance if precision == "fp32" else max(tolerance, HALF_TOLERANCE)
