"""INT8 graphs: calibrated on photos, judged on others, and refused where they lose too much."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

from edge_tprune.bundle import graph_edit
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import evaluate
from edge_tprune.bundle.graph_file import GraphFile
from edge_tprune.cli import main
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.export.builder import build
from edge_tprune.export.calibration import Calibration, calibrate
from edge_tprune.export.graph import FORMS, GraphError, check
from edge_tprune.export.integer_parity import MOST_FLOAT_LAYERS, IntegerLoss
from edge_tprune.export.settings import BuildSettings
from edge_tprune.models.loading import LoadedModel
from edge_tprune.record.reader import read_run
from edge_tprune.reduction.precision import PRECISIONS
from edge_tprune.reduction.quantization import QuantizedLinear
from edge_tprune.runtime.engine import open_engine
from tests.bundle.test_evaluate import Noise
from tests.models.folders import save_classes
from tests.small import decide, small_model

PHOTOS = Noise(count=35, labelled=False)
FORM = FORMS["onnxruntime"]


@dataclass(frozen=True)
class Grey(Noise):
    """The same grey image again and again."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (60, 50), (90, 90, 90)), -1


def quiet(what: str, done: int, of: int) -> None:
    pass


def settings_for(loaded: LoadedModel, **options: object) -> BuildSettings:
    given = {
        "budgets": [1.0, 0.6],
        "blocks": [2, 3],
        "precisions": ["fp32", "int8"],
        "calibration": PHOTOS,
        "allowed_loss": 1.0,
    }
    return decide(loaded, "evit", **{**given, **options})


