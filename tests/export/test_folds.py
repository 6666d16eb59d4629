"""Rewritten layers compute what they computed: in float64 to 1e-12, in float32 to 1e-5, relative."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper

from edge_tprune.export.folds import drop_biases, fold, split_products, store_parts
from edge_tprune.export.graph import FORMS, export
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT

TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
TYPES = {np.float64: TensorProto.DOUBLE, np.float32: TensorProto.FLOAT}


def graph(
    nodes: list[onnx.NodeProto], outputs: list[str], constants: dict[str, np.ndarray], kind: type, opset: int = 18
) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info("x", TYPES[kind], [2, 5, 6])]
    made = [helper.make_tensor_value_info(name, TYPES[kind], None) for name in outputs]
    tensors = [
        numpy_helper.from_array(array.astype(kind) if array.dtype == float else array, n) for n, array in constants.items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", given, made, tensors), opset_imports=[helper.make_opsetid("", opset)]
    )
    model.ir_version = 10
    return onnx.shape_inference.infer_shapes(model)


def layer(rng: np.random.Generator, out: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    return nodes, {"w": rng.normal(size=(6, out)), "b": rng.normal(size=out)}


def run(model: onnx.ModelProto, kind: type) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).normal(size=(2, 5, 6)).astype(kind)})


def check_same(model: onnx.ModelProto, before: list[np.ndarray], kind: type) -> None:
    onnx.checker.check_model(model)
    for one, other in zip(run(model, kind), before, strict=True):
        assert np.abs(one - other).max() <= TOLERANCE[kind] * np.abs(other).max()


@pytest.mark.parametrize("kind", TOLERANCE)
def test_parts_of_a_product_are_products_of_their_own(kind: type) -> None:
    nodes, constants = layer(np.random.default_rng(0), 9)
    constants["sizes"] = np.array([2, 3, 4])
    model = graph(
        [*nodes, helper.make_node("Split", ["y", "sizes"], ["q", "k", "v"], axis=-1)], ["q", "k", "v"], constants, kind
    )
    before = run(model, kind)
    assert split_products(model) == 1
    assert Counter(node.op_type for node in model.graph.node) == {"MatMul": 3, "Add": 3}
    check_same(model, before, kind)


@pytest.mark.parametrize("kind", TOLERANCE)
def test_parts_of_constants_are_stored(kind: type) -> None:
    rng = np.random.default_rng(0)
    cut = [helper.make_node("Slice", ["whole", "from", "to", "axis", "step"], ["part"])]
    nodes = [*cut, helper.make_node("Transpose", ["part"], ["w"], perm=[1, 0]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    counts = {"from": np.array([2]), "to": np.array([9]), "axis": np.array([0]), "step": np.array([1])}
    model = graph(nodes, ["y"], {"whole": rng.normal(size=(9, 6)), **counts}, kind)
    before = run(model, kind)
    store_parts(model)
    assert [tuple(tensor.dims) for tensor in model.graph.initializer] == [(6, 7)]
    check_same(model, before, kind)


@pytest.mark.parametrize("other", [[2, 3, 4], [4, 3, 2]])
def test_a_layer_that_is_called_twice_is_stored_once_for_each_cut(other: list[int]) -> None:
    nodes, constants = layer(np.random.default_rng(0), 9)
    constants |= {"sizes": np.array([2, 3, 4]), "others": np.array(other), "w_2_bias": np.zeros(9)}
    again = [helper.make_node("MatMul", ["twice", "w"], ["p2"]), helper.make_node("Add", ["p2", "b"], ["y2"])]
    twice = [helper.make_node("Add", ["x", "x"], ["twice"]), *again]
    splits = [
        helper.make_node("Split", ["y", "sizes"], ["q", "k", "v0"], axis=-1),
        helper.make_node("Split", ["y2", "others"], ["q2", "k2", "v2"], axis=-1),
        helper.make_node("Concat", ["v0", "k", "q"], ["joined"], axis=-1),
        helper.make_node("Add", ["joined", "w_2_bias"], ["v"]),
    ]
    model = graph([*nodes, *twice, *splits], ["q2", "k2", "v2", "v"], constants, np.float64)
    before = run(model, np.float64)
    assert split_products(model) == 2
    names = Counter(tensor.name for tensor in model.graph.initializer)
    assert max(names.values()) == 1
    assert len(names) == (7 if other == [2, 3, 4] else 13)
    check_same(model, before, np.float64)


def test_what_something_else_reads_stays() -> None:
    nodes, constants = layer(np.random.default_rng(0), 6)
    cut = helper.make_node("Split", ["y"], ["a", "b2"], axis=-1, num_outputs=2)
    doubled = helper.make_node("Add", ["y", "y"], ["s"])
    tokens = helper.make_node("Split", ["y"], ["a", "b2"], axis=1, num_outputs=2)  # not channels
    for others, outputs in (([cut, doubled], ["a", "b2", "s"]), ([cut], ["a", "b2", "y"]), ([tokens], ["a", "b2"])):
        model = graph([*nodes, *others], outputs, constants, np.float32)
        assert split_products(model) == 0
        assert len(model.graph.node) == 2 + len(others)


def attention(kind: type, heads: int = 2, mode: int = 0, maps: bool = False, **more: Any) -> onnx.ModelProto:
    """Queries, keys and values by a layer each, attention, and a layer that reads its result: (2, 5, 6) -> (2, 5, 4)."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    for name, value, width, out in (("q", "x", 6, 6), ("k", "x", 6, 6), ("v", "x", 6, 6), ("y", "result", 6, 4)):
        constants |= {f"w{name}": rng.normal(size=(width, out)), f"b{name}": 3 * rng.normal(size=out)}
        nodes += [
            helper.make_node("MatMul", [value, f"w{name}"], [f"p{name}"]),
            helper.make_node("Add", [f"p{name}", f"b{name}"], [name]),
        ]
    outputs = ["result", "", "", "map"] if maps else ["result"]
    given: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads, "qk_matmul_output_mode": mode, **more}
    nodes.insert(6, helper.make_node("Attention", ["q", "k", "v"], outputs, **given))
    return graph(nodes, ["y", "map"] if maps else ["y"], constants, kind, opset=23)


