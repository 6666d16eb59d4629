"""The builder, with the real TensorRT-RTX: its parser and builder are TensorRT's and need no GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.graph import FORMS, SharedWeights, export, save
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import PRECISIONS
from edge_tprune.reduction.registry import method
from edge_tprune.runtime.tensorrt.builder import BuildError, Network
from edge_tprune.runtime.tensorrt.inspection import describe_engine_file
from edge_tprune.runtime.tensorrt.library import Library
from edge_tprune.runtime.tensorrt.record import EngineSettings, NetworkTensor


def graph(bundle: Bundle, budget: str) -> Path:
    return bundle.path / bundle.budget(budget).artifact("tensorrt-rtx").file


def test_the_parsed_network_keeps_the_tokens_of_the_schedule(rtx: Library, built: Path) -> None:
    bundle = Bundle.open(built)
    for budget in bundle.budgets:
        found = Network(rtx, graph(bundle, budget.name)).describe(len(budget.schedule))
        assert found.tokens_after_blocks == budget.schedule
        assert found.inputs == (NetworkTensor(name="image", shape=(1, 3, 48, 48), dtype="float32"),)
        assert found.outputs == (NetworkTensor(name="logits", shape=(1, 6), dtype="float32"),)
        assert found.attention == ("fusable",) * 4  # evit looks at the class token's row, which is computed beside the map
        assert found.operations["softmax"]["float32"] >= 4
    assert found.operations["topk"] == {"float32": 2}  # two stages


@pytest.mark.parametrize(
    ("name", "options", "attention"),
    [("zero_tprune", {}, "map is used"), ("tome", {}, "fusable")],
)
def test_says_which_block_cannot_fuse_its_attention(
    rtx: Library, loaded: LoadedModel, tmp_path: Path, name: str, options: dict[str, object], attention: str
) -> None:
    pruned = PrunedViT(loaded.model, method(name), (37, 25, 25, 25), options)
    model = export(pruned, FORMS["tensorrt-rtx"], 1, (3, 48, 48))
    with (tmp_path / "weights.bin").open("wb") as stream:
        SharedWeights(stream, "weights.bin").externalise(model)
    save(model, tmp_path / "g.onnx")
    found = Network(rtx, tmp_path / "g.onnx").describe(4)
    assert found.attention == ("fusable", attention, "fusable", "fusable")
    assert found.tokens_after_blocks == (37, 25, 25, 25)


@pytest.mark.parametrize(("precision", "fused"), [("mixed", 3), ("fp32", 0)])
def test_the_engine_file_tells_how_many_attentions_became_one_kernel(
    rtx: Library, loaded: LoadedModel, tmp_path: Path, precision: str, fused: int
) -> None:
    """Of four blocks, one has its map read by the reduction; and in float32 TensorRT fuses none."""
    pruned = PrunedViT(loaded.model, method("zero_tprune"), (37, 25, 25, 25), {}, PRECISIONS[precision])
    model = export(pruned, FORMS["tensorrt-rtx"], 1, (3, 48, 48))
    with (tmp_path / "weights.bin").open("wb") as stream:
        SharedWeights(stream, "weights.bin").externalise(model)
    save(model, tmp_path / "g.onnx")
    built_engine = Network(rtx, tmp_path / "g.onnx").compile(precision, EngineSettings(), target="sm86", blocks=4)
    became = describe_engine_file(built_engine.data)
    assert became is not None
    assert became.fused_attention == fused
    assert set(built_engine.network.operations["softmax"]) == {"float32"}
    half = "float32" if precision == "fp32" else "float16"
    assert built_engine.network.operations["convolution"] == {half: 1}


def broken(bundle: Bundle, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The 0.6 graph with `change` made to it."""
    file = graph(bundle, "0.6")
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    return file


def test_a_graph_that_does_not_parse_names_the_node(rtx: Library, bundle: Bundle) -> None:
    def cut(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name.startswith("model.blocks.2.mlp.fc1/MatMul"))
        node.input[0] = "nowhere"

    with pytest.raises(
        BuildError, match=r"cannot parse .*0\.6\.explicit\.onnx: node model\.blocks\.2\.mlp\.fc1/MatMul_\d+ \(MatMul\)"
    ) as error:
        Network(rtx, broken(bundle, cut))
    assert rtx.version in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_operation_is_named_too(rtx: Library, bundle: Bundle) -> None:
    def rename(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "TopK")
        node.op_type, node.domain = "Sieve", "elsewhere"
        model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))

    with pytest.raises(BuildError, match=r"TopK_\d+ \(Sieve\)"):
        Network(rtx, broken(bundle, rename))


