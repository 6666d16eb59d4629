"""Golden data: images and PyTorch's outputs for them, by which every device finds out whether an engine is the network it should be.

Ordinary images show an engine that is another network. What overflows, or saturates, may show on outlier images only (`OUTLIERS`), so that a
bundle has those too. Their answers may hang on near ties between tokens (all patches of a black image are alike), so that each has a bound of its
own, from what rounding changed when the bundle was built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_tprune.bundle.arrays import DamagedArrays, read_arrays
from edge_tprune.bundle.manifest import GOLDEN, KIND, Manifest
from edge_tprune.bundle.outputs import LOGITS, cosine_distance, max_difference
from edge_tprune.errors import UserError

TOLERANCE = 1e-3  #: how far logits may be from the golden ones, absolute; other outputs in units of their root mean square
HALF_TOLERANCE = 1.0
"""The same in half precision, whose rounding may turn a near tie between two tokens: logits of that image then move by tenths. An engine that
computes something else, or overflows, is off by whole numbers or not finite."""
INTEGER_TOLERANCE = 3.0
"""The same in INT8: DeiT-Tiny's largest logit difference on a photo is 0.8 unpruned and 2.9 at budget 0.5; another image's logits are off by 8."""
HALF_VECTOR_TOLERANCE = 0.1
"""The same for outputs other than logits: of the cosine distance. One near tie moves the vectors of a few patches; unrelated vectors are at 1."""
OUTLIERS = ("all black", "all white", "one colour", "checkerboard", "large activations")
"""The outlier images of a bundle, in order. The last one was found by gradient ascent on the largest number of the unpruned residual stream."""
_OUTLIER = "outlier"  #: array of their images; the others of them begin with it
_ALLOWED = "allowed"  #: what the arrays with the bounds of ordinary images begin with
_MOST_BYTES = 1 << 32

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Outliers:
    """Images unlike any photo, with a bound for each on how far an engine's output may be."""

    images: np.ndarray  #: (G, B, 3, H, W) float32: `OUTLIERS` in order, then again from the first until the batch is full
    outputs: dict[str, np.ndarray]  #: by budget: (G, B, ...) float32, from PyTorch in float32
    allowed: dict[tuple[str, str], np.ndarray]  #: by budget and precision: (G, B) float32, in the units of `image_differences`


@dataclass(frozen=True)
class Golden:
    """What every graph was proved on."""

    images: np.ndarray  #: (G, B, 3, H, W) float32
    outputs: dict[str, np.ndarray]  #: by budget: (G, B, ...) float32, from PyTorch in float32
    outliers: Outliers | None = None  #: None in older bundles
    allowed: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    """By budget and precision, of graphs in INT8: (G, B) float32, in the units of `image_differences`. Integers may turn a near tie between tokens,
    which moves that image's output by as much as it did when the bundle was built."""

    @property
    def batches(self) -> list[np.ndarray]:
        """Every batch (B, 3, H, W), outliers last."""
        return [*self.images, *([] if self.outliers is None else self.outliers.images)]


@dataclass(frozen=True)
class GoldenResult:
    """How an engine's outputs lie to the golden ones."""

    kind: str  #: which output it is
    difference: float
    """On the ordinary images (`output_difference`), or, where each has a bound of its own, on the one that is farthest off by its bound. NaN or infinite where
    a number is not finite."""
    allowed: float  #: on that image
    outliers: dict[str, tuple[float, float]] = field(default_factory=dict)  #: by image: its difference and what is allowed
    worst_batch: int = 0  #: of `Golden.batches`, the one that is farthest off by what is allowed

    @property
    def failed_outliers(self) -> dict[str, tuple[float, float]]:
        """The outlier images on which it is too far off."""
        return {name: pair for name, pair in self.outliers.items() if not pair[0] <= pair[1]}

    @property
    def passed(self) -> bool:
        """Whether every output is as near as it must be."""
        return self.difference <= self.allowed and not self.failed_outliers

    def describe(self) -> str:
        """What is off, in words; of the ordinary images where those are, else of the worst outlier image."""
        if not self.difference <= self.allowed or not self.failed_outliers:
            return f"its {self.kind} {_describe_distance(self.difference, self.allowed)}"
        name, (difference, allowed) = max(
            self.failed_outliers.items(), key=lambda item: item[1][0] if np.isfinite(item[1][0]) else np.inf
        )
        return f"its {self.kind} {_describe_distance(difference, allowed)} on the outlier image {name!r}"


def _describe_distance(difference: float, allowed: float) -> str:
    if not np.isfinite(difference):
        return "are not finite numbers"
    return f"are off by {difference:.3g} (allowed {allowed:.3g})"


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
        _check_lengths(outputs, images, output.name)
        outliers = _read_outliers(arrays, manifest) if _OUTLIER in arrays else None
        names = {b.name: f"{_ALLOWED}/int8/{b.name}" for b in manifest.budgets}
        allowed = {
            (budget, "int8"): _array(arrays, name, images.shape[1:2]) for budget, name in names.items() if name in arrays
        }
        _check_lengths({name: values for (name, _), values in allowed.items()}, images, _ALLOWED)
    except DamagedArrays as error:
        raise UserError(f"bundle {path}: {GOLDEN} is damaged: {error}. {KIND.remedy}") from error
    return Golden(images, outputs, outliers, allowed)


