"""Weight files named by a graph: our reader of its bytes against the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_tprune.bundle.external_data import external_files


def tensor(name: str, location: str | None) -> TensorProto:
    made = numpy_helper.from_array(np.arange(3, dtype=np.float32), name)
    if location is not None:
        onnx.external_data_helper.set_external_data(made, location, 64, 12)
        made.ClearField("raw_data")
    return made


def model(initializers: list[TensorProto], constants: list[TensorProto], inner: list[TensorProto]) -> onnx.ModelProto:
    """A graph with initialisers, constants in nodes, and a graph inside a node."""
    nodes = [helper.make_node("Constant", [], [f"c{i}"], value=value) for i, value in enumerate(constants)]
    branch = helper.make_graph([], "branch", [], [], initializer=inner)
    nodes.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    graph = helper.make_graph(nodes, "graph", [], [], initializer=initializers)
    graph.doc_string = "text that says location"
    return helper.make_model(graph)


LOCATIONS = st.lists(st.none() | st.sampled_from(["weights.bin", "../x", "sub/ä.bin", "location"]), max_size=3)


@given(initializers=LOCATIONS, constants=LOCATIONS, inner=LOCATIONS)
def test_all_locations_are_found_wherever_tensors_are(
    initializers: list[str | None], constants: list[str | None], inner: list[str | None]
) -> None:
    made = model(*([tensor(f"t{i}", place) for i, place in enumerate(places)] for places in (initializers, constants, inner)))
    assert external_files(made.SerializeToString()) == {place for place in (*initializers, *constants, *inner) if place}


def test_a_real_graph(built: Path) -> None:
    for file in (built / "onnx").glob("*.onnx"):
        assert external_files(file.read_bytes()) == {"weights.bin"}


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_graphs_end(data: st.DataObject) -> None:
    content = bytearray(model([tensor("t", "weights.bin")], [], [tensor("u", "other")]).SerializeToString())
    begin = data.draw(st.integers(0, len(content)))
    content[begin : begin + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        found = external_files(bytes(content))
    except ValueError:
        found = set()
    assert all(isinstance(place, str) for place in found)


@pytest.mark.parametrize("rubbish", [b"\xff" * 50, b"\x3a\xff\xff\x7f", b"\x0f", b"\x3a\x05\x2a"])
def test_rubbish_is_refused(rubbish: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut off|wire type"):
        external_files(rubbish)