@pytest.fixture(scope="module")
def integers(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(loaded, settings_for(loaded), tmp_path_factory.mktemp("int8") / "bundle").bundle


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> Calibration:
    return calibrate(loaded, settings_for(loaded), PHOTOS, [], quiet)


def test_a_bundle_says_how_its_integers_came_about(integers: Bundle) -> None:
    manifest = Bundle.open(integers.path).manifest
    found = manifest.quantization
    assert found is not None
    assert (found.watched, found.chosen_on, found.judged) == (10, 5, 20)
    assert found.data.sha256 == PHOTOS.fingerprint
    rule = found.rules["uint8"]
    assert rule.distances[rule.name] == min(rule.distances.values())
    assert set(rule.distances) == {"min-max", "percentile", "entropy", "mean-square"}
    bounds = integers.golden().allowed
    assert set(bounds) == {(budget.name, "int8") for budget in manifest.budgets}
    assert all(float(bound.min()) > 0 for bound in bounds.values())
    for budget in manifest.budgets:
        assert [a.precision for a in budget.artifacts] == ["fp32", "int8"]
        record = budget.parity["onnxruntime-int8"]
        assert record.images == found.judged
        assert record.kl_nats is not None
        assert record.kl_nats > 0
        assert record.loss is not None
        assert record.loss <= record.allowed_loss == 1.0
    assert [s.block for s in manifest.budget("0.6").parity["onnxruntime-int8"].selection or ()] == [2, 3]


def test_all_budgets_share_their_integers(integers: Bundle) -> None:
    places = []
    for budget in integers.budgets:
        model = onnx.load(integers.path / budget.artifact("onnxruntime", "int8").file, load_external_data=False)
        places.append(
            {
                tuple((entry.key, entry.value) for entry in tensor.external_data)
                for tensor in model.graph.initializer
                if tensor.data_type == onnx.TensorProto.INT8 and tensor.external_data
            }
        )
    assert len(places[0]) == 16, "four layers in each of four blocks"
    assert places[0] == places[1]


def test_onnx_runtime_multiplies_integers_in_every_layer(integers: Bundle, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(integers.path / integers.budget("0.6").artifact("onnxruntime", "int8").file, options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 16
    assert kinds.count("QuantizeLinear") == 16
    assert "DequantizeLinear" not in kinds


def test_eval_judges_integers_against_float32(integers: Bundle) -> None:
    _, records = evaluate(integers, Noise(count=9), precision="int8", threads=1)
    record = records["0.6"]
    assert (record.precision, record.images) == ("int8", 9)
    assert record.against_fp32 is not None
    assert record.against_fp32.kl_nats is not None
    assert Bundle.open(integers.path).budget("0.6").accuracy_in("int8") == record


def test_the_commands_judge_time_and_choose_integers_beside_floats(
    integers: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, photos = integers.path, save_classes(tmp_path / "photos", [f"class-{number}" for number in range(6)])
    for precision in ("fp32", "int8"):
        assert main(["eval", str(bundle), "--data", str(photos), "--precision", precision, "--threads", "1"]) == 0
    quick = ["--rounds", "1", "--seconds", "0.01", "--warmup", "0", "--baseline", "0", "--threads", "1"]
    capsys.readouterr()
    assert main(["profile", str(bundle), "--precision", "fp32,int8", "--out", str(tmp_path / "profiles"), *quick]) == 0
    run = read_run(Path(capsys.readouterr().out.strip()))
    assert set(run.budgets) == {"1.0", "0.6", "1.0@int8", "0.6@int8"}
    assert {check.golden_ok for check in run.checks.values()} == {True}
    assert main(["select", str(run.path), "--max-p95-ms", "100000", "--max-top1-drop", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"]["budget"] in run.budgets


def test_a_block_can_read_its_inputs_unrounded(integers: Bundle) -> None:
    """As the guard does with a block that is wrong in INT8: nearer to float32, and nothing else changes."""
    golden, budget = integers.golden(), integers.budget("1.0")
    file = integers.path / budget.artifact("onnxruntime", "int8").file
    graph = GraphFile.parse(file.read_bytes())
    counts, distances = [], []
    for places in (set[int](), graph_edit.block_nodes(graph, 2), set(range(len(graph.nodes)))):
        edited, target = graph_edit.without_integers(graph, places), file.with_name("edited.onnx")
        target.write_bytes(edited.encode())
        with open_engine(target, "onnxruntime", threads=1) as engine:
            found = np.stack([engine.run(image) for image in golden.images])
        target.unlink()
        counts.append(sum(node.op_type == "QuantizeLinear" for node in edited.nodes))
        distances.append(float(np.abs(found - golden.outputs["1.0"]).max()))
    assert counts == [16, 12, 0], "four layers a block"
    assert distances[2] < distances[0]


def test_a_graph_is_its_module(integers: Bundle, calibration: Calibration) -> None:
    budget = calibration.settings.budgets[1]
    module = calibration.module(budget, FORM.inputs)
    assert isinstance(module.model.blocks[0].attn.qkv, QuantizedLinear)
    images = calibration.photos.judged[:8]
    file = integers.path / integers.budget("0.6").artifact("onnxruntime", "int8").file
    with torch.no_grad(), open_engine(file, "onnxruntime", threads=1) as engine:
        off = [np.abs(engine.run(image[None].numpy()) - module(image[None]).numpy()).max() for image in images]
        rounding = [float((budget.module(image[None]) - module(image[None])).abs().max()) for image in images]
    # Most images have the very integers; in some a value on the edge of two integers goes the other way.
    assert np.median(off) < 0.2 * np.median(rounding)


def test_layers_can_stay_floats(calibration: Calibration) -> None:
    budget = calibration.settings.budgets[1]
    module = replace(calibration, keep=("blocks.3.mlp.fc2",), rules={}, _networks={}).module(budget, FORM.inputs)
    kinds = [type(module.model.get_submodule(f"blocks.{block}.mlp.fc2")) for block in (2, 3)]
    assert kinds == [QuantizedLinear, nn.Linear]


def test_a_graph_in_another_precision_is_not_taken_for_integers(integers: Bundle) -> None:
    budget = integers.budget("0.6")
    single, whole = (onnx.load(integers.path / budget.artifact("onnxruntime", kind).file) for kind in ("fp32", "int8"))
    with pytest.raises(GraphError, match="0 products of integers"):
        check(single, budget.schedule, PRECISIONS["int8"])
    with pytest.raises(GraphError, match="16 products of integers"):
        check(whole, budget.schedule, PRECISIONS["fp32"])
    node = next(node for node in whole.graph.node if node.op_type == "MatMul" and "mlp.fc1" in node.name)
    node.input[1] = "float_weight"
    whole.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((96, 384), np.float32), node.input[1]))
    with pytest.raises(GraphError, match=r"mlp\.fc1.* reads integers"):
        check(whole, budget.schedule, PRECISIONS["int8"])


@pytest.fixture(scope="module")
def lopsided() -> LoadedModel:
    """One channel inside an MLP a thousand times the others: nothing of them is left in 8 bits, and no norm is before it."""
    loaded = small_model()
    loaded = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        mlp = loaded.model.blocks[1].mlp
        mlp.fc1.bias[5] += 4000.0
        mlp.fc2.bias -= 4000.0 * mlp.fc2.weight[:, 5]
    return loaded


def test_what_loses_too_much_is_refused_and_the_layers_at_fault_are_named(
    lopsided: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_tprune.export.integer_parity.MOST_FLOAT_LAYERS", 0)
    settings = settings_for(lopsided, budgets=[1.0], precisions=["int8"], allowed_loss=0.01)
    with pytest.raises(
        NegativeAnswer, match=r"budget 1\.0: in int8 it loses .*cost most: blocks\.1\.mlp\.fc2 .*--float-layers"
    ):
        build(lopsided, settings, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [tmp_path / ".bundle.lock"] or not (tmp_path / "bundle").exists()


def test_the_layer_at_fault_stays_float_and_the_rest_is_integers(lopsided: LoadedModel, tmp_path: Path) -> None:
    settings = settings_for(lopsided, budgets=[1.0], precisions=["int8"], allowed_loss=0.05)
    built = build(lopsided, settings, tmp_path / "bundle")
    assert any(remark.endswith("blocks.1.mlp.fc2 stays in float instead") for remark in built.remarks)
    quantization = built.bundle.manifest.quantization
    assert quantization is not None
    assert quantization.float_layers == ("blocks.1.mlp.fc2",)
    record = built.bundle.budget("1.0").parity["onnxruntime-int8"]
    assert record.loss is not None
    assert record.loss <= 0.05
    again = build(lopsided, settings, tmp_path / "bundle")
    assert again.reused
    assert again.remarks == ["in int8 this network loses too much: blocks.1.mlp.fc2 stays in float instead"]


@pytest.mark.parametrize(
    ("allowed", "there", "chosen"),
    [(0.5, 0, ("a",)), (0.3, 0, ("a", "b")), (0.0, 0, ("a", "b", "c", "d")), (0.0, 3, ("a",)), (0.5, 4, ())],
)
def test_few_layers_stay_float_the_most_expensive_first(allowed: float, there: int, chosen: tuple[str, ...]) -> None:
    """The graph loses twice what its layers lose alone, on other photos."""
    losses = [("a", 0.3), ("b", 0.1), ("c", 0.05), ("d", 0.04), ("e", 0.01)]
    assert IntegerLoss("no", losses, 1.0, allowed).choose_float_layers(there) == chosen


def test_layers_that_a_person_keeps_in_float_leave_the_build_all_of_its_own(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [f"blocks.{block}.mlp.{name}" for block in range(4) for name in ("fc1", "fc2")]
    tried: list[tuple[str, ...]] = []

    def lose(loaded: LoadedModel, settings: BuildSettings, *_: object) -> None:
        tried.append(settings.float_layers)
        rest = [(layer, 0.1) for layer in layers if layer not in settings.float_layers]
        raise IntegerLoss("it loses too much", rest, 1.0, 0.0)

    monkeypatch.setattr("edge_tprune.export.builder.write_bundle", lose)
    with pytest.raises(IntegerLoss):
        build(loaded, settings_for(loaded, float_layers=layers[:3]), tmp_path / "bundle")
    assert [len(kept) for kept in tried] == [3, 3 + MOST_FLOAT_LAYERS]
    assert tried[1] == tuple(layers[:7])


def test_photos_that_cannot_serve(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"int8 needs photos.*--calibration"):
        settings_for(loaded, calibration=None)
    with pytest.raises(UserError, match="only int8 is calibrated"):
        settings_for(loaded, precisions=["fp32"])
    with pytest.raises(UserError, match="has 31 photos: calibration needs 32"):
        build(loaded, settings_for(loaded, calibration=Noise(count=31)), tmp_path / "few")
    with pytest.raises(UserError, match="all alike"):
        build(loaded, settings_for(loaded, calibration=Grey(count=40)), tmp_path / "grey")
    with pytest.raises(UserError, match=r"no layer 'blocks\.9.*There are 16"):
        build(loaded, settings_for(loaded, float_layers=["blocks.9.mlp.fc2"]), tmp_path / "layer")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_layer_without_a_range_is_named(loaded: LoadedModel) -> None:
    broken = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        broken.model.blocks[2].norm1.weight[0] = float("inf")
    with pytest.raises(NegativeAnswer, match=r"blocks\.2\.attn\.qkv reads numbers from .* no 8-bit range"):
        calibrate(broken, settings_for(broken), PHOTOS, [], quiet)
    silent = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        silent.model.blocks[1].norm2.weight.zero_()
        silent.model.blocks[1].norm2.bias.zero_()
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1 reads 0 everywhere"):
        calibrate(silent, settings_for(silent), PHOTOS, [], quiet)
