"""Layers on rows: what works on each token alone takes tokens (B, N, C) as rows (B N, C).

ONNX Runtime computes a layer so, and puts a Reshape before and after every one. They move nothing, but each node costs its start: on DeiT-Tiny
less than 1 % of the time (`tests.benchmarks.folds`). Here one Reshape stands where a run of layers begins, and one where it ends: four in a block instead of
twelve. A product and the addition of its bias become one Gemm, as they would there. Only graphs are rewritten, and no value changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from edge_tprune.export.folds import sweep

Values = Mapping[str, tuple[int, tuple[int, ...]]]

_BY_ELEMENT = {"Erf", "Gelu", "Relu", "Sigmoid", "Sqrt", "Tanh"}
_OF_TWO = {"Add", "Div", "Mul", "Sub"}
_NORMS = {"LayerNormalization", "RMSNormalization"}


def write_rows(model: onnx.ModelProto, values: Values) -> None:
    """Rewrites a graph in place.

    Args:
        model: static, its nodes in an order in which they can run.
        values: type and shape of each of its values.
    """
    writer = _Writer(model.graph, values)
    for node in list(model.graph.node):
        writer.add(node)
    for output in model.graph.output:
        writer.as_tokens(output.name, NodeProto())
    rewritten = onnx.GraphProto(node=writer.nodes)
    del model.graph.node[:]
    model.graph.node.extend(rewritten.node)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(shape, np.int64), name) for shape, name in writer.shapes.items()
    )
    del model.graph.value_info[:]
    sweep(model.graph)


class _Writer:
    """The new nodes. A value of tokens is there as such, as rows, or as both: the second form is made when it is first read."""

    def __init__(self, graph: onnx.GraphProto, values: Values) -> None:
        self.nodes: list[NodeProto] = []
        self.shapes: dict[tuple[int, ...], str] = {}  #: names of the shapes that the Reshapes read
        self._constants = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        self._values = values
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._outputs = {output.name for output in graph.output}
        self._rows: dict[str, str] = {}  #: by value of tokens, what holds its rows
        self._only_rows: set[str] = set()  #: values of tokens that no node gives as such yet
        self._done: set[str] = set()  #: outputs of nodes that went into another

    def add(self, node: NodeProto) -> None:
        """A node of the graph, on rows where it can be."""
        if not self._done.isdisjoint(node.output):
            return
        if len(node.output) != 1 or not (self._add_layer(node) or self._add_on_rows(node) or self._is_rows(node)):
            for name in node.input:
                self.as_tokens(name, node)
            self.nodes.append(node)

    def as_tokens(self, value: str, reader: NodeProto) -> None:
        """Makes sure that a value is there in the shape that the graph says, for a node that reads it so."""
        if value in self._only_rows:
            self._only_rows.remove(value)
            self._reshape(self._rows[value], value, self._values[value][1], reader)

    def _as_rows(self, value: str, reader: NodeProto) -> str:
        if value not in self._rows:
            batch, tokens, channels = self._values[value][1]
            self._rows[value] = f"{value}/rows"
            self._reshape(value, self._rows[value], (batch * tokens, channels), reader)
        return self._rows[value]

    def _reshape(self, value: str, into: str, shape: tuple[int, ...], reader: NodeProto) -> None:
        name = self.shapes.setdefault(shape, f"rows/{'x'.join(map(str, shape))}")
        self._append(helper.make_node("Reshape", [value, name], [into]), reader)

    def _append(self, node: NodeProto, origin: NodeProto) -> None:
        """A new node, which belongs to the module that `origin` belongs to."""
        node.metadata_props.extend(origin.metadata_props)
        self.nodes.append(node)

    def _add_layer(self, node: NodeProto) -> bool:
        """A product with weights, together with the bias that is added to it."""
        if not self._is_layer(node):
            return False
        inputs, value, kind = [self._as_rows(node.input[0], node), node.input[1]], node.output[0], "MatMul"
        if value not in self._outputs and [reader.op_type for reader in self._readers[value]] == ["Add"]:
            addition = self._readers[value][0]
            bias = [name for name in addition.input if self._constants.get(name) == 1]
            if bias and self._values[addition.output[0]] == self._values[value]:
                inputs, value, kind = [*inputs, *bias], addition.output[0], "Gemm"
                self._done.add(value)
        self._rows[value] = f"{value}/rows"
        self._only_rows.add(value)
        self._append(helper.make_node(kind, inputs, [self._rows[value]]), node)
        return True

    def _add_on_rows(self, node: NodeProto) -> bool:
        """A norm, or what works on each number alone and reads what is there as rows only."""
        tokens = [name for name in node.input if name not in self._constants]
        if not all(self._is_tokens(name) and self._values[name] == self._values[node.output[0]] for name in tokens):
            return False
        if node.op_type in _NORMS:
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            if axis not in (-1, 2) or not any(self._is_layer(reader) for reader in self._readers[node.output[0]]):
                return False
        elif node.op_type not in _BY_ELEMENT | _OF_TWO or self._only_rows.isdisjoint(tokens):
            return False
        if any(self._constants[name] > 1 for name in node.input if name in self._constants):
            return False
        new = NodeProto()
        new.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in tokens:
                new.input[place] = self._as_rows(name, node)
        for attribute in new.attribute:
            if attribute.name == "axis":
                attribute.i = -1
        new.output[0] = self._rows[node.output[0]] = f"{node.output[0]}/rows"
        self._only_rows.add(node.output[0])
        self.nodes.append(new)
        return True

    def _is_rows(self, node: NodeProto) -> bool:
        """Whether a node only makes rows of tokens whose rows are there: it is left out."""
        if node.op_type != "Reshape" or node.input[0] not in self._rows or node.output[0] in self._outputs:
            return False
        batch, tokens, channels = self._values[node.input[0]][1]
        if self._values[node.output[0]][1] != (batch * tokens, channels):
            return False
        for reader in self._readers[node.output[0]]:
            for place, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[place] = self._rows[node.input[0]]
        return True

    def _is_layer(self, node: NodeProto) -> bool:
        return node.op_type == "MatMul" and self._is_tokens(node.input[0]) and self._constants.get(node.input[1]) == 2

    def _is_tokens(self, value: str) -> bool:
        return value in self._values and value not in self._constants and len(self._values[value][1]) == 3
