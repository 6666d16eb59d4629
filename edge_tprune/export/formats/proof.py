"""The image that comes with a package, the answer to it, and the run by which a package is proved before it is handed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.divergence import log_softmax
from edge_tprune.bundle.golden import TOLERANCE, golden_tolerance
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS, max_difference
from edge_tprune.bundle.predictor import Predictor
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export.formats.graphs import CLASSES, PROBABILITIES
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.runtime.engine import open_engine
from edge_tprune.text import first_line

FRAME = (480, 640)  #: (height, width) of the golden image where the graph does not say it
PIXEL_TOLERANCE = 0.1
"""How far the outputs may be off where the graph resizes: one pixel in ten thousand may be rounded the other way (`formats.resize`)."""
_LEAST = 1e-6  # of a probability that matters


def open_reference(bundle: Bundle, budget: str, artifact: Artifact, threads: int = 1) -> Predictor:
    """The bundle's own graph in ONNX Runtime, which has to pass its golden check.

    Raises:
        NegativeAnswer: it does not: nothing may be exported.
    """
    engine = open_engine(bundle.path / artifact.file, "onnxruntime", threads=threads)
    model = Predictor(bundle, {budget: engine}, budget, artifact.precision)
    try:
        model.check()
    except BaseException:
        model.close()
        raise
    return model


def choose_golden_image(model: Predictor, frame: tuple[int, int]) -> Image.Image:
    """Of the bundle's golden images the one whose best class is surest, as an image of `frame` (height, width)."""
    images = model.bundle.golden().images
    images = images.reshape(-1, *images.shape[2:])
    pictures = [
        to_picture(image, model.bundle.manifest.preprocessing).resize(frame[::-1], Image.Resampling.BICUBIC) for image in images
    ]
    if model.bundle.manifest.model.output.name != LOGITS:
        return pictures[0]
    ranked = np.sort(model(pictures), axis=1)
    margins = ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else np.abs(ranked[:, 0])
    return pictures[int(margins.argmax())]


def to_picture(image: np.ndarray, preprocessing: Preprocessing) -> Image.Image:
    """The picture of a prepared image (C, H, W)."""
    mean, std = (np.array(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    pixels = np.clip(np.round((image * std + mean) * 255), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).convert("RGB")


def run_graph(file: Path, batch: np.ndarray) -> dict[str, np.ndarray]:
    """What a graph gives for a batch, in ONNX Runtime, by name.

    Raises:
        UserError: this ONNX Runtime cannot run it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {session.get_inputs()[0].name: batch})))
    except Exception as error:  # its exception types share no base
        raise UserError(f"ONNX Runtime {onnxruntime.__version__} cannot run the exported graph: {first_line(error)}") from error


def prove(outputs: dict[str, np.ndarray], expected: np.ndarray, kind: str, precision: str, *, resized: bool) -> float:
    """Holds what the exported graph gives for the golden image against what the bundle's graph gives; returns the difference.

    Args:
        outputs: of the exported graph, for one image: its output (...), or probabilities (k,), with the k classes or of all.
        expected: the bundle's output for it.
        kind: of that.
        precision: of the graph.
        resized: whether the graph resizes the image.

    Raises:
        NegativeAnswer: they are not the same.
    """
    allowed = (
        max(PIXEL_TOLERANCE, golden_tolerance(precision, kind=kind))
        if resized
        else golden_tolerance(precision, TOLERANCE, kind)
    )
    if PROBABILITIES in outputs:
        exact = np.exp(log_softmax(expected))[-len(expected) :]  # as `Predictor.top`
        classes = outputs.get(CLASSES, np.arange(len(exact)))
        # By their logarithms, which logits that are off by `allowed` move by twice that at most; probabilities themselves differ by 1 at most.
        found, wanted = (np.log(np.maximum(each, _LEAST)) for each in (outputs[PROBABILITIES], exact[classes]))
        difference, allowed = float(np.abs(found - wanted).max()), 2 * allowed
        same = int(classes[outputs[PROBABILITIES].argmax()]) == int(expected.argmax())
    else:
        difference = max_difference(kind, outputs[kind], expected)
        same = kind != LOGITS or int(outputs[kind].argmax()) == int(expected.argmax())
    if not (difference <= allowed and same):
        raise NegativeAnswer(
            f"the exported graph does not answer as the bundle's: its outputs are off by {difference:.3g} (allowed {allowed:g}), "
            f"the best class is {'the same' if same else 'another'}. Nothing was written"
        )
    return difference
