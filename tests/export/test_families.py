"""Graphs of every family and output: ONNX Runtime computes what PyTorch does, and NVIDIA's parser takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import edge_tprune
from edge_tprune.bundle.outputs import max_difference
from edge_tprune.export.graph import FORMS, SharedWeights, export, save
from edge_tprune.models.adapter import OUTPUTS
from edge_tprune.reduction import network_shape
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.runtime.engine import open_engine
from tests.reduction.conftest import KINDS, SIZES, randomise

METHODS = ("tome", "zero_tprune", "random")
SIZE = (3, 32, 32)
# Each kind with one output and one method, so that every output and method meets several kinds.
CASES = {(kind, OUTPUTS[place % 4], METHODS[place % 3]) for place, kind in enumerate(sorted(KINDS))}


def prune(kind: str, output: str, method: str) -> PrunedViT:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "depth", 3)  # a network of each kind is exported here, so each is as small as two stages allow
        model = randomise(KINDS[kind]()).requires_grad_(False)
    prefix = network_shape(model).prefix_tokens
    return edge_tprune.prune(model, method=method, schedule=[prefix + patches for patches in (12, 9, 9)], output=output)


@pytest.mark.parametrize(("kind", "output", "method"), sorted(CASES))
def test_onnx_runtime_computes_what_pytorch_does(kind: str, output: str, method: str, tmp_path: Path) -> None:
    pruned = prune(kind, output, method)
    images = np.random.default_rng(4).normal(size=(2, *SIZE)).astype(np.float32)
    model = export(pruned, FORMS["onnxruntime"], 2, SIZE)
    with (tmp_path / "weights.bin").open("wb") as stream:
        SharedWeights(stream, "weights.bin").externalise(model)
    save(model, tmp_path / "graph.onnx")
    with torch.no_grad():
        expected = pruned(torch.from_numpy(images)).numpy()
    with open_engine(tmp_path / "graph.onnx", "onnxruntime", threads=1) as engine:
        assert engine.output_shape == expected.shape
        assert max_difference("features", engine.run(images), expected) < 1e-4
    assert [value.name for value in model.graph.output] == [output]


@pytest.mark.parametrize(
    ("kind", "output", "precision"),
    [
        ("eva02", "embedding", "fp32"), ("rope mixed", "tokens", "fp32"), ("beit", "features", "fp32"), ("registers", "tokens", "fp16"),
        ("dinov3", "features", "fp16"),
    ],
)  # fmt: skip
def test_nvidias_parser_takes_it(kind: str, output: str, precision: str) -> None:
    from edge_tprune.reduction import registry
    from edge_tprune.reduction.precision import PRECISIONS
    from tests.runtime.tensorrt.rtx import Parsed

    exact = prune(kind, output, "tome")
    pruned = PrunedViT(exact.model, registry.method("tome"), exact.schedule, {}, PRECISIONS[precision], output)
    network = Parsed.of(export(pruned, FORMS["tensorrt"], 1, SIZE)).network
    with torch.no_grad():
        expected = exact(torch.zeros(1, *SIZE)).shape
    assert network.get_output(0).name == output
    assert tuple(network.get_output(0).shape) == tuple(expected)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_a_hybrid_network_exports_to_the_same_network(runtime: str, tmp_path: Path) -> None:
    """Its patches are of a ResNet with group norms, for which ONNX's shape inference knows no operator."""
    network = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, num_classes=6).eval()
    pruned = edge_tprune.prune(network, method="tome", budget=0.8)
    save(export(pruned, FORMS[runtime], 2, (3, 64, 64)), tmp_path / "graph.onnx")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with open_engine(tmp_path / "graph.onnx", "onnxruntime", threads=1) as engine, torch.no_grad():
        np.testing.assert_allclose(engine.run(images.numpy()), pruned(images).numpy(), atol=1e-4)