def _read_outliers(arrays: dict[str, np.ndarray], manifest: Manifest) -> Outliers:
    output = manifest.model.output
    images = _array(arrays, _OUTLIER, manifest.model.input.shape)
    if images.shape[0] * images.shape[1] < len(OUTLIERS):
        raise DamagedArrays(f"{_OUTLIER} holds {images.shape[0] * images.shape[1]} images, and there are {len(OUTLIERS)}")
    outputs = {b.name: _array(arrays, f"{_OUTLIER}/{output.name}/{b.name}", output.shape) for b in manifest.budgets}
    allowed = {
        (budget.name, str(precision)): _array(arrays, f"{_OUTLIER}/allowed/{precision}/{budget.name}", images.shape[1:2])
        for budget in manifest.budgets
        for precision in sorted({artifact.precision for artifact in budget.artifacts})
    }
    _check_lengths(outputs, images, f"{_OUTLIER}/{output.name}")
    _check_lengths(
        {f"{precision}/{name}": values for (name, precision), values in allowed.items()}, images, f"{_OUTLIER}/allowed"
    )
    return Outliers(images, outputs, allowed)


def outlier_arrays(outliers: Outliers, kind: str) -> dict[str, np.ndarray]:
    """The arrays by which `read_golden` knows outlier images, by name.

    Args:
        outliers: the images, and what they are held to.
        kind: which output it is.
    """
    outputs = {f"{_OUTLIER}/{kind}/{name}": values for name, values in outliers.outputs.items()}
    allowed = {f"{_OUTLIER}/allowed/{precision}/{name}": values for (name, precision), values in outliers.allowed.items()}
    return {_OUTLIER: outliers.images, **outputs, **allowed}


def allowed_arrays(allowed: dict[tuple[str, str], np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by which `read_golden` knows the bounds of ordinary images, by name."""
    return {f"{_ALLOWED}/{precision}/{name}": values for (name, precision), values in allowed.items()}


def _check_lengths(outputs: dict[str, np.ndarray], images: np.ndarray, what: str) -> None:
    for name, values in outputs.items():
        if len(values) != len(images):
            raise DamagedArrays(f"{what}/{name} are of {len(values)} batches, and there are {len(images)} batches of images")


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


def check_golden(
    run: Run, golden: Golden, budget: str, kind: str = LOGITS, precision: str = "fp32", tolerance: float = TOLERANCE
) -> GoldenResult:
    """How an engine's outputs lie to the golden ones.

    Args:
        run: the engine's: (B, 3, H, W) to (B, ...).
        golden: of the bundle.
        budget: its name.
        kind: which output it is.
        precision: of the graph.
        tolerance: of a graph in float32.

    Raises:
        UserError: the engine gives another shape.
    """
    expected = golden.outputs[budget]
    found = [run(image) for image in golden.images]
    if found[0].shape != expected.shape[1:]:
        raise UserError(f"the engine gives {kind} of shape {found[0].shape}, but the golden ones are {expected.shape[1:]}")
    difference = output_difference(np.stack(found), expected, kind, precision)
    limit = golden_tolerance(precision, tolerance, kind)
    most, bounds = limit, np.full(expected.shape[:2], limit)
    differences = image_differences(np.stack(found), expected, kind, precision)
    if (budget, precision) in golden.allowed:
        bounds = np.maximum(bounds, golden.allowed[budget, precision])
        place = int(_finite_or_infinite(differences / bounds).argmax())
        difference, most = float(differences.flat[place]), float(bounds.flat[place])
    shares = list(_finite_or_infinite(differences / bounds).max(1))
    judged: dict[str, tuple[float, float]] = {}
    if (outliers := golden.outliers) is not None:
        found = [run(image) for image in outliers.images]
        differences = image_differences(np.stack(found), outliers.outputs[budget], kind, precision)
        allowed = np.maximum(outliers.allowed[budget, precision], tolerance if precision == "fp32" else 0.0)
        shares += list(_finite_or_infinite(differences / allowed).max(1))
        judged = {name: (float(off), float(most)) for name, off, most in zip(OUTLIERS, differences.ravel(), allowed.ravel())}
    return GoldenResult(kind, difference, most, judged, int(np.argmax(shares)))


def _finite_or_infinite(values: np.ndarray) -> np.ndarray:
    """With infinity for what is no number."""
    return np.where(np.isnan(values), np.inf, values)


def image_differences(found: np.ndarray, expected: np.ndarray, kind: str, precision: str) -> np.ndarray:
    """As `output_difference`, of every image alone: (G, B)."""
    return np.array(
        [
            [output_difference(one[None, None], wanted[None, None], kind, precision) for one, wanted in zip(*pair)]
            for pair in zip(found, expected)
        ]
    )


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
    """What `output_difference` may be in a precision."""
    if precision == "fp32":
        return tolerance
    if kind != LOGITS:
        return max(tolerance, HALF_VECTOR_TOLERANCE)
    return max(tolerance, INTEGER_TOLERANCE if precision == "int8" else HALF_TOLERANCE)
