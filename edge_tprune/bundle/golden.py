"""Golden data: images and PyTorch's outputs for them, by which every device finds out whether an engine is the network it should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_tprune.bundle.arrays import DamagedArrays, read_arrays
from edge_tprune.bundle.manifest import GOLDEN, KIND, Manifest
from edge_tprune.bundle.outputs import LOGITS, cosine_distance, max_difference
from edge_tprune.errors import UserError
from edge_tprune.runtime.engine import Engine

TOLERANCE = 1e-3  #: how far logits may be from the golden ones, absolute; other outputs in units of their root mean square
HALF_TOLERANCE = 1.0
"""The same in half precision, whose rounding may turn a near tie between two tokens: logits of that image then move by tenths. An engine that
computes something else, or overflows, is off by whole numbers or not finite."""
INTEGER_TOLERANCE = 3.0
"""The same in INT8: DeiT-Tiny's largest logit difference on a photo is 0.8 unpruned and 2.9 at budget 0.5; another image's logits are off by 8."""
HALF_VECTOR_TOLERANCE = 0.1
"""The same for outputs other than logits: of the cosine distance. One near tie moves the vectors of a few patches; unrelated vectors are at 1."""
_MOST_BYTES = 1 << 32


@dataclass(frozen=True)
class Golden:
    """What every graph was proved on."""

    images: np.ndarray  #: (G, B, 3, H, W) float32
    outputs: dict[str, np.ndarray]  #: by budget: (G, B, ...) float32, from PyTorch in float32


def read_golden(path: Path, manifest: Manifest) -> Golden:
    """The golden data of the bundle at `path`.

    Raises:
        UserError: the file is damaged, or its arrays are not those of this manifest.
    """
    try:
        arrays = read_arrays(path / GOLDEN, _MOST_BYTES, compressed=False)
        images = _array(arrays, "input", manifest.model.input.shape)
        output = manifest.model.output
        outputs = {b.name: _array(arrays, f"{output.name}/{b.name}", output.shape) for b in manifest.budgets}
        for name, values in outputs.items():
            if len(values) != len(images):
                raise DamagedArrays(
                    f"{output.name}/{name} are of {len(values)} batches, and there are {len(images)} batches of images"
                )
    except DamagedArrays as error:
        raise UserError(f"bundle {path}: {GOLDEN} is damaged: {error}. {KIND.remedy}") from error
    return Golden(images, outputs)


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


def golden_difference(
    engine: Engine, images: np.ndarray, expected: np.ndarray, kind: str = LOGITS, precision: str = "fp32"
) -> float:
    """How far an engine's outputs are from the golden ones (`output_difference`).

    Args:
        engine: opened.
        images: (G, B, 3, H, W).
        expected: (G, B, ...).
        kind: which output it is.
        precision: of the engine.

    Raises:
        UserError: the engine takes or gives other shapes.
    """
    if engine.output_shape != expected.shape[1:]:
        raise UserError(f"the engine gives {kind} of shape {engine.output_shape}, but the golden ones are {expected.shape[1:]}")
    return output_difference(np.stack([engine.run(image) for image in images]), expected, kind, precision)


def output_difference(found: np.ndarray, expected: np.ndarray, kind: str, precision: str) -> float:
    """How far outputs (G, B, ...) are from the golden ones; NaN or infinite where a number is not finite.

    Of logits the largest absolute difference. Of other outputs in float32 the largest difference in units of the root mean square of the
    golden ones; in half precision, whose rounding may turn near ties between tokens, the largest cosine distance of an image.
    """
    if kind == LOGITS or precision == "fp32":
        return max_difference(kind, found, expected)
    if not np.isfinite(found).all():
        return float("nan")
    flat = (-1, *expected.shape[2:])
    return float(cosine_distance(kind, found.reshape(flat), expected.reshape(flat)).max())


def golden_tolerance(precision: str, tolerance: float = TOLERANCE, kind: str = LOGITS) -> float:
    """What `golden_difference` may be in a precision."""
    if precision == "fp32":
        return tolerance
    if kind != LOGITS:
        return max(tolerance, HALF_VECTOR_TOLERANCE)
    return max(tolerance, INTEGER_TOLERANCE if precision == "int8" else HALF_TOLERANCE)
