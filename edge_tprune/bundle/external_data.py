"""Which files hold the weights of an ONNX graph, read from its bytes: boards have no onnx package, and a bundle must be checked there too.

An ONNX file is a protocol buffer: fields as (number, wire type) with a value, length-delimited ones nested. Only the way to the entries
`external_data` of tensors is followed (onnx.proto: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto).
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MOST_LEVELS = 20  # of graphs within graphs

# Message -> field number -> message of that field. "location" is the value that is looked for.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(model: bytes) -> set[str]:
    """The locations of all external tensors of a serialised ModelProto, as they are written there: relative to the graph's directory.

    Raises:
        ValueError: it is not a protocol buffer.
    """
    return set(_locations(memoryview(model), "model", 0))


def _locations(message: memoryview, kind: str, level: int) -> Iterator[str]:
    if level > _MOST_LEVELS:
        raise ValueError("graphs within graphs without an end")
    wanted = _FIELDS[kind]
    for number, value in _length_delimited(message):
        field = wanted.get(number)
        if field == "entry":
            entry = {key: bytes(text) for key, text in _length_delimited(value)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode()
        elif field is not None:
            yield from _locations(value, field, level + 1)


def _length_delimited(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, value) of all length-delimited fields."""
    for number, wire, value in _fields(message):
        if wire == _BYTES and isinstance(value, memoryview):
            yield number, value


def read_fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of all fields of a message, in order: a number where it is a varint, else bytes.

    Raises:
        ValueError: it is not a protocol buffer.
    """
    for number, wire, value in _fields(memoryview(message)):
        yield number, wire, value if isinstance(value, int) else bytes(value)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield key >> 3, wire, value
            continue
        if wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in (_FIXED_64, _FIXED_32):
            size = 8 if wire == _FIXED_64 else 4
        else:
            raise ValueError(f"a field has wire type {wire}")
        if size > len(message) - place:
            raise ValueError("a field is cut off")
        yield key >> 3, wire, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("a number is cut off")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        shift += 7
        if byte < 0x80:
            return value, place
