"""Outlier images, and how near an engine's answers for them have to be.

An engine that is wrong on ordinary images is found by the golden check. One that overflows, saturates or fuses wrongly may be wrong on images only whose
activations are larger than a photo's. So a bundle has a few such images: `edge_tprune.bundle.golden.OUTLIERS`.

On a black image every patch is alike, and which of them a method keeps may hang on rounding. The bound of an image is therefore ten times what rounding
alone changed: noise on the input, the other way of writing attention, ONNX Runtime's kernels, and for a lower precision its module in PyTorch, which
rounds after every operator, and noise of that size. It is not less than a tenth of what ordinary images are allowed, and not more than that, unless
rounding alone moves half as much. Ordinary images are allowed more because near ties on them were not looked for in lower precisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge_tprune.bundle.golden import OUTLIERS, Outliers, golden_tolerance, image_differences
from edge_tprune.errors import NegativeAnswer
from edge_tprune.export.overflow import HalfPrecisionBreak, describe_break
from edge_tprune.export.steadiness import explicit_forms, run_all
from edge_tprune.models.loading import LoadedModel
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import DEFAULT, INTEGERS
from edge_tprune.runtime.engine import open_engine

_ASCENT_STEPS, _ASCENT_STEP = 4, 0.2  # of pixels in [0, 1]
_CELL = 16  # pixels of a checkerboard's squares, at least two of them a side
_COLOUR = (124, 32, 208)  # far from the mean of every data set, and from grey
_ROUNDING = (1e-6, 1e-5, 1e-4)  # noise on normalised pixels: that of another processor's kernels, with room
_HALF_ROUNDING = 2.0**-11, 3  # likewise of a lower precision's, and how many draws
_MARGIN, _FLIP_MARGIN = (
    10.0,
    2.0,
)  # times what rounding changed: where it changed little, and where it changed which tokens are kept


def answers(modules: Sequence[PrunedViT], batches: Tensor) -> list[np.ndarray]:
    """What networks of one model answer to images (batches, B, 3, H, W): (batches, B, ...) each."""
    outputs = run_all(modules, batches.flatten(0, 1))
    return [output.numpy().reshape(*batches.shape[:2], *output.shape[1:]) for output in outputs]


def make_outliers(loaded: LoadedModel, ordinary: Tensor, batch: int) -> Tensor:
    """The images of `OUTLIERS`, normalised: (batches, B, 3, H, W); from the first again until a batch is full.

    Args:
        loaded: the unpruned network.
        ordinary: a photo (3, H, W), normalised, from which the ascent starts.
        batch: B.
    """
    preprocessing = loaded.preprocessing
    channels, height, width = preprocessing.input_size
    colour = torch.tensor(_COLOUR[:channels], dtype=torch.float32) / 255
    cell = max(1, min(_CELL, height // 2, width // 2))
    rows, columns = torch.arange(height) // cell, torch.arange(width) // cell
    checkerboard = ((rows[:, None] + columns) % 2).float().expand(channels, height, width)
    flat = [torch.zeros_like(checkerboard), torch.ones_like(checkerboard), colour[:, None, None].expand_as(checkerboard)]
    images = [_normalise(pixels, preprocessing) for pixels in (*flat, checkerboard)]
    images.append(_ascend(loaded, ordinary))
    assert len(images) == len(OUTLIERS)
    images += [images[place % len(images)] for place in range(-len(images) % batch)]
    return torch.stack(images).reshape(-1, batch, channels, height, width)


def _ascend(loaded: LoadedModel, image: Tensor) -> Tensor:
    """The image (3, H, W) with the largest number in the unpruned network's residual stream, of those that gradient ascent came by.

    Sign steps on pixels, kept within [0, 1] and brought to whole levels of 255, so that it is an image that a camera could give.
    """
    mean, std = _statistics(loaded.preprocessing)
    pixels = _to_levels((image * std + mean).clamp(0, 1))
    best, largest = pixels, -1.0
    with torch.enable_grad():
        for step in range(_ASCENT_STEPS + 1):
            given = pixels.clone().requires_grad_()
            peak = _largest_activation(loaded.model, ((given - mean) / std)[None])
            if float(peak.detach()) > largest:
                best, largest = pixels, float(peak.detach())
            if step < _ASCENT_STEPS:
                (gradient,) = torch.autograd.grad(peak, given)
                pixels = _to_levels((pixels + _ASCENT_STEP * gradient.sign()).clamp(0, 1))
    return _normalise(best, loaded.preprocessing)


def _largest_activation(model: nn.Module, images: Tensor) -> Tensor:
    """The largest absolute number that a block of a network gives, for images (B, 3, H, W)."""
    seen: list[Tensor] = []
    blocks: nn.ModuleList = model.blocks  # type: ignore[assignment]  # every family that an adapter takes has them

    def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.abs().amax())

    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        model.forward_features(images)  # type: ignore[operator]  # timm's
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen).amax()


def _statistics(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return mean, std


def _normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = _statistics(preprocessing)
    return (pixels - mean) / std


def _to_levels(pixels: Tensor) -> Tensor:
    return (pixels * 255).round() / 255


class OutlierProof:
    """Collects, while graphs are written, the answers for outlier images and what their bounds follow from."""

    def __init__(self, batches: Tensor) -> None:
        """Takes images (batches, B, 3, H, W) of `make_outliers`."""
        self._batches = batches
        self._outputs: dict[str, np.ndarray] = {}
        self._moved: dict[tuple[str, str], np.ndarray] = {}  # by budget and precision: (batches, B)

    def add_budgets(self, budgets: Mapping[str, PrunedViT]) -> None:
        """Records the budgets' answers in float32, and how far rounding moves them.

        Raises:
            NegativeAnswer: they are not finite.
        """
        modules = list(budgets.values())
        for (name, module), found in zip(budgets.items(), answers(modules, self._batches)):
            self._outputs[name] = found
            if not np.isfinite(found).all():
                raise NegativeAnswer(
                    f"budget {name}: in float32 its {module.output} are not finite on an outlier image (black, white, one colour, a checkerboard, or "
                    "the one with the largest activations): the network overflows. Check its weights. Nothing was written"
                )
        generator = torch.Generator().manual_seed(0)
        # The unpruned network has no choice that could hang on rounding.
        choosing = {name: module for name, module in budgets.items() if module.reducers}
        for size in _ROUNDING if choosing else ():
            noise = torch.randn(self._batches.shape, generator=generator)
            self._note_all(choosing, self._batches + size * noise)
        with explicit_forms(modules):
            self._note_all(budgets, self._batches)

    def _note_all(self, budgets: Mapping[str, PrunedViT], batches: Tensor) -> None:
        for (name, module), found in zip(budgets.items(), answers(list(budgets.values()), batches)):
            self._note(name, DEFAULT, module.output, found)

    def add_graph(self, name: str, file: Path, exact: PrunedViT, module: PrunedViT) -> None:
        """Records how far a graph, and the module in its precision, are from the answers in float32.

        Args:
            name: of its budget.
            file: the graph.
            exact: the budget's module in float32.
            module: what the graph was exported from.

        Raises:
            HalfPrecisionBreak, NegativeAnswer: numbers that are not finite, where those in float32 are.
        """
        precision, kind = module.precision.name, module.output
        with open_engine(file, "onnxruntime", threads=torch.get_num_threads()) as engine:
            found = [np.stack([engine.run(batch) for batch in self._batches.numpy()])]
        if precision != DEFAULT:
            found += answers([module], self._batches)
            self._add_half_rounding(name, precision, exact)
        for outputs in found:
            if not np.isfinite(outputs).all():
                self._refuse(name, precision, outputs, exact, module)
            self._note(name, precision, kind, outputs)

    def _add_half_rounding(self, name: str, precision: str, exact: PrunedViT) -> None:
        """What noise of the size of half precision's rounding changes in a network that chooses tokens."""
        if (name, precision) in self._moved:
            return
        generator, (size, draws) = torch.Generator().manual_seed(1), _HALF_ROUNDING
        for _ in range(draws if exact.reducers else 0):
            noise = torch.randn(self._batches.shape, generator=generator)
            self._note(name, precision, exact.output, *answers([exact], self._batches + size * noise))

    def _note(self, name: str, precision: str, kind: str, outputs: np.ndarray) -> None:
        moved = image_differences(outputs, self._outputs[name], kind, precision)
        self._moved[name, precision] = np.maximum(self._moved.get((name, precision), 0.0), moved)

    def _refuse(self, name: str, precision: str, outputs: np.ndarray, exact: PrunedViT, module: PrunedViT) -> None:
        broken = ~np.isfinite(outputs).reshape(-1, *outputs.shape[2:]).all(tuple(range(1, outputs.ndim - 1)))
        place = int(broken.argmax())
        text = f"budget {name}: in {precision} its {module.output} are not finite on the outlier image {OUTLIERS[place % len(OUTLIERS)]!r}"
        if precision == INTEGERS:
            raise NegativeAnswer(f"{text}. Keep layers in float with --float-layers. Nothing was written")
        where = describe_break(exact, module, self._batches[place // self._batches.shape[1]])
        others = "mixed or fp32" if precision == "fp16" else "fp32"
        raise HalfPrecisionBreak(f"{text}; {where}. Try --precision {others}. Nothing was written", precision)

    def result(self, kind: str) -> Outliers:
        """What goes into the golden data, of graphs that give `kind`."""
        allowed = {}
        for (name, precision), moved in self._moved.items():
            limit = golden_tolerance(precision, kind=kind)
            most = np.maximum(_FLIP_MARGIN * moved, limit)
            allowed[name, precision] = np.clip(_MARGIN * moved, limit / 10, most).astype(np.float32)
        return Outliers(self._batches.numpy(), self._outputs, allowed)
