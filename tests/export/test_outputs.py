"""Bundles whose graphs give an embedding, features or tokens: written, proved in the output's own terms, judged, refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edge_tprune
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import evaluate
from edge_tprune.cli import main
from edge_tprune.errors import InternalError, UserError
from edge_tprune.export.builder import build
from edge_tprune.export.formats.package import export_package
from edge_tprune.export.formats.request import ExportRequest
from edge_tprune.export.parity import prove_equal
from edge_tprune.export.settings import decide
from edge_tprune.models.data import open_images
from edge_tprune.models.loading import LoadedModel
from edge_tprune.runtime.engine import open_engine
from tests.export.formats.alone import run_alone
from tests.models.folders import save_image
from tests.small import small_model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).resize((60, 60)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("output", "shape", "arguments"),
    [
        ("embedding", (1, 96), {"normalize": True}),
        ("features", (1, 96, 6, 6), {}),
        ("tokens", (1, 37, 96), {"runtimes": ["tensorrt"], "precisions": ["fp32", "fp16"]}),
    ],
)
def test_a_bundle_of_vectors(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, output: str, shape: tuple[int, ...], arguments: dict[str, object]
) -> None:
    settings = decide(loaded, "tome", budgets=[1.0, 0.8], blocks=[2], exact_savings=False, output=output, **arguments)  # type: ignore[arg-type]
    bundle = build(loaded, settings, tmp_path / "bundle").bundle
    opened = Bundle.open(bundle.path)
    model = opened.manifest.model
    assert (model.output.name, model.output.shape, model.classes) == (output, shape, 0)
    assert model.output.normalized == (output == "embedding")
    golden = opened.golden()
    for budget in opened.budgets:
        assert golden.outputs[budget.name].shape[1:] == shape
        for key, parity in budget.parity.items():
            assert parity.vectors is not None
            assert parity.max_abs_logit_difference is None
            assert 0 <= parity.vectors.cosine_distance <= parity.vectors.max_cosine_distance
            if not key.endswith("fp16"):
                assert parity.difference <= 1e-4
        if output == "embedding":
            np.testing.assert_allclose(np.linalg.norm(golden.outputs[budget.name], axis=-1), 1, rtol=1e-5)
            with open_engine(opened.path / budget.artifacts[0].file, "onnxruntime", threads=1) as engine:
                assert engine.output_shape == shape
    if output == "embedding":
        _check_the_python_package(opened, pictures, tmp_path)
    if output == "tokens":
        request = ExportRequest(
            budget="0.8", format="deepstream", out=tmp_path / "deepstream", runtime="tensorrt", precision="fp32"
        )
        package = export_package(opened, request)
        config = (package.path / "config_infer.txt").read_text().splitlines()
        assert {"network-type=100", "output-blob-names=tokens", "output-tensor-meta=1"} <= set(config)
        assert not any(line.startswith(("labelfile", "classifier")) for line in config)
        assert package.difference < 1e-4
    stored, records = evaluate(opened, open_images(pictures), threads=1)
    assert records["1.0"].cosine_distance is not None
    assert records["1.0"].cosine_distance.value == pytest.approx(0, abs=1e-6)
    pruned = stored.budget("0.8").accuracy
    assert pruned is not None
    assert pruned.cosine_distance is not None
    assert pruned.cosine_distance.value > 0
    assert (pruned.agreement_percent is not None) == (output == "embedding")
    assert pruned.kl_nats is None


def _check_the_python_package(bundle: Bundle, pictures: Path, folder: Path) -> None:
    """Its program prints what the bundle answers."""
    package = export_package(bundle, ExportRequest(budget="0.8", format="python", out=folder / "python")).path
    readme = (package / "README.md").read_text()
    assert "venv/bin/python infer.py golden.png" in readme
    assert "from infer import Model" in readme
    program, picture = package / "infer.py", pictures / "0.png"
    done = run_alone(
        program, str(picture), str(package / "no.jpg"), requirements=package / "requirements.txt", folder=folder / "alone"
    )
    with edge_tprune.open(bundle, budget=0.8, threads=1) as model:
        first = model(picture)[:5]
    name, values = done.stdout.splitlines()[1].split(": ")
    assert name.strip() == "embedding (96,)"
    assert [float(value) for value in values.split(", ")[:5]] == pytest.approx(first.tolist(), abs=1e-4)
    assert f"{package / 'no.jpg'} cannot be read as an image" in done.stderr
    assert "Traceback" not in done.stderr


def test_sub_directories_are_the_classes_that_embeddings_are_judged_by(
    loaded: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = decide(loaded, "tome", budgets=[1.0], exact_savings=False, output="embedding")
    bundle = build(loaded, settings, tmp_path / "bundle").bundle
    for seed, name in enumerate(("cat", "dog")):
        for number in range(2):
            save_image(tmp_path / "photos" / name / f"{number}.png", seed)
    assert main(["eval", str(bundle.path), "--data", str(tmp_path / "photos"), "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["1.0"]["top1_percent"] == 100


def test_a_graph_of_another_network_is_found_out(loaded: LoadedModel, tmp_path: Path) -> None:
    settings = decide(loaded, "tome", budgets=[1.0], exact_savings=False, output="features")
    bundle = build(loaded, settings, tmp_path / "bundle").bundle
    golden = bundle.golden()
    expected = golden.outputs["1.0"].copy()
    file = bundle.path / bundle.budget("1.0").artifacts[0].file
    assert prove_equal(file, "1.0", golden.images, expected, "features").vectors is not None
    expected[0, 0, :, 2, 2] += 0.01 * np.abs(expected).max()  # of one patch
    with pytest.raises(InternalError, match="worst relative difference of its features"):
        prove_equal(file, "1.0", golden.images, expected, "features")


def test_outputs_that_cannot_be(loaded: LoadedModel) -> None:
    headless = small_model()
    headless.model.reset_classifier(0)
    assert decide(headless, "tome", budgets=[1.0]).output == "embedding"
    with pytest.raises(UserError, match="small-test has no classifier head: choose --output embedding"):
        decide(headless, "tome", budgets=[1.0], output="logits")
    with pytest.raises(UserError, match="no output 'maps'"):
        decide(loaded, "tome", budgets=[1.0], output="maps")
    with pytest.raises(UserError, match="only an embedding"):
        decide(loaded, "tome", budgets=[1.0], output="features", normalize=True)
    assert decide(loaded, "tome", budgets=[1.0], output="tokens").label == "tome-tokens"
    assert decide(loaded, "tome", budgets=[1.0]).label == "tome"


def test_the_head_reads_all_of_a_map(loaded: LoadedModel) -> None:
    """No budget "exact", because the last block has all tokens to give, and MACs without those of the classifier."""
    features = decide(loaded, "tome", budgets=[1.0], output="features")
    assert [budget.name for budget in features.budgets] == ["1.0"]
    assert features.shape.macs() == decide(loaded, "tome", budgets=[1.0]).shape.macs() - 6 * 96
