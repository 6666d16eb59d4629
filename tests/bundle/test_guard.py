"""An engine that answers wrongly is found, the block at fault is named, and precision is raised until it answers rightly, or it is refused.

The faults are in real graphs, which ONNX Runtime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import edge_tprune
from edge_tprune.bundle import graph_edit, guard
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.fallback import PASSED, Fallback
from edge_tprune.bundle.golden import GoldenResult, check_golden
from edge_tprune.bundle.graph_file import GraphFile
from edge_tprune.bundle.guard import Guard, first_wrong, token_distance
from edge_tprune.errors import NegativeAnswer
from edge_tprune.models.loading import LoadedModel
from edge_tprune.runtime.engine import Engine, open_engine
from edge_tprune.runtime.tensorrt.builder import Network
from edge_tprune.runtime.tensorrt.library import Library
from edge_tprune.runtime.tensorrt.record import EngineSettings
from tests.bundle.faults import Fault, damage, double, half_bundle, overflow_norm, put_into


@pytest.fixture
def half(halved: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle with its graphs in fp16 for ONNX Runtime."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return half_bundle(halved.path, tmp_path / "half")


def run_stream(path: Path, block: int, batch: np.ndarray, precision: str = "fp16") -> np.ndarray:
    """What a graph of the bundle gives after a block."""
    file = path / "onnx" / f"0.6.{'explicit.fp16' if precision == 'fp16' else 'attention-op'}.onnx"
    cut = file.with_name("cut.onnx")
    cut.write_bytes(graph_edit.cut_after(GraphFile.parse(file.read_bytes()), block).encode())
    with open_engine(cut, "onnxruntime", threads=1) as engine:
        found = engine.run(batch)
    cut.unlink()
    return found.reshape(len(batch), -1, found.shape[-1])  # of rows, too


def judged(bundle: Bundle, precision: str) -> GoldenResult:
    file = bundle.path / bundle.budget("0.6").artifact("onnxruntime", precision).file
    with open_engine(file, "onnxruntime", threads=1) as engine:
        return check_golden(engine.run, bundle.golden(), "0.6", precision=precision)


def fall_back(bundle: Bundle, precision: str = "fp16") -> tuple[Fallback, Path | None]:
    result = judged(bundle, precision)
    assert not result.passed
    return Guard(bundle, "0.6", "onnxruntime", precision, threads=1).fall_back(result)


def test_a_scale_that_is_off_by_two_is_named_and_only_another_graph_helps(half: Path) -> None:
    bundle = damage(half, "0.6", "fp16", double(3))
    fallback, file = fall_back(bundle)
    assert fallback.fault == "block 3 of 4"
    assert [(step.what, step.outcome == PASSED) for step in fallback.steps] == [
        ("block 3 in float32", False),
        ("norms in float32", False),
        ("attention in float32", False),
        ("mixed", False),
        ("fp32", True),
    ]
    assert fallback.steps[1].outcome == "nothing to change in this graph"
    assert file == half / "onnx/0.6.attention-op.onnx"
    assert fallback.now == "fp32"


def test_a_norm_that_overflows_on_outlier_images_only(half: Path) -> None:
    golden = Bundle.open(half).golden()
    assert golden.outliers is not None
    largest = [np.abs(run_stream(half, 1, batch)).max() for batch in golden.batches]
    photos, outliers = max(largest[:2]), max(largest[2:])
    assert outliers > 1.05 * photos
    bundle = damage(half, "0.6", "fp16", overflow_norm(2, float((photos + outliers) / 2)))
    result = judged(bundle, "fp16")
    assert result.difference <= result.allowed, "no photo shows it"
    assert "are not finite numbers on the outlier image" in result.describe()
    fallback, file = fall_back(bundle)
    assert (fallback.fault, fallback.now) == ("block 2 of 4", "block 2 in float32")
    assert [step.outcome for step in fallback.steps] == [PASSED]
    assert file is not None
    with open_engine(file, "onnxruntime", threads=1) as engine:
        assert check_golden(engine.run, golden, "0.6", precision="fp16").passed
    assert "in fp16 its logits are not finite" in fallback.describe()
    assert fallback.describe().endswith("Fault: block 2 of 4. It runs with block 2 in float32 instead")


@pytest.mark.parametrize("block", [1, 3])
def test_a_wrong_compiler_is_told_from_a_wrong_graph(half: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """The graph is right, and the runtime makes something else of it, in every precision: nothing helps."""
    faulty(monkeypatch, double(block))
    bundle = Bundle.open(half)
    file = half / bundle.budget("0.6").artifact("onnxruntime", "fp16").file
    with guard.open_engine(file, "onnxruntime", threads=1) as engine:
        result = check_golden(engine.run, bundle.golden(), "0.6", precision="fp16")
    fallback, found = Guard(bundle, "0.6", "onnxruntime", "fp16", threads=1).fall_back(result)
    assert (fallback.fault, fallback.now, found) == (f"block {block} of 4", None, None)
    assert [step.what for step in fallback.steps][-2:] == ["mixed", "fp32"]
    assert "No higher precision helps: block" in fallback.describe()


def test_the_head_is_what_follows_the_last_block(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Gemm" and node.name.startswith("model.head"):
                node.attribute.append(onnx.helper.make_attribute("alpha", 2.0))

    faulty(monkeypatch, fault)
    bundle = Bundle.open(half)
    result = GoldenResult("logits", 5.0, 1.0)
    fallback, _ = Guard(bundle, "0.6", "onnxruntime", "fp32", threads=1).fall_back(result)
    assert fallback.fault == "after the last block"
    assert [step.outcome for step in fallback.steps] == ["there is no higher precision"]


def test_a_graph_that_cannot_be_taken_apart_has_no_fall_back(half: Path) -> None:
    """ONNX Runtime opens it all the same."""
    bundle = Bundle.open(half)
    file = half / bundle.budget("0.6").artifact("onnxruntime", "fp16").file
    model = onnx.load(file)
    model.graph.initializer.add(dims=[1], data_type=1, float_data=[1.0])
    onnx.save(model, file)
    fallback, found = Guard(bundle, "0.6", "onnxruntime", "fp16", threads=1).fall_back(GoldenResult("logits", 5.0, 1.0))
    assert found is None
    assert fallback.fault == "not known (a name is missing)"


def faulty(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Makes the runtime of engines under test, and not the reference, put a fault into every graph."""

    def open_faulty(file: Path, runtime: str, **options: Any) -> Engine:
        wrong = file.with_name(f"{file.stem}.wrong.onnx")
        put_into(file, wrong, fault)
        try:
            return open_engine(wrong, runtime, **options)
        finally:
            wrong.unlink()

    monkeypatch.setattr(guard, "open_engine", open_faulty)


