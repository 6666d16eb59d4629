"""Exact savings in a graph's layers: the same values from fewer passes over memory.

What a graph computes does not change but for rounding (float64: 1e-12, float32: 1e-5, relative). Only graphs are rewritten, at export: modules,
checkpoints and fine-tuning never see such weights. Every float32 graph of a bundle is, whatever its form, so that they share their weights.

    split_products     queries, keys and values by one product each, instead of one product whose result is then cut apart: cutting copies it
    store_parts        a last block that serves the head alone has parts of its layers' weights stored as such, which other blocks' graphs share
    drop_biases        ONNX's Attention reads keys and values without their bias. Softmax does not depend on that of keys: it adds the same to all logits
                       of a query. That of values moves every result by itself, as weights of attention add up to 1: it goes through the next layer
                       into its bias. ONNX Runtime copies a bias to all rows of a product on one thread

Not done. LayerScale in the weights of the layer before it: measured on DeiT-III-Small, 0.995 (0.987 to 1.004) of the time, not resolved. The scale and
bias of a LayerNorm in the layer that reads it: one kernel does both, and saves 2 us of 50 without them. Attention's scale: ONNX Runtime's Attention
operator takes it already. The bias of a perceptron's first layer with its GELU: faster for one image on two threads, slower for all else.
`tests.benchmarks.folds` times what is done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

_FLOATS = (np.float32, np.float64)


@dataclass(frozen=True)
class _Layer:
    """A product of tokens (..., C) with weights (C, D), and the bias (D,) added to it where there is one."""

    product: NodeProto
    addition: NodeProto | None
    weight: np.ndarray
    bias: np.ndarray | None

    @property
    def nodes(self) -> list[NodeProto]:
        return [node for node in (self.product, self.addition) if node is not None]


class _Graph:
    """A graph's constants, and who reads and makes its values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers: dict[str, list[NodeProto]] = {output.name: [NodeProto()] for output in model.graph.output}
        self.makers: dict[str, NodeProto] = {}
        self.ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            self.makers.update(dict.fromkeys(node.output, node))

    def layer(self, value: str) -> _Layer | None:
        """The layer that makes a value which nothing else reads, nor what comes between."""
        node, addition, bias = self.makers.get(value), None, None
        if node is not None and node.op_type == "Add" and len(self.readers[value]) == 1:
            parts = self._constant_last(node)
            if parts is None:
                return None
            addition, (value, bias) = node, parts
            node = self.makers.get(value)
        if node is None or node.op_type != "MatMul" or len(self.readers[value]) != 1:
            return None
        weight = self.array(node.input[1])
        if weight is None or weight.ndim != 2 or weight.dtype not in _FLOATS:
            return None
        if bias is not None and bias.shape != weight.shape[1:]:
            return None
        return _Layer(node, addition, weight, bias)

    def reader(self, value: str) -> NodeProto | None:
        """The one node that reads a value; None where there are others, or the graph gives it."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type else None

    def store(self, name: str, array: np.ndarray) -> str:
        """Adds a constant, unless it is there: a layer may be called twice. Its name, which is another where that is taken."""
        while name in self.readers or name in self.constants:
            kept = self.array(name)
            if kept is not None and kept.dtype == array.dtype and np.array_equal(kept, array):
                return name
            name += "_"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self.constants[name] = self.graph.initializer[-1]
        return name

    def replace(self, old: list[NodeProto], new: list[NodeProto]) -> None:
        """Puts `new` nodes where the last of the `old` nodes is, and drops what then nothing reads."""
        gone = {id(node) for node in old}
        places = [index for index, node in enumerate(self.graph.node) if id(node) in gone]
        for node in reversed(new):
            self.graph.node.insert(places[-1] + 1, node)
        for index in reversed(places):
            del self.graph.node[index]
        sweep(self.graph)

    def _constant_last(self, node: NodeProto) -> tuple[str, np.ndarray] | None:
        """Of a node's two inputs the value, and the constant beside it."""
        arrays = [self.array(name) for name in node.input]
        for place in (1, 0):
            constant = arrays[place]
            if constant is not None and arrays[1 - place] is None:
                return node.input[1 - place], constant
        return None

    def array(self, name: str) -> np.ndarray | None:
        """A constant; None where the name is not one's."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None


def sweep(graph: onnx.GraphProto) -> None:
    """Drops nodes and constants that nothing reads any more."""
    read = {output.name for output in graph.output}
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        if read.isdisjoint(node.output):
            del graph.node[index]
        else:
            read.update(node.input)
    for index in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def fold(model: onnx.ModelProto) -> None:
    """Rewrites a float32 graph in place, as the module's docstring says."""
    store_parts(model)
    split_products(model)
    drop_biases(model)


def store_parts(model: onnx.ModelProto) -> None:
    """Stores what Slice and Transpose make of constants, as a last block's layers are made of whole ones, instead of computing it in every run."""
    for node in [node for node in model.graph.node if node.op_type in ("Slice", "Transpose")]:
        graph = _Graph(model)
        if all(name in graph.constants for name in node.input):
            given = [numpy_helper.to_array(graph.constants[name]) for name in node.input]
            made = _transposed(node, *given) if node.op_type == "Transpose" else _sliced(*given)
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(made), node.output[0]))
            graph.replace([node], [])


