"""Every format of DeiT-Tiny with real weights: what is written answers a photograph as PyTorch does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.export.builder import build
from edge_tprune.export.formats.package import FORMATS, export_package
from edge_tprune.export.formats.request import ExportRequest
from edge_tprune.export.settings import decide
from edge_tprune.models.loading import load_model
from tests.export.formats.alone import run_alone

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def deit(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    loaded = load_model("deit_tiny_patch16_224", shared_data / "weights/deit_tiny_patch16_224.safetensors")
    settings = decide(loaded, "slice", budgets=[0.65], runtimes=["onnxruntime", "tensorrt"])  # it has no near ties to look for
    return build(loaded, settings, tmp_path_factory.mktemp("deit") / "bundle").bundle


def test_every_format_holds_the_network(deit: Bundle, shared_data: Path, tmp_path: Path) -> None:
    photograph = min((shared_data / "imagenet-sample").rglob("*.[jJ][pP]*"))
    for name in FORMATS:
        runtime = "tensorrt" if name in ("deepstream", "isaac-ros") else "onnxruntime"
        frame = (256, 320) if name in ("cpp", "onnx") else None
        out = tmp_path / name
        request = ExportRequest(budget="0.65", format=name, out=out, runtime=runtime, frame=frame, name="deit")
        exported = export_package(deit, request)
        assert exported.difference < (1.0 if frame else 1e-3), name
        assert exported.about.tokens_after_blocks == tuple(deit.budget("0.65").schedule)
    golden = json.loads((tmp_path / "python/golden.json").read_text())
    assert np.isfinite(golden["logits"]).all()
    assert len(golden["logits"]) == 1000
    program, needs = tmp_path / "python/classify.py", tmp_path / "python/requirements.txt"
    done = run_alone(
        program, str(tmp_path / "python/golden.png"), str(photograph), requirements=needs, folder=tmp_path / "site"
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == 12
    assert printed[1].endswith(golden["top"][0]["label"])