def test_files_that_are_missing_or_no_graphs(rtx: Library, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"none\.onnx does not exist"):
        Network(rtx, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(BuildError, match=r"cannot parse .*text\.onnx"):
        Network(rtx, tmp_path / "text.onnx")
    shutil.copy(graph(bundle, "0.6"), tmp_path / "alone.onnx")
    with pytest.raises(BuildError, match="initializer"):
        Network(rtx, tmp_path / "alone.onnx")


def test_settings_reach_the_library(rtx: Library, built: Path) -> None:
    network = Network(rtx, graph(Bundle.open(built), "0.6"))
    trt = rtx.module
    config = network._config("fp32", EngineSettings(workspace_mb=64, optimization_level=1), "sm86")
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64_000_000
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert not config.get_flag(trt.BuilderFlag.TF32)  # FP32 means FP32
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86
    left = network._config("fp32", EngineSettings(), "sm89")
    assert left.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) > 64_000_000
    assert left.builder_optimization_level != 1


@pytest.mark.parametrize("wrong", [{"workspace_mb": 0}, {"optimization_level": 6}, {"optimization_level": -1}])
def test_settings_out_of_range_say_so(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong.values()))}.* out of range"):
        EngineSettings(**wrong)


def test_builds_an_engine_and_reports_its_progress(rtx: Library, built: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    network = Network(rtx, graph(Bundle.open(built), "0.6"))
    built_engine = network.compile("fp32", EngineSettings(), target="sm86", blocks=4, progress=lambda *step: seen.append(step))
    assert len(built_engine.data) > 4 * 300_000  # the weights are in it
    assert built_engine.typing == "strong"
    assert built_engine.warnings == []
    assert built_engine.timing_cache is None
    assert {"Building engine"} <= {text for text, _, _ in seen}
    assert all(0 <= done <= of for _, done, of in seen)


def test_a_corrupt_timing_cache_does_no_harm(rtx: Library, built: Path) -> None:
    network = Network(rtx, graph(Bundle.open(built), "0.6"))
    built_engine = network.compile("fp32", EngineSettings(), target="sm86", timing_cache=b"garbage" * 100)
    assert built_engine.data
    assert built_engine.timing_cache
    again = Network(rtx, graph(Bundle.open(built), "0.6"))
    assert again.compile("fp32", EngineSettings(), target="sm86", timing_cache=built_engine.timing_cache).warnings == []


def test_fp32_on_a_gpu_without_it_says_what_to_do(rtx: Library, built: Path) -> None:
    with pytest.raises(BuildError, match="--precision"):
        Network(rtx, graph(Bundle.open(built), "0.6")).compile("fp32", EngineSettings(), target="sm75")


def test_without_a_gpu_a_build_for_the_one_at_hand_is_one_clear_line(rtx: Library, built: Path, no_gpu: None) -> None:
    with pytest.raises(BuildError, match="could not build an engine") as error:
        Network(rtx, graph(Bundle.open(built), "0.6")).compile("fp32", EngineSettings())
    assert "driver" in str(error.value)
    assert "\n" not in str(error.value)


def test_skipped_tactics_are_surfaced(rtx: Library, built: Path) -> None:
    """The library says this on boards that are short of memory; here its own logger says so."""
    network = Network(rtx, graph(Bundle.open(built), "1.0"))
    severity = rtx.module.ILogger.Severity.WARNING
    network.log.logger.log(
        severity, "Tactic Device request: 4096MB Available: 512MB. Device memory is insufficient to use tactic."
    )
    network.log.logger.log(
        severity, "Skipping tactic 0x0 due to insufficient memory on requested size of 8192 detected for tactic 0x2."
    )
    network.log.logger.log(severity, "Something else that is of no interest")
    built_engine = network.compile("fp32", EngineSettings(), target="sm86")
    assert built_engine.skipped_tactics == 2
    (warning,) = built_engine.warnings
    assert "2 tactics were left out for lack of memory" in warning
    assert "4096MB" in warning
