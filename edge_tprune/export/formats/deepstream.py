"""Format `deepstream`: a configuration of DeepStream's `nvinfer` element, with a graph that takes what it gives.

nvinfer scales the whole frame bilinearly to the network's size and hands over scale * (x - offset) of the pixels, with one offset per channel
but one scale: the std of each channel goes into the patch embedding's weights, which is exact. Its classifier reads probabilities; other outputs are
handed on to the elements that follow.
"""

from __future__ import annotations

import numpy as np
import onnx
from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.graphs import PROBABILITIES, fold_scale, make_probabilities
from edge_tprune.export.formats.readme import describe_outputs, write_readme
from edge_tprune.export.formats.request import ExportRequest, Format, Package
from edge_tprune.models.preprocess import Preprocessing

_MODES = {
    "fp32": (0, "fp32"),
    "fp16": (2, "fp16"),
}  #: precision -> nvinfer's network-mode, and its name in an engine file's name


class DeepStream(Format):
    """A configuration of nvinfer."""

    def check(self, request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:
        """What nvinfer can hold.

        Raises:
            UserError: mixed precision, grey images, preprocessing or top-k in the graph, or a graph of opset 23.
        """
        if artifact.precision not in _MODES:
            raise UserError(
                f"nvinfer has no setting for {artifact.precision} precision, and would choose that of each layer itself: use --precision fp32 or fp16"
            )
        if request.frame is not None or request.top_k is not None:
            option = "--top-k" if request.frame is None else "--fold-preprocessing"
            raise UserError(f"nvinfer prepares frames and ranks classes itself: leave {option} out for format deepstream")
        if len(bundle.manifest.preprocessing.mean) != 3:
            raise UserError("format deepstream is for colour images, and the model takes grey ones")
        if artifact.form == "attention-op":
            raise UserError(
                "DeepStream's TensorRT reads the graph of opset 18: give --runtime tensorrt (and build the bundle with it)"
            )

    def change_graph(self, model: onnx.ModelProto, bundle: Bundle) -> None:
        """Takes what nvinfer gives; gives probabilities instead of logits."""
        preprocessing = bundle.manifest.preprocessing
        fold_scale(model, 1 / (_scale(preprocessing) * 255 * np.array(preprocessing.std)), np.zeros(3))
        if bundle.manifest.model.output.name == LOGITS:
            model.graph.node.append(make_probabilities(bundle.manifest.model.classes, PROBABILITIES, "classifier"))
            model.graph.output[0].name = PROBABILITIES

    def prepare(self, image: Image.Image, bundle: Bundle) -> np.ndarray:
        """What nvinfer would hand over, had it resized as Pillow does."""
        preprocessing = bundle.manifest.preprocessing
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
        pixels = (preprocessing(image) * std + mean) * 255
        return np.asarray(_scale(preprocessing) * (pixels - 255 * mean), np.float32)

    def write(self, package: Package) -> None:
        """The configuration, labels in one line, and the README."""
        if package.labels:
            package.write("labels_deepstream.txt", ";".join(label.replace(";", ",") for label in package.labels) + "\n")
        package.write("config_infer.txt", _config(package))
        height, width = package.bundle.manifest.preprocessing.size
        lines = [
            "```sh",
            "gst-launch-1.0 uridecodebin uri=file:///path/video.mp4 ! mux.sink_0 nvstreammux name=mux batch-size=1 width=1280 height=720 ! "
            "nvinfer config-file-path=config_infer.txt ! nvvideoconvert ! nvdsosd ! nveglglessink",
            "```",
            "",
            f"nvinfer scales the whole frame to {width} x {height}, bilinearly and without cropping; the network was trained on images that are "
            "resized and cropped. Compare accuracy on your own images before you rely on it.",
            describe_outputs(package),
        ]
        if not package.labels:
            lines.append(
                "nvinfer attaches the output to each frame as NvDsInferTensorMeta (`output-tensor-meta`), for your own probe or element."
            )
        if package.artifact.precision == "fp16":
            lines.append(
                "network-mode 2 lets TensorRT run any layer in half precision, norms included, which overflows on some boards: compare the output for "
                "`golden.png` with `golden.json`."
            )
        write_readme(package, lines)


def _scale(preprocessing: Preprocessing) -> float:
    """The one scale that nvinfer multiplies by: that of the mean std, so that the weights of no channel become small."""
    return 1 / (255 * sum(preprocessing.std) / len(preprocessing.std))


def _config(package: Package) -> str:
    """The text of nvinfer's configuration."""
    preprocessing, (mode, suffix) = package.bundle.manifest.preprocessing, _MODES[package.artifact.precision]
    channels, height, width = preprocessing.input_size
    batch = package.bundle.batch
    classifier = {"labelfile-path": "labels_deepstream.txt", "classifier-threshold": 0.0, "classifier-async-mode": 0}
    values = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 1 if package.labels else 100,  # a classifier, or a network whose output nvinfer does not interpret
        "network-mode": mode,
        "batch-size": batch,
        "onnx-file": "model.onnx",
        "model-engine-file": f"model.onnx_b{batch}_gpu0_{suffix}.engine",
        "infer-dims": f"{channels};{height};{width}",
        "model-color-format": 0,
        "net-scale-factor": f"{_scale(preprocessing):.10g}",
        "offsets": ";".join(f"{255 * value:.10g}" for value in preprocessing.mean),
        "maintain-aspect-ratio": 0,
        "output-blob-names": package.about.outputs[0].name,
        "output-tensor-meta": 1,
        **(classifier if package.labels else {}),
    }
    return "[property]\n" + "".join(f"{key}={value}\n" for key, value in values.items())
