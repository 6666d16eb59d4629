"""An ONNX graph as lists of nodes that can be cut, changed and written again, without the onnx package, which boards do not have.

Only what an edit needs is taken apart (onnx.proto: ModelProto, GraphProto, NodeProto); every other field is kept as the bytes that it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from edge_tprune.bundle.external_data import read_fields

FLOAT, HALF = 1, 10  #: TensorProto.DataType
_VARINT, _BYTES = 0, 2  # wire types
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # of GraphProto
_INPUTS, _OUTPUTS, _NAME, _TYPE, _ATTRIBUTE = 1, 2, 3, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_KIND = 1, 3, 5, 20  # of AttributeProto
_TENSOR_TYPE, _TENSOR_NAME = 2, 8  # of TensorProto
_KIND_INT = 2  # AttributeProto.INT

Field = tuple[int, int, "int | bytes"]  #: number, wire type and value of a field


def _number(number: int, value: int) -> Field:
    return number, _VARINT, value


def _data(number: int, value: bytes) -> Field:
    return number, _BYTES, value


@dataclass(frozen=True)
class Node:
    """One node. `rest` are its other fields, attributes among them."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str = ""
    rest: tuple[bytes, ...] = ()

    def attribute(self, name: str) -> dict[int, int | bytes]:
        """The fields of an attribute, by number; empty where there is none."""
        for encoded in self.rest:
            for number, _, value in read_fields(encoded):
                if number == _ATTRIBUTE and isinstance(value, bytes):
                    entry = _to_dict(value)
                    if entry.get(_ATTRIBUTE_NAME) == name.encode():
                        return entry
        return {}

    @property
    def cast_to(self) -> int | None:
        """The element type that a Cast gives."""
        value = self.attribute("to").get(_ATTRIBUTE_INT) if self.op_type == "Cast" else None
        return value if isinstance(value, int) else None


def cast_node(source: str, target: str, to: int, name: str) -> Node:
    """A Cast of `source` to the element type `to`."""
    attribute = _encode([_data(_ATTRIBUTE_NAME, b"to"), _number(_ATTRIBUTE_INT, to), _number(_ATTRIBUTE_KIND, _KIND_INT)])
    return Node("Cast", (source,), (target,), name, (_encode([_data(_ATTRIBUTE, attribute)]),))


