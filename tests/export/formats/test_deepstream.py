"""The graph fed as nvinfer feeds it: scale * (pixel - offset), one scale for all channels."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from PIL import Image

import edge_tprune
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.formats.package import export_package
from edge_tprune.export.formats.request import ExportRequest


def export(bundle: Bundle, out: Path, **changes: Any) -> Path:
    request = ExportRequest(**{"budget": "0.6", "format": "deepstream", "out": out, "runtime": "tensorrt"} | changes)
    return export_package(bundle, request).path


@pytest.fixture(scope="module")
def uneven(built: Path) -> Bundle:
    """The bundle, as if its channels had been normalised differently."""
    bundle = Bundle.open(built)
    prepared = msgspec.structs.replace(bundle.manifest.preprocessing, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.3))
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, preprocessing=prepared))


def test_what_nvinfer_computes_gives_the_answer(uneven: Bundle, tmp_path: Path) -> None:
    path = export(uneven, tmp_path / "out")
    config = configparser.ConfigParser()
    config.read(path / "config_infer.txt")
    properties = config["property"]
    for key in ("onnx-file", "labelfile-path"):
        assert (path / properties[key]).is_file()
    assert (properties["network-type"], properties["network-mode"], properties["infer-dims"]) == ("1", "0", "3;48;48")
    assert properties["model-engine-file"] == "model.onnx_b1_gpu0_fp32.engine"
    assert (path / "labels_deepstream.txt").read_text() == "0;1;2;3;4;5\n"

    side = 48
    frame = Image.open(path / "golden.png").resize((side, side), Image.Resampling.BILINEAR)  # nvinfer scales the whole frame
    offsets = np.array([float(value) for value in properties["offsets"].split(";")], np.float32)[:, None, None]
    pixels = np.float32(properties["net-scale-factor"]) * (np.asarray(frame, np.float32).transpose(2, 0, 1) - offsets)
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run([properties["output-blob-names"]], {"image": pixels[None]})
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    mean, std = (
        np.array(v, np.float32)[:, None, None] for v in (uneven.manifest.preprocessing.mean, uneven.manifest.preprocessing.std)
    )
    prepared = ((np.asarray(frame, np.float32).transpose(2, 0, 1) / 255 - mean) / std).astype(np.float32)
    with edge_tprune.open(uneven, budget="0.6", threads=1) as model:
        logits = model(prepared).astype(np.float64)
    np.testing.assert_allclose(probabilities[0], np.exp(logits) / np.exp(logits).sum(), atol=1e-3)


def test_the_readme_says_what_nvinfer_does_otherwise(uneven: Bundle, tmp_path: Path) -> None:
    text = (export(uneven, tmp_path / "out") / "README.md").read_text()
    assert "gst-launch-1.0" in text
    assert "bilinearly" in text
    assert json.loads((tmp_path / "out/golden.json").read_text())["top"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "onnxruntime"}, "opset 18"),
        ({"frame": (48, 48)}, "leave --fold-preprocessing out"),
        ({"top_k": 2}, "leave --top-k out"),
    ],
)
def test_what_nvinfer_cannot_hold(uneven: Bundle, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(uneven, tmp_path / "out", **changes)


def test_mixed_precision_is_refused(uneven: Bundle, tmp_path: Path) -> None:
    """nvinfer would choose the precision of each layer itself."""
    budget = uneven.budget("0.6")
    mixed = tuple(msgspec.structs.replace(a, precision="mixed") for a in budget.artifacts)
    budgets = tuple(msgspec.structs.replace(b, artifacts=mixed) if b is budget else b for b in uneven.budgets)
    changed = Bundle(uneven.path, msgspec.structs.replace(uneven.manifest, budgets=budgets))
    with pytest.raises(UserError, match="mixed precision"):
        export(changed, tmp_path / "out")
