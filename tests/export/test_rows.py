"""Layers on rows compute what they computed on tokens, bit for bit, and the graph keeps its inputs, outputs and weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_tprune.export.graph import FORMS, export, infer_values
from edge_tprune.export.rows import write_rows
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT

BATCH, TOKENS, CHANNELS = 2, 5, 6
CONSTANTS = {
    "w": np.random.default_rng(0).normal(size=(CHANNELS, CHANNELS)),
    "b": np.random.default_rng(1).normal(size=CHANNELS),
    "table": np.random.default_rng(2).normal(size=(TOKENS, CHANNELS)),
    "half": np.array(0.5),
}


def graph(nodes: list[NodeProto], outputs: list[str], shapes: dict[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, TOKENS, CHANNELS])]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in CONSTANTS.items()]
    tensors += [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in (shapes or {}).items()]
    model = helper.make_model(helper.make_graph(nodes, "g", given, made, tensors), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def run(model: onnx.ModelProto, image: np.ndarray, exact: bool = True) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: image})
    return found


def kinds_of(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def rewrite(model: onnx.ModelProto) -> Counter[str]:
    """Rewrites a small graph, checks that it gives what it gave, and counts its operators."""
    image = np.random.default_rng(3).normal(size=(BATCH, TOKENS, CHANNELS)).astype(np.float32)
    before, shapes = run(model, image), {name: value[1] for name, value in infer_values(model).items()}
    write_rows(model, infer_values(model))
    onnx.checker.check_model(model, full_check=True)
    for name, one, other in zip([output.name for output in model.graph.output], run(model, image), before, strict=True):
        assert one.shape == other.shape == shapes[name]
        assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()
    return kinds_of(model)


def layer(given: str, made: str) -> list[NodeProto]:
    return [
        helper.make_node("MatMul", [given, "w"], [f"{made}_product"]),
        helper.make_node("Add", [f"{made}_product", "b"], [made]),
    ]


def norm(given: str, made: str) -> NodeProto:
    return helper.make_node("LayerNormalization", [given, "b", "b"], [made], axis=2)


def test_a_run_of_layers_has_one_reshape_at_either_end() -> None:
    nodes = [norm("x", "n"), *layer("n", "h"), helper.make_node("Gelu", ["h"], ["a"]), *layer("a", "y")]
    nodes += [helper.make_node("Mul", ["y", "half"], ["s"]), helper.make_node("Add", ["x", "s"], ["out"])]
    assert rewrite(graph(nodes, ["out"])) == {"Reshape": 2, "LayerNormalization": 1, "Gemm": 2, "Gelu": 1, "Mul": 1, "Add": 1}


def test_a_value_that_is_read_both_ways_is_there_both_ways() -> None:
    nodes = [*layer("x", "h"), helper.make_node("ReduceMax", ["h"], ["most"], keepdims=1), *layer("h", "y")]
    assert rewrite(graph([*nodes, helper.make_node("Add", ["y", "most"], ["out"])], ["out", "h"])) == {
        "Reshape": 3, "Gemm": 2, "ReduceMax": 1, "Add": 1,
    }  # fmt: skip


def test_what_does_not_work_on_each_token_alone_stays_on_tokens() -> None:
    pooled = helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=1)
    for node in (
        helper.make_node("Add", ["h", "table"], ["out"]),  # of every place another row
        helper.make_node("Softmax", ["h"], ["out"], axis=1),
        helper.make_node("LayerNormalization", ["h", "table", "table"], ["out"], axis=1),
        helper.make_node("MatMul", ["table", "h"], ["out"])
        if TOKENS == CHANNELS
        else helper.make_node("Mul", ["h", "sum"], ["out"]),
    ):
        found = rewrite(graph([*layer("x", "h"), pooled, node], ["out", "sum"]))
        assert found[node.op_type] == 1
        assert found["Reshape"] == 2


def test_rows_that_the_graph_itself_makes_are_the_ones_that_are_there() -> None:
    shapes = {"rows": (BATCH * TOKENS, CHANNELS)}
    reshape = helper.make_node("Reshape", ["h", "rows"], ["r"])
    mean = helper.make_node("ReduceMean", ["r"], ["out"], keepdims=0)
    assert rewrite(graph([*layer("x", "h"), reshape, mean], ["out"], shapes)) == {"Reshape": 1, "Gemm": 1, "ReduceMean": 1}
    assert rewrite(graph([*layer("x", "h"), reshape, mean], ["out", "r"], shapes))["Reshape"] == 3  # the outputs stay


def test_a_product_that_something_else_reads_keeps_its_bias_apart() -> None:
    found = rewrite(graph(layer("x", "y"), ["y", "y_product"]))
    assert (found["MatMul"], found["Gemm"], found["Add"]) == (1, 0, 1)
    doubled = helper.make_node("Mul", ["y_product", "y"], ["out"])
    assert rewrite(graph([*layer("x", "y"), doubled], ["out"]))["Gemm"] == 0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("method", ["none", "zero_tprune", "bat", "evit"])
def test_an_exported_network_has_four_reshapes_in_a_block(method: str, batch: int) -> None:
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=5, weight_init="").eval()
    schedule = (17, 17, 17, 17) if method == "none" else (17, 12, 12, 12)
    pruned = PrunedViT(network, registry.method(method), schedule, {})
    model = export(pruned, FORMS["onnxruntime"], batch, (3, 64, 64))
    reshapes = [node for node in model.graph.node if node.op_type == "Reshape" and "patch_embed" not in node.name]
    own = 0 if method == "none" else 5  # around the removal, and in it
    assert len(reshapes) <= 4 * 4 + 2 + own, [node.name for node in reshapes]
    images = torch.randn(batch, 3, 64, 64)
    with torch.no_grad():
        expected = pruned(images).numpy()
    (found,) = run(model, images.numpy(), exact=False)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    explicit = export(pruned, FORMS["tensorrt"], batch, (3, 64, 64))
    assert "Gemm" not in {node.op_type for node in explicit.graph.node if node.name.startswith("model.blocks")}