def test_open_serves_what_it_fell_back_to_and_says_so(half: Path) -> None:
    bundle = damage(half, "0.6", "fp16", double(2))
    says = r"budget 0\.6: in fp16 its logits .* Fault: block 2 of 4\. It runs with fp32 instead"
    with pytest.warns(RuntimeWarning, match=says):
        model = edge_tprune.open(bundle, budget=0.6, precision="fp16", threads=1)
    with model:
        golden = bundle.golden()
        np.testing.assert_allclose(model.run(golden.images[0]), golden.outputs["0.6"][0], atol=1e-4)
        assert model.fallbacks["0.6"].now == "fp32"
    damage(half, "0.6", "fp32", double(2))
    with pytest.raises(NegativeAnswer, match=r"budget 0\.6 failed its golden check .* No higher precision helps"):
        edge_tprune.open(half, budget=0.6, precision="fp16", threads=1)


@pytest.mark.parametrize("wrong", [1, 2, 5, 12, None])
def test_bisection_finds_the_first_wrong_block(wrong: int | None) -> None:
    asked: list[int] = []

    def is_near(block: int) -> bool:
        asked.append(block)
        return wrong is None or block < wrong

    assert first_wrong(12, is_near) == wrong
    assert len(asked) <= 5


def test_token_distance_ignores_order_and_single_tokens() -> None:
    tokens = np.random.default_rng(0).standard_normal((2, 20, 8)).astype(np.float32)
    assert token_distance(tokens[:, ::-1], tokens) < 1e-6
    other = tokens.copy()
    other[:, 3] += 9
    assert token_distance(other, tokens) < 1e-6
    assert token_distance(tokens * 1.5, tokens) > 0.2
    other[0, 0, 0] = np.nan
    assert token_distance(other, tokens) == np.inf


@pytest.mark.parametrize("name", ["0.6.attention-op.onnx", "0.6.explicit.onnx", "0.6.explicit.fp16.onnx"])
def test_graph_files_are_read_and_written_as_onnx_does(halved: Bundle, name: str) -> None:
    data = (halved.path / "onnx" / name).read_bytes()
    graph = GraphFile.parse(data)
    assert onnx.load_from_string(graph.encode()) == onnx.load_from_string(data)
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True).graph
    half = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    half |= {t.name for t in inferred.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert graph.half_values() == half


def test_blocks_end_where_those_of_the_module_do(halved: Bundle, loaded: LoadedModel) -> None:
    module = edge_tprune.prune(loaded.model, method="evit", schedule=halved.budget("0.6").schedule)
    image = halved.golden().images[0]
    with torch.no_grad():
        stream = module._embed(torch.from_numpy(image.copy()))
        for block in range(1, 5):
            stream = module._block(block, stream)
            found = run_stream(halved.path, block, image, "fp32")
            np.testing.assert_allclose(found, stream.x.numpy(), atol=1e-3, rtol=1e-3)


def test_everything_in_float32_leaves_no_half_precision(halved: Bundle) -> None:
    graph = GraphFile.parse((halved.path / "onnx/0.6.explicit.fp16.onnx").read_bytes())
    raised = graph_edit.in_float(graph, range(len(graph.nodes)))
    weights = {name for name, (kind, _) in graph.initializers.items() if kind == 10}
    assert raised.half_values() <= weights
    onnx.shape_inference.infer_shapes(onnx.load_from_string(raised.encode()), strict_mode=True)


def test_tensorrt_rtx_builds_what_is_cut_or_raised(halved: Bundle, rtx: Library) -> None:
    """NVIDIA's own parser and builder take the edited graphs."""
    file = halved.path / "onnx/0.6.explicit.fp16.onnx"
    graph = GraphFile.parse(file.read_bytes())
    edited = {"cut": graph_edit.cut_after(graph, 2), "block": graph_edit.in_float(graph, graph_edit.block_nodes(graph, 2))}
    for name, changed in edited.items():
        target = file.with_name(f"{name}.onnx")
        target.write_bytes(changed.encode())
        try:
            built = Network(rtx, target).compile("fp16", EngineSettings(), target="sm86", blocks=2)
        finally:
            target.unlink()
        assert built.network.tokens_after_blocks == halved.budget("0.6").schedule[:2]
