"""A program lowered in place gives the graph that PyTorch's exporter makes by tracing it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._decomp import get_onnx_implemented_overloads
from torch.onnx._internal.exporter._registration import ONNXRegistry

from edge_tprune.export import graph
from edge_tprune.export.exporter import quiet_exporter
from edge_tprune.export.graph import FORMS, INPUT, export
from edge_tprune.export.lowering import lower
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from tests.small import small_model


@pytest.mark.parametrize(("method", "runtime"), [("zero_tprune", "onnxruntime"), ("bat", "tensorrt")])
def test_the_graph_is_the_exporters_own(method: str, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = PrunedViT(small_model(depth=2).model, registry.method(method), (23, 12), {})
    ours = export(pruned, FORMS[runtime], 1, (3, 48, 48))
    monkeypatch.setattr(graph, "quick_exporter", quiet_exporter)
    theirs = export(pruned, FORMS[runtime], 1, (3, 48, 48))
    assert Counter(node.op_type for node in ours.graph.node) == Counter(node.op_type for node in theirs.graph.node)
    image = np.random.default_rng(0).normal(size=(1, 3, 48, 48)).astype(np.float32)
    np.testing.assert_array_equal(answer(ours, image), answer(theirs, image))


def answer(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    result: np.ndarray = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {INPUT: image})[0]
    return result


class Network(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def lowered(compute: Callable[[Tensor], Tensor], train: bool = False) -> tuple[bool, torch.export.ExportedProgram]:
    program = torch.export.export(Network(compute).train(train), (torch.ones(2, 6),))
    return lower(program, frozenset(get_onnx_implemented_overloads(ONNXRegistry.from_torchlib()))), program


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.double().float().double(),
        lambda x: x.reshape(3, 4).flatten() + x.float().reshape(-1),
        lambda x: torch.cat(x.chunk(4, 1)[::-1], 1),  # 6 in 4 parts are three
        lambda x: (x > 0) & (x < 2) | (x == 5),
        lambda x: x.float(),  # what is returned is what came in
        lambda x: torch.dropout(x, 0.5, False).contiguous() * 2,
    ],
)
def test_what_is_lowered_computes_the_same(compute: Callable[[Tensor], Tensor]) -> None:
    possible, program = lowered(compute)
    assert possible
    x = torch.linspace(-1, 6, 12).reshape(2, 6)
    expected, found = compute(x), program.module(check_guards=False)(x)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + torch.eye(6)[:2],  # ONNX has no translation
        lambda x: x.clone().add_(1),  # writes into its input
        lambda x: torch.dropout(x, 0.5, True),
    ],
)
def test_what_is_not_known_is_left_as_it_is(compute: Callable[[Tensor], Tensor]) -> None:
    possible, program = lowered(compute)
    assert not possible
    assert str(program.graph) == str(lowered(compute)[1].graph)
    assert any(node.op == "call_function" for node in program.graph.nodes)
