"""Real bundles of tiny graphs: chains of matrix products whose sizes differ as much as a test needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_tprune.files import sha256_file

IMAGE = (1, 3, 8, 8)
CLASSES = 10

#: Budget -> (layers, width). "big" has 80 times the weights of "small" (21 MB against 0.3 MB).
SIZES = {"big": (20, 512), "middle": (5, 512), "small": (1, 256)}


_SURE = {"value": 0.0, "low": 0.0, "high": 0.0, "confidence": 0.95}
ACCURACY = {
    "data": {"name": "tiny", "images": 4, "labelled": True, "sha256": "0" * 64},
    "images": 4,
    "runtime": "onnxruntime",
    "precision": "fp32",
    "evaluated_utc": "2025-01-01T00:00:00+00:00",
    "top1_percent": 50.0,
    "top1_change_points": _SURE,
    "top5_percent": None,
    "top5_change_points": None,
    "agreement_percent": _SURE,
    "kl_nats": _SURE,
}


def write_bundle(path: Path, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """A valid bundle: per budget tanh(x W) repeated, with golden outputs from numpy."""
    (path / "onnx").mkdir(parents=True)
    random = np.random.default_rng(0)
    images = random.standard_normal((3, *IMAGE), dtype=np.float32)
    golden: dict[str, Any] = {"input": images}
    budgets = []
    for name, (layers, width) in sizes.items():
        shapes = [(192, width), *[(width, width)] * layers, (width, CLASSES)]
        weights = [(random.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]
        file = path / "onnx" / f"{name}.onnx"
        onnx.save(_graph(weights), file)
        values = images.reshape(3, 192)
        for weight in weights:
            values = np.tanh(values @ weight)
        golden[f"logits/{name}"] = values.reshape(3, 1, CLASSES)
        budgets.append(
            {
                "name": name,
                "requested": None,
                "schedule": [layers],
                "macs": sum(weight.size for weight in weights),
                "macs_share": 1.0,
                "parity": {"onnxruntime": {"images": 3, "max_abs_logit_difference": 0.0}},
                "accuracy": ACCURACY if name == "small" else None,
                "artifacts": [
                    {
                        "runtime": "onnxruntime",
                        "precision": "fp32",
                        "form": "explicit",
                        "file": f"onnx/{name}.onnx",
                        "sha256": sha256_file(file),
                        "bytes": file.stat().st_size,
                    }
                ],
            }
        )
    np.savez(path / "golden.npz", **golden)
    zeros = hashlib.sha256(b"").hexdigest()
    manifest = {
        "format": "edge-tprune-bundle",
        "version": 1,
        "name": "tiny/chain of products",
        "tool_version": "0",
        "created_utc": "2025-01-01T00:00:00+00:00",
        "fingerprint": zeros,
        "batch": 1,
        "model": {
            "name": "chain",
            "weights": "random",
            "weights_sha256": zeros,
            "classes": CLASSES,
            "parameters": 1,
            "tokens": 1,
            "prefix_tokens": 0,
            "blocks": 1,
            "macs": 1,
            "input": {"name": "image", "shape": list(IMAGE), "dtype": "float32"},
            "output": {"name": "logits", "shape": [1, CLASSES], "dtype": "float32"},
        },
        "preprocessing": {
            "input_size": list(IMAGE[1:]),
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
        "method": {"name": "none", "options": {}, "blocks": []},
        "budgets": budgets,
        "files": {},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    hash_golden(path)
    return path


def hash_golden(path: Path) -> None:
    """Makes the manifest agree with a changed golden.npz."""
    manifest = json.loads((path / "manifest.json").read_text())
    golden = path / "golden.npz"
    manifest["files"]["golden.npz"] = {"sha256": sha256_file(golden), "bytes": golden.stat().st_size}
    (path / "manifest.json").write_text(json.dumps(manifest))


def change_golden(path: Path, budget: str, amount: float) -> None:
    """Adds `amount` to one golden logit of `budget`."""
    with np.load(path / "golden.npz") as data:
        golden: dict[str, Any] = dict(data)
    golden[f"logits/{budget}"][-1, 0, -1] += amount
    np.savez(path / "golden.npz", **golden)
    hash_golden(path)


def _graph(weights: list[np.ndarray]) -> onnx.ModelProto:
    nodes = [helper.make_node("Flatten", ["image"], ["x0"])]
    for index in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"y{index}"]))
        nodes.append(helper.make_node("Tanh", [f"y{index}"], [f"x{index + 1}"]))
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