def _transposed(node: NodeProto, whole: np.ndarray) -> np.ndarray:
    order: list[int] | None = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
    turned: np.ndarray = whole.transpose(order)
    return turned


def _sliced(
    whole: np.ndarray, starts: np.ndarray, ends: np.ndarray, axes: np.ndarray | None = None, steps: np.ndarray | None = None
) -> np.ndarray:
    cuts = [slice(None)] * whole.ndim
    places = range(len(starts)) if axes is None else axes.tolist()
    for start, end, axis, step in zip(
        starts.tolist(), ends.tolist(), places, [1] * len(starts) if steps is None else steps.tolist()
    ):
        cuts[axis] = slice(start, end, step)
    part: np.ndarray = whole[tuple(cuts)]
    return part


def split_products(model: onnx.ModelProto) -> int:
    """Where a layer's output is only cut apart along its channels, computes each part by a layer of its own. How many it found."""
    found, graph = 0, _Graph(model)
    for node in [node for node in model.graph.node if node.op_type == "Split"]:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if axis not in (-1, graph.ranks.get(node.input[0], 0) - 1):
            continue
        layer = graph.layer(node.input[0])
        cuts = None if layer is None else _cuts(model, node, layer.weight.shape[1])
        if layer is None or cuts is None:
            continue
        new = []
        for number, (output, part) in enumerate(zip(node.output, cuts)):
            new += _part(graph, layer, number, output, part)
        graph.replace([*layer.nodes, node], new)
        found, graph = found + 1, _Graph(model)
    return found


def _cuts(model: onnx.ModelProto, node: NodeProto, width: int) -> list[slice] | None:
    """The channels of each part that a Split cuts `width` channels into."""
    sizes = [width // len(node.output)] * len(node.output)
    if len(node.input) > 1:
        tensor = next((t for t in model.graph.initializer if t.name == node.input[1]), None)
        if tensor is None:
            return None
        sizes = numpy_helper.to_array(tensor).tolist()
    if sum(sizes) != width:
        return None
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes)]


def _part(graph: _Graph, layer: _Layer, number: int, output: str, part: slice) -> list[NodeProto]:
    """The nodes that compute the channels `part` of a layer's output."""
    name = f"{layer.product.input[1]}_{number}"
    product = helper.make_node("MatMul", [layer.product.input[0], graph.store(name, layer.weight[:, part])], [output])
    product.metadata_props.extend(layer.product.metadata_props)
    if layer.bias is None or layer.addition is None:
        return [product]
    product.output[0] = f"{output}_product"
    bias = graph.store(f"{name}_bias", layer.bias[part])
    addition = helper.make_node("Add", [product.output[0], bias], [output])
    addition.metadata_props.extend(layer.addition.metadata_props)
    return [product, addition]


def drop_biases(model: onnx.ModelProto) -> int:
    """Drops the biases of keys and values that only an Attention operator reads. How many it found."""
    found = 0
    for node in [node for node in model.graph.node if node.op_type == "Attention" and _gives_softmax(node)]:
        for keys_or_values in node.input[1:3]:
            graph = _Graph(model)
            layer = graph.layer(keys_or_values)
            if layer is None or layer.addition is None or layer.bias is None:
                continue
            if keys_or_values == node.input[2] and not _move_bias(graph, layer.bias, node.output[0]):
                continue
            layer.product.output[0] = keys_or_values
            model.graph.node.remove(layer.addition)
            found += 1
    sweep(model.graph)
    return found


def _gives_softmax(node: NodeProto) -> bool:
    """Whether an Attention's result, and its map where that is read, are what a plain softmax makes of all keys, with as many heads for queries."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if any(node.output[1:3]) or any(node.input[4:]) or given.get("softcap"):  # caches, and logits that are bent
        return False
    if any(node.output[3:]) and given.get("qk_matmul_output_mode") != 3:  # logits
        return False
    heads: int = given.get("q_num_heads", 0)
    return 0 < heads == given.get("kv_num_heads")


def _move_bias(graph: _Graph, bias: np.ndarray, result: str) -> bool:
    """Takes what is added to each row of a value over into the bias of the layer that alone reads it. Whether there is one."""
    product, addition = graph.reader(result), None
    if product is not None and product.op_type == "MatMul" and product.input[0] == result:
        addition = graph.reader(product.output[0])
    if product is None or addition is None or addition.op_type != "Add":
        return False
    weight = graph.array(product.input[1])
    place = next((place for place, name in enumerate(addition.input) if graph.array(name) is not None), None)
    if weight is None or place is None:
        return False
    own = graph.array(addition.input[place])
    if own is None or own.shape != weight.shape[1:] or bias.shape != weight.shape[:1]:
        return False
    moved = own.astype(np.float64) + bias.astype(np.float64) @ weight.astype(np.float64)
    addition.input[place] = graph.store(f"{addition.input[place]}_moved", moved.astype(own.dtype))
    return True
