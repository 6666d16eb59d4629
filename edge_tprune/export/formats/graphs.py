"""A bundle's graph as another program wants it: its weights inside, a camera's frames as input, the best classes as output.

Everything is written in operators of opset 18 that every runtime has, with static shapes: casts, slices, matrix products, floor, clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.resize import cropped_matrix
from edge_tprune.models.preprocess import Preprocessing

FRAMES, PROBABILITIES, CLASSES = "frames", "probabilities", "classes"
#: Output pixels that one matrix product makes: they need few input pixels, and a product of all would be mostly zeros.
_BLOCK = 32
_LARGEST_BYTES = (1 << 31) - (1 << 20)  #: of a protocol buffer, less something for the graph itself


def read_graph(bundle: Bundle, artifact: Artifact) -> onnx.ModelProto:
    """A graph of a bundle with its weights inside.

    Raises:
        UserError: it cannot be read, or with its weights is larger than one ONNX file can be.
    """
    file = bundle.path / artifact.file
    try:
        model = onnx.load(str(file))
    except Exception as error:  # protobuf's errors are of a kind of their own
        raise UserError(f"graph {file} cannot be read: {error}") from error
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > _LARGEST_BYTES:
        raise UserError(
            f"{file} has {size / 1e9:.1f} GB of weights, and one ONNX file holds at most 2 GB: use the bundle's own files"
        )
    if opset(model) <= 18:
        model.ir_version = 8  # nothing in it is newer, and older runtimes refuse newer formats
    return model


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's operators that a graph uses."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def fold_scale(model: onnx.ModelProto, scale: np.ndarray, offset: np.ndarray) -> None:
    """Makes a graph take images x where it took (x - offset) * scale, by other weights of its patch embedding, which is exact in real numbers.

    conv(W, (x - offset) * scale) + b = conv(W * scale, x) + (b - sum of W * scale * offset), because a patch embedding pads nothing.

    Args:
        model: changed in place.
        scale: (C,) per channel.
        offset: (C,) per channel.

    Raises:
        UserError: the image does not go to a convolution without padding.
    """
    convolution = _patch_embedding(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if not constants.keys() >= set(convolution.input[1:]):
        raise UserError("the weights of the graph's patch embedding are computed, not stored: nothing can be folded into them")
    weight = numpy_helper.to_array(constants[convolution.input[1]])
    dtype = weight.dtype
    exact = weight.astype(np.float64) * scale[None, :, None, None]
    shift = -(exact * offset[None, :, None, None]).sum((1, 2, 3))
    if len(convolution.input) > 2:
        shift += numpy_helper.to_array(constants[convolution.input[2]])
    names = [f"{convolution.input[1]}_folded", f"{convolution.input[1]}_folded_bias"]
    model.graph.initializer.append(numpy_helper.from_array(exact.astype(dtype), names[0]))
    model.graph.initializer.append(numpy_helper.from_array(shift.astype(dtype), names[1]))
    del convolution.input[1:]
    convolution.input.extend(names)
    _drop_unused(model)


def is_half(model: onnx.ModelProto) -> bool:
    """Whether the patch embedding computes in half precision."""
    name = _patch_embedding(model).input[1]
    return any(t.name == name and t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)


def fold_preprocessing(
    model: onnx.ModelProto, preprocessing: Preprocessing, frame: tuple[int, int], order: str = "rgb"
) -> None:
    """Makes a graph take a camera's frames: uint8 (B, height, width, 3), resized, cropped and normalised in the graph.

    Args:
        model: changed in place.
        preprocessing: of the model.
        frame: (height, width) of the frames.
        order: of their channels, "rgb" or "bgr".

    Raises:
        UserError: a model of grey images, or one whose image does not go to a convolution without padding.
    """
    if len(preprocessing.mean) != 3:
        raise UserError("the model takes grey images: frames of three channels cannot be folded into its graph")
    image = model.graph.input[0]
    batch = image.type.tensor_type.shape.dim[0].dim_value
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    with _before(model) as writer:
        pixels = writer.add("Cast", [FRAMES], to=TensorProto.FLOAT)  # first: all that TensorRT does with uint8
        pixels = writer.add("Transpose", [pixels], perm=[0, 3, 1, 2])
        if order == "bgr":
            pixels = writer.add("Gather", [pixels, writer.constant(np.array([2, 1, 0]), "rgb")], axis=1)
        pixels = _resize(writer, pixels, preprocessing, frame)
        if is_half(model):  # 1 / 255 of a weight would be lost in half precision
            factor = (1 / (255 * std)).astype(np.float32).reshape(3, 1, 1)
            shift = (-mean / std).astype(np.float32).reshape(3, 1, 1)
            pixels = writer.add("Mul", [pixels, writer.constant(factor, "factor")])
            writer.add("Add", [pixels, writer.constant(shift, "shift")], image.name)
        else:
            fold_scale(model, 1 / (255 * std), 255 * mean)
            writer.add("Identity", [pixels], image.name)
    image.CopyFrom(helper.make_tensor_value_info(FRAMES, TensorProto.UINT8, [batch, *frame, 3]))


def _resize(writer: _Writer, pixels: str, preprocessing: Preprocessing, frame: tuple[int, int]) -> str:
    """Pixels (B, 3, height, width) from 0 to 255 as Pillow resizes, rounds and crops them: over rows, then over columns."""
    height, width = frame
    resized_w, resized_h = preprocessing.resized(width, height)
    left, top = preprocessing.crop_offset(resized_w, resized_h)
    goal_h, goal_w = preprocessing.size
    across = cropped_matrix(width, resized_w, left, goal_w, preprocessing.interpolation)
    down = cropped_matrix(height, resized_h, top, goal_h, preprocessing.interpolation)
    used = np.flatnonzero(down.any(0))  # rows of the frame that the crop needs
    first, last = int(used[0]), int(used[-1]) + 1
    pixels = writer.slice(pixels, 2, first, last, height)
    pixels = _product(writer, pixels, across, 3)
    pixels = _product(writer, pixels, down[:, first:last], 2)
    inside = np.outer(down.any(1), across.any(1))  # (H, W)
    if not inside.all():
        fill = np.where(~inside[None], np.array(preprocessing.fill, np.float32)[:, None, None], np.float32(0))
        pixels = writer.add("Add", [pixels, writer.constant(fill.astype(np.float32), "fill")])
    return pixels


def _product(writer: _Writer, pixels: str, matrix: np.ndarray, axis: int) -> str:
    """One axis of the pixels times a matrix (out, in) whose rows are mostly zero, in blocks; rounded to whole numbers from 0 to 255."""
    if np.array_equal(matrix, np.eye(*matrix.shape)) and matrix.shape[0] == matrix.shape[1]:
        return pixels
    parts = []
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK]
        used = np.flatnonzero(block.any(0))
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        some = writer.slice(pixels, axis, first, last, matrix.shape[1])
        weights = block[:, first:last].astype(np.float32)
        operands = [some, writer.constant(weights.T, "weights")] if axis == 3 else [writer.constant(weights, "weights"), some]
        parts.append(writer.add("MatMul", operands))
    joined = parts[0] if len(parts) == 1 else writer.add("Concat", parts, axis=axis)
    half, low, high = (
        writer.constant(np.array(value, np.float32), name) for value, name in ((0.5, "half"), (0, "low"), (255, "high"))
    )
    return writer.add("Clip", [writer.add("Floor", [writer.add("Add", [joined, half])]), low, high])


def add_top_k(model: onnx.ModelProto, count: int) -> None:
    """Makes a graph give the `count` best classes instead of its logits: `probabilities` (B, count) float32 and `classes` (B, count) int64.

    Raises:
        UserError: the graph gives no logits, or fewer.
    """
    (output,) = model.graph.output
    if output.name != LOGITS:
        raise UserError(f"--top-k is for graphs that give logits, and this one gives {output.name}")
    shape = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    if len(shape) != 2 or min(shape) < 1:
        raise UserError("--top-k: the graph does not say how many images and classes its logits are of")
    batch, classes = shape
    if not 1 <= count <= classes:
        raise UserError(f"--top-k {count} is out of range: the model has {classes} classes")
    model.graph.initializer.append(numpy_helper.from_array(np.array([count], np.int64), "top_k"))
    model.graph.node.append(make_probabilities(classes, "all_probabilities", "top_k"))
    outputs = [PROBABILITIES, CLASSES]
    model.graph.node.append(helper.make_node("TopK", ["all_probabilities", "top_k"], outputs, "top_k/TopK", axis=-1))
    del model.graph.output[:]
    kinds = (TensorProto.FLOAT, TensorProto.INT64)
    model.graph.output.extend(helper.make_tensor_value_info(name, kind, [batch, count]) for name, kind in zip(outputs, kinds))


def make_probabilities(classes: int, name: str, path: str) -> onnx.NodeProto:
    """The node that makes probabilities of logits. A single one is of a class against its absence."""
    if classes == 1:
        return helper.make_node("Sigmoid", [LOGITS], [name], f"{path}/Sigmoid")
    return helper.make_node("Softmax", [LOGITS], [name], f"{path}/Softmax", axis=-1)


def _patch_embedding(model: onnx.ModelProto) -> onnx.NodeProto:
    """The convolution that takes the image, where it pads nothing."""
    name: str = model.graph.input[0].name
    for _ in range(len(model.graph.node)):
        takers: list[onnx.NodeProto] = [node for node in model.graph.node if name in node.input]
        if len(takers) != 1 or takers[0].op_type not in ("Conv", "Cast"):
            break
        if takers[0].op_type == "Conv":
            attributes = {a.name: helper.get_attribute_value(a) for a in takers[0].attribute}
            if any(attributes.get("pads", ())) or attributes.get("group", 1) != 1:
                break
            return takers[0]
        name = takers[0].output[0]
    raise UserError(
        "the graph's image does not go to one convolution without padding (int8 graphs quantise it first), so nothing can be folded into that: "
        "use --precision fp32, or prepare images in your program"
    )


def _drop_unused(model: onnx.ModelProto) -> None:
    """Constants that no node takes any more."""
    used = {name for node in model.graph.node for name in node.input}
    for place in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[place].name not in used:
            del model.graph.initializer[place]


class _Writer:
    """Nodes and constants that are to come before a graph's own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """A node; returns the name of its output."""
        name = f"preprocessing/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output or name], name, **attributes))
        return output or name

    def constant(self, value: np.ndarray, name: str) -> str:
        """A constant; returns its name. Equal ones are stored once."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), "")
        for known, other in self.constants.items():
            if (other.data_type, other.dims, other.raw_data) == (tensor.data_type, tensor.dims, tensor.raw_data):
                return known
        tensor.name = f"preprocessing/{name}_{len(self.constants)}"
        self.constants[tensor.name] = tensor
        return tensor.name

    def slice(self, value: str, axis: int, first: int, last: int, size: int) -> str:
        """Places `first` to `last` of an axis with `size` places."""
        if (first, last) == (0, size):
            return value
        ends = [self.constant(np.array([number], np.int64), "place") for number in (first, last, axis)]
        return self.add("Slice", [value, *ends])


@contextmanager
def _before(model: onnx.ModelProto) -> Iterator[_Writer]:
    """Puts what is written before the nodes of a graph."""
    writer = _Writer()
    yield writer
    nodes = [*writer.nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(writer.constants.values())
