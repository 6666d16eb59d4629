"""What an INT8 graph loses, on photos that calibration never saw, and whether that is too much.

Where two tokens' scores all but tie, integers keep the other one: logits of that image move, and are not worse for it. So the gate asks not how far
a graph is from its own float32 network but how much farther from the unpruned one: the divergence KL(unpruned || graph) in INT8 less that in
float32, which is what its answers lose as judged by the unpruned network's. Both are recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.bundle.parity import Parity
from edge_tprune.errors import InternalError, NegativeAnswer
from edge_tprune.export.calibration import Calibration, distance, outputs_of
from edge_tprune.export.parity import HALF_KL, compare, compare_vectors, selection, to_parity
from edge_tprune.export.settings import BudgetSettings
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.quantization import IntegerType
from edge_tprune.runtime.engine import open_engine

_RUNTIME = "onnxruntime"
_NAMED = 3  # layers that a refusal names
_TRACED = 16  # photos on which the choice of tokens is compared


MOST_FLOAT_LAYERS = 4
"""How many layers a build leaves in float on its own. A few layers carry most of what integers cost; a network that needs more is not one for INT8."""


class IntegerLoss(NegativeAnswer):
    """A graph in INT8 loses more than is allowed.

    Attributes:
        losses: of each layer alone, the most expensive first: its name, and nats or cosine distance.
        loss, allowed: of the graph.
    """

    def __init__(self, message: str, losses: Sequence[tuple[str, float]], loss: float, allowed: float) -> None:
        super().__init__(message)
        self.losses, self.loss, self.allowed = tuple(losses), loss, allowed

    def choose_float_layers(self, there: int) -> tuple[str, ...]:
        """The layers to leave in float so that what the rest loses is expected to be allowed, the loss being the layers' in the ratio of what each loses
        alone: at least one; none beyond the bound.

        Args:
            there: how many were chosen before.
        """
        chosen, rest = list[str](), sum(alone for _, alone in self.losses)
        share = self.loss / rest if rest > 0 else 0.0
        for name, alone in self.losses[: max(0, MOST_FLOAT_LAYERS - there)]:
            if chosen and rest * share <= self.allowed:
                break
            chosen.append(name)
            rest -= alone
        return tuple(chosen)


class IntegerJudge:
    """Judges graphs on a calibration's last photos."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration, settings = calibration, calibration.settings
        judged = calibration.photos.judged
        self.images = (
            judged[:_TRACED] if math.isinf(settings.allowed_loss) else judged
        )  # where nobody wants the answers, a few show that it runs
        full = settings.shape.full_schedule()
        unpruned = PrunedViT(
            calibration.loaded.model, registry.method("none"), full, {}, output=settings.output, normalize=settings.normalize
        )
        self.unpruned = outputs_of(unpruned, self.images)
        self._expected: dict[str, np.ndarray] = {}

    def prove(self, file: Path, budget: BudgetSettings, module: PrunedViT, inputs: IntegerType) -> Parity:
        """A graph's record.

        Args:
            file: the graph.
            budget: whose graph it is.
            module: that it was exported from.
            inputs: integer type of its layers' inputs.

        Raises:
            IntegerLoss: it loses more than is allowed; naming the layers at fault.
            InternalError: the graph is not its module.
        """
        kind = self.calibration.settings.output
        if budget.name not in self._expected:
            self._expected[budget.name] = outputs_of(budget.module, self.images)
        expected, outputs = self._expected[budget.name], self._run(file)
        if not np.isfinite(outputs).all():
            raise NegativeAnswer(f"budget {budget.name}: in int8 its {kind} are not finite. Nothing was written")
        self._check_module(budget.name, module, outputs, kind)
        change = distance(kind, self.unpruned, outputs) - distance(kind, self.unpruned, expected)
        loss = float(change.mean())
        allowed = self.calibration.settings.allowed_loss
        if loss > allowed:
            losses = self.calibration.layer_losses(budget, inputs)
            raise IntegerLoss(self._refusal(budget, losses, loss), losses, loss, allowed)
        few = self.images[:_TRACED]
        same = tuple(selection(budget.module, module, [few]))
        record = _closeness(kind, outputs, expected)
        held = None if math.isinf(allowed) else allowed
        return msgspec.structs.replace(record, selection=same, runtime=_RUNTIME, loss=loss, allowed_loss=held)

    def _run(self, file: Path) -> np.ndarray:
        batch = self.calibration.settings.batch
        images = self.images.numpy()
        missing = -len(images) % batch
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.float32)])
        with open_engine(file, _RUNTIME, threads=torch.get_num_threads()) as engine:
            outputs = [engine.run(images[start : start + batch]) for start in range(0, len(images), batch)]
        return np.concatenate(outputs)[: len(self.images)]

    def _check_module(self, name: str, module: PrunedViT, outputs: np.ndarray, kind: str) -> None:
        """Integers round near ties another way when floats before them differ by rounding, and rarely more."""
        few = self.images[:_TRACED]
        off = float(np.median(distance(kind, outputs_of(module, few), outputs[: len(few)])))
        if not off <= HALF_KL:
            raise InternalError(
                f"budget {name}: the int8 graph is not its module: they differ by {off:.3g} on half of {len(few)} photos. Nothing was written"
            )

    def _refusal(self, budget: BudgetSettings, losses: Sequence[tuple[str, float]], loss: float) -> str:
        worst, settings = losses[:_NAMED], self.calibration.settings
        unit = "nats" if settings.output == LOGITS else "of cosine distance"
        named = ", ".join(f"{name} ({alone:.3f})" for name, alone in worst)
        return (
            f"budget {budget.name}: in int8 it loses {loss:.3f} {unit} (allowed {settings.allowed_loss:g}) on {len(self.images)} photos that were not "
            f"calibrated on. The layers that alone cost most: {named}. Keep layers in float with --float-layers, or leave the budget out. "
            "Nothing was written"
        )


def _closeness(kind: str, outputs: np.ndarray, expected: np.ndarray) -> Parity:
    """How far a graph is from its own float32 network."""
    if kind != LOGITS:
        vectors = compare_vectors(outputs[:, None], expected[:, None], kind)
        assert vectors is not None
        return Parity(images=vectors.images, vectors=vectors)
    near = compare(outputs, expected)
    assert near is not None
    return to_parity(near)
