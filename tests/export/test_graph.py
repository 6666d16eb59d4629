"""Every method's graph is static, plain, what the schedule says, and the same network as the module."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import TensorProto, helper

from edge_tprune.export import exporter
from edge_tprune.export.graph import (
    FORBIDDEN,
    FORMS,
    INPUT,
    GraphError,
    SharedWeights,
    check,
    export,
    save,
)
from edge_tprune.export.lowering import lower
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.runtime.engine import open_engine
from tests.small import small_model

SCHEDULE = (23, 12, 12)
RUNTIMES = ("onnxruntime", "tensorrt")  # one of each form: TensorRT-RTX reads the same graphs as TensorRT


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return small_model(depth=3)


def test_every_form_is_covered() -> None:
    assert {FORMS[runtime] for runtime in RUNTIMES} == set(FORMS.values())


@pytest.fixture(autouse=True)
def lowered_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of our own methods no operation is unknown to `lower`: else PyTorch's exporter traces the network again, which takes long."""

    def lower_all(program: torch.export.ExportedProgram, translated: Collection[object]) -> bool:
        assert lower(program, translated)
        return True

    monkeypatch.setattr(exporter, "lower", lower_all)


def exported(
    loaded: LoadedModel, method: str, runtime: str, batch: int, **options: object
) -> tuple[onnx.ModelProto, PrunedViT]:
    schedule = (37,) * 3 if method == "none" else SCHEDULE
    pruned = PrunedViT(loaded.model, registry.method(method), schedule, options)
    return export(pruned, FORMS[runtime], batch, (3, 48, 48)), pruned


def unread(model: onnx.ModelProto) -> list[str]:
    """Nodes and stored tensors that no output of the graph depends on, found by walking back from the outputs."""
    read, waiting = set(), [output.name for output in model.graph.output]
    makers = {name: node for node in model.graph.node for name in node.output}
    while waiting:
        name = waiting.pop()
        if name and name not in read:
            read.add(name)
            waiting += makers[name].input if name in makers else []
    nodes = [node.name for node in model.graph.node if not read & set(node.output)]
    return nodes + [tensor.name for tensor in model.graph.initializer if tensor.name not in read]


#: Forms of a method whose operators differ from its default's, in the graph that says most of them.
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("gtp", {"graph": "spatial"}),
    ("evit", {"fuse": True}),
    ("zero_tprune", {"merge": False, "votes": 3, "renormalise": True}),
    ("bat", {"faithful": True}),
    ("bat", {"faithful": True, "cluster": False}),
    ("zero_tprune", {"faithful": True, "partition": "random", "emphasis": False}),
    ("dpc_knn", {"faithful": True}),
    ("pitome", {"faithful": True}),
    ("tome", {"faithful": True, "proportional": False}),
    ("slice", {"place": "block"}),
    ("slice", {"place": "values"}),
]