@pytest.mark.parametrize("maps", [False, True])
def test_attention_reads_keys_and_values_without_their_bias(maps: bool) -> None:
    model = attention(np.float32, mode=3, maps=maps)  # ONNX Runtime computes it in float32 alone
    before = run(model, np.float32)
    assert drop_biases(model) == 2
    assert Counter(node.op_type for node in model.graph.node) == {"MatMul": 4, "Add": 2, "Attention": 1}
    assert {tensor.name for tensor in model.graph.initializer} == {"wq", "bq", "wk", "wv", "wy", "by_moved"}
    check_same(model, before, np.float32)


def test_the_bias_of_values_is_that_of_the_next_layer() -> None:
    """In float64, against attention written out."""
    model = attention(np.float64)
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert drop_biases(model) == 2
    left = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    x = np.random.default_rng(1).normal(size=(5, 6))

    def written_out(c: dict[str, np.ndarray], bias: str) -> np.ndarray:
        q, k, v = (x @ c[f"w{name}"] + c.get(f"b{name}", 0.0) for name in "qkv")
        logits = np.einsum("nhd,mhd->hnm", q.reshape(5, 2, 3), k.reshape(5, 2, 3)) / np.sqrt(3)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        result: np.ndarray = np.einsum("hnm,mhd->nhd", weights, v.reshape(5, 2, 3)).reshape(5, 6) @ c["wy"] + c[bias]
        return result

    expected = written_out(given, "by")
    assert np.abs(written_out(left, "by_moved") - expected).max() <= TOLERANCE[np.float64] * np.abs(expected).max()


@pytest.mark.parametrize(
    ("case", "dropped"),
    [
        ({"mode": 0, "maps": True}, 0),  # the map is the logits
        ({"softcap": 5.0}, 0),  # logits are bent
        ({"kv_num_heads": 1}, 0),  # a key for several heads
        ({"reads": "k"}, 1),
        ({"reads": "v"}, 1),
        ({"reads": "result"}, 1),
        ({"reads": "py"}, 1),
    ],
)
def test_biases_that_something_else_depends_on_stay(case: dict[str, Any], dropped: int) -> None:
    case = dict(case)
    reads = case.pop("reads", None)
    model = attention(np.float32, **case)
    if reads is not None:
        model.graph.output.append(helper.make_tensor_value_info(reads, TensorProto.FLOAT, None))
    assert drop_biases(model) == dropped


def test_an_exported_network_has_no_cut_products_and_keeps_its_own_weights() -> None:
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5, init_values=0.5, weight_init="")
    network.eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    pruned = PrunedViT(network, registry.method("evit"), (4, 1), {})
    model = export(pruned, FORMS["onnxruntime"], 1, (3, 32, 32))
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not any(node.op_type == "Split" and "qkv" in node.input[0] for node in model.graph.node)
    image = torch.randn(1, 3, 32, 32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = pruned(image).numpy()
    assert np.abs(session.run(None, {"image": image.numpy()})[0] - expected).max() < 1e-5 * np.abs(expected).max()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    fold(model)  # finds nothing more
    assert Counter(node.op_type for node in model.graph.node) == kinds