@dataclass(frozen=True)
class GraphFile:
    """A model whose graph is taken apart."""

    model: tuple[bytes, ...]  #: every other field of the model, encoded
    rest: tuple[bytes, ...]  #: every other field of the graph, encoded
    nodes: tuple[Node, ...]
    initializers: dict[str, tuple[int, bytes]]  #: by name: element type, and the encoded TensorProto
    outputs: dict[str, bytes]  #: by name: the encoded ValueInfoProto
    inputs: dict[str, bytes] = field(default_factory=dict)  #: likewise

    @classmethod
    def parse(cls, data: bytes) -> GraphFile:
        """The model that `data` holds.

        Raises:
            ValueError: it is not an ONNX model with one graph.
        """
        model: list[bytes] = []
        graph: bytes | None = None
        for number, wire, value in read_fields(data):
            if number == _GRAPH and isinstance(value, bytes) and graph is None:
                graph = value
            else:
                model.append(_encode([(number, wire, value)]))
        if graph is None:
            raise ValueError("it holds no graph")
        rest, nodes = list[bytes](), list[Node]()
        initializers, inputs, outputs = dict[str, tuple[int, bytes]](), dict[str, bytes](), dict[str, bytes]()
        for number, wire, value in read_fields(graph):
            if not isinstance(value, bytes):
                rest.append(_encode([(number, wire, value)]))
            elif number == _NODE:
                nodes.append(_parse_node(value))
            elif number == _INITIALIZER:
                fields = _to_dict(value)
                kind = fields.get(_TENSOR_TYPE, 0)
                initializers[_text(fields.get(_TENSOR_NAME))] = (kind if isinstance(kind, int) else 0, value)
            elif number in (_INPUT, _OUTPUT):
                (inputs if number == _INPUT else outputs)[_text(_to_dict(value).get(1))] = value
            else:
                rest.append(_encode([(number, wire, value)]))
        return cls(tuple(model), tuple(rest), tuple(nodes), initializers, outputs, inputs)

    def encode(self) -> bytes:
        """The model as bytes."""
        graph = b"".join(
            (
                *(_encode([_data(_NODE, _encode_node(node))]) for node in self.nodes),
                *self.rest,
                *(_encode([_data(_INITIALIZER, tensor)]) for _, tensor in self.initializers.values()),
                *(_encode([_data(_INPUT, value)]) for value in self.inputs.values()),
                *(_encode([_data(_OUTPUT, value)]) for value in self.outputs.values()),
            )
        )
        return b"".join((*self.model, _encode([_data(_GRAPH, graph)])))

    def producers(self) -> dict[str, int]:
        """By value: the place of the node that makes it."""
        return {output: place for place, node in enumerate(self.nodes) for output in node.outputs if output}

    def pruned(self) -> GraphFile:
        """Without the nodes and initializers that no output depends on."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        initializers = {name: tensor for name, tensor in self.initializers.items() if name in needed}
        return replace(self, nodes=tuple(reversed(kept)), initializers=initializers)

    def half_values(self) -> set[str]:
        """The values that are float16.

        In graphs that `build` writes, whatever reads float16 gives it, unless it is a Cast (`edge_tprune.export.graph`, which checks that only such
        operators do); a DequantizeLinear gives the type of its scale.
        """
        half = {name for name, (kind, _) in self.initializers.items() if kind == HALF}
        for node in self.nodes:
            if node.op_type == "Cast":
                is_half = node.cast_to == HALF
            elif node.op_type == "Constant":
                is_half = _constant_type(node) == HALF
            elif node.op_type == "QuantizeLinear":
                is_half = False
            else:
                place = 1 if node.op_type == "DequantizeLinear" else 0
                is_half = len(node.inputs) > place and node.inputs[place] in half
            if is_half:
                half.update(node.outputs)
        return half


def _constant_type(node: Node) -> int:
    tensor = node.attribute("value").get(_ATTRIBUTE_TENSOR, b"")
    kind = _to_dict(tensor).get(_TENSOR_TYPE, 0) if isinstance(tensor, bytes) else 0
    return kind if isinstance(kind, int) else 0


def output_entry(name: str) -> bytes:
    """A ValueInfoProto that says of a value that it is float32; its shape is the runtime's to infer."""
    tensor_type = _encode([_number(1, FLOAT)])
    return _encode([_data(1, name.encode()), _data(2, _encode([_data(1, tensor_type)]))])


def _parse_node(data: bytes) -> Node:
    inputs, outputs, rest, texts = [], [], [], {_NAME: "", _TYPE: ""}
    for number, wire, value in read_fields(data):
        if number == _INPUTS:
            inputs.append(_text(value))
        elif number == _OUTPUTS:
            outputs.append(_text(value))
        elif number in texts:
            texts[number] = _text(value)
        else:
            rest.append(_encode([(number, wire, value)]))
    return Node(texts[_TYPE], tuple(inputs), tuple(outputs), texts[_NAME], tuple(rest))


def _encode_node(node: Node) -> bytes:
    fields = [_data(_INPUTS, name.encode()) for name in node.inputs]
    fields += [_data(_OUTPUTS, name.encode()) for name in node.outputs]
    fields += [_data(_NAME, node.name.encode()), _data(_TYPE, node.op_type.encode())]
    return _encode(fields) + b"".join(node.rest)


def _text(value: int | bytes | None) -> str:
    if not isinstance(value, bytes):
        raise ValueError("a name is missing")
    return value.decode()


def _to_dict(message: bytes) -> dict[int, int | bytes]:
    """The last value of each field, by number."""
    return {number: value for number, _, value in read_fields(message)}


def _encode(fields: Iterable[Field]) -> bytes:
    return b"".join(part for item in fields for part in _encode_field(*item))


def _encode_field(number: int, wire: int, value: int | bytes) -> tuple[bytes, ...]:
    key = _varint(number << 3 | wire)
    if isinstance(value, int):
        return key, _varint(value)
    return (key, _varint(len(value)), value) if wire == _BYTES else (key, value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