@pytest.mark.parametrize(
    ("method", "options", "runtime", "batch"),
    [
        *((method, {}, *form) for method in sorted(registry.methods()) for form in (("onnxruntime", 3), ("tensorrt", 1))),
        *((*variant, "tensorrt", 1) for variant in VARIANTS),
        *((*variant, "onnxruntime", 3) for variant in VARIANTS if variant[0] in ("slice", "pitome")),
    ],
)
def test_every_method_exports_to_the_same_network(
    method: str, options: dict[str, object], batch: int, runtime: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    check_export(method, options, batch, runtime, loaded, tmp_path)


@pytest.mark.parametrize("method", ["none", "evit", "zero_tprune", "tome", "bat", "diffrate"])
def test_the_operator_takes_one_image(method: str, loaded: LoadedModel, tmp_path: Path) -> None:
    """Whose mask has fewer dimensions than that of a batch."""
    check_export(method, {}, 1, "onnxruntime", loaded, tmp_path)


def check_export(
    method: str, options: dict[str, object], batch: int, runtime: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    model, pruned = exported(loaded, method, runtime, batch, **options)
    onnx.checker.check_model(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert not kinds.keys() & FORBIDDEN
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [batch, 3, 48, 48]
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [batch, 6]
    check(model, pruned.schedule, pruned.precision)  # the token counts are read off the graph
    assert unread(model) == []
    if runtime == "onnxruntime":
        apart = 2 if pruned.shape.place == "values" else 0  # stages whose values are other tokens' than their map
        assert kinds["Attention"] == 3 - apart
        own = {"pomt": 2, "vote_mix": 2}.get(method, 0)  # softmaxes of the method itself, one a stage
        assert kinds["Softmax"] == own + apart, "maps and class rows come from the operator"
    else:
        assert "Attention" not in kinds
        if batch == 1 and importlib.util.find_spec("tensorrt_rtx_bindings"):
            from tests.runtime.tensorrt.rtx import Parsed

            assert tuple(Parsed.of(model).network.get_output(0).shape) == (1, 6)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    rank = {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.graph.value_info}
    by_element = [node for node in model.graph.node if node.op_type == "GatherElements"]
    assert all(rank[node.output[0]] <= 2 for node in by_element), "whole rows move by Gather"
    file = tmp_path / "graph.onnx"
    onnx.save(model, file)
    images = torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with open_engine(file, "onnxruntime", threads=1) as engine, torch.no_grad():
        np.testing.assert_allclose(engine.run(images.numpy()), pruned(images).numpy(), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("method", ["evit", "zero_tprune", "tome"])
def test_a_reducer_sees_only_the_evidence_it_asks_for(method: str, runtime: str, loaded: LoadedModel) -> None:
    """Whatever a form of attention has at hand: a method must not decide otherwise in a graph than in PyTorch."""
    _, pruned = exported(loaded, method, runtime, 1)
    pruned.attention = FORMS[runtime].attention
    seen: list[set[str]] = []
    for reducer in pruned.reducers.values():
        reducer.register_forward_pre_hook(
            lambda _, given: seen.append({name for name in registry.EVIDENCE if getattr(given[1], name) is not None})
        )
    pruned(torch.randn(1, 3, 48, 48))
    assert seen == [set(registry.method(method).needs)] * 2


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_an_attention_pool_exports_to_the_same_network(batch: int, runtime: str, tmp_path: Path) -> None:
    """Its mask of log sizes, too, whatever form the blocks' attention has."""
    model, pruned = exported(small_model(depth=3, global_pool="map"), "tome", runtime, batch)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    onnx.save(model, tmp_path / "graph.onnx")
    images = torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with open_engine(tmp_path / "graph.onnx", "onnxruntime", threads=1) as engine, torch.no_grad():
        np.testing.assert_allclose(engine.run(images.numpy()), pruned(images).numpy(), atol=1e-4)


def test_constant_images_keep_the_promises(loaded: LoadedModel, tmp_path: Path) -> None:
    """All patches tie: which of them stay is free, that the graph runs and gives finite logits is not."""
    for method in ("evit", "zero_tprune"):
        model, _ = exported(loaded, method, "onnxruntime", 1)
        onnx.save(model, tmp_path / f"{method}.onnx")
        with open_engine(tmp_path / f"{method}.onnx", "onnxruntime", threads=1) as engine:
            for value in (0.0, 1.0, -3.0):
                assert np.isfinite(engine.run(np.full((1, 3, 48, 48), value, np.float32))).all()


def test_nodes_are_named_after_their_modules(loaded: LoadedModel) -> None:
    model, _ = exported(loaded, "zero_tprune", "tensorrt", 1)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    for part in ("model.blocks.0.attn.qkv/MatMul", "model.blocks.2.mlp.fc2/MatMul", "reducers.2/TopK", "model.head/Gemm"):
        assert any(name.startswith(part) for name in names), part
    assert len(model.SerializeToString()) < 1.3 * sum(len(t.raw_data) for t in model.graph.initializer) + 60_000


def test_a_graph_that_breaks_a_promise_is_refused(loaded: LoadedModel) -> None:
    model, pruned = exported(loaded, "evit", "tensorrt", 1)
    with pytest.raises(GraphError, match=r"keeps \[23, 12, 12\] tokens .* says \[23, 12, 11\]"):
        check(model, (23, 12, 11), pruned.precision)
    bad = onnx.ModelProto()
    bad.CopyFrom(model)
    bad.graph.node.append(helper.make_node("NonZero", [INPUT], ["where"], name="sneaky"))
    with pytest.raises(GraphError, match="NonZero"):
        check(bad, pruned.schedule, pruned.precision)
    bad.CopyFrom(model)
    bad.graph.node.append(helper.make_node("Gelu", [INPUT], ["g"], domain="com.microsoft"))
    with pytest.raises(GraphError, match=r"com\.microsoft::Gelu"):
        check(bad, pruned.schedule, pruned.precision)
    bad.CopyFrom(model)
    bad.graph.initializer.append(helper.make_tensor("count", TensorProto.INT64, [1], [5000]))
    bad.graph.node.append(helper.make_node("TopK", [INPUT, "count"], ["v", "i"], name="huge"))
    with pytest.raises(GraphError, match="at most 3840"):
        check(bad, pruned.schedule, pruned.precision)


def test_each_tensor_is_stored_once(tmp_path: Path) -> None:
    loaded = small_model(channels=192, depth=3)
    models = [
        exported(loaded, method, runtime, 1)[0]
        for method, runtime in (("none", "onnxruntime"), ("evit", "onnxruntime"), ("evit", "tensorrt"))
    ]
    sizes = []
    with (tmp_path / "w.bin").open("wb") as stream:
        weights = SharedWeights(stream, "w.bin")
        for number, model in enumerate(models):
            weights.externalise(model)
            sizes.append(stream.tell())
            stream.flush()
            save(model, tmp_path / f"{number}.onnx")
            onnx.checker.check_model(str(tmp_path / f"{number}.onnx"))
    assert sizes[2] < 1.02 * sizes[0]
    parameters = sum(p.numel() for p in loaded.model.parameters()) * 4
    assert sizes[2] < 1.1 * parameters
