"""Operations that the methods share, in PyTorch and in the graphs of every form."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edge_tprune.export.graph import FORMS
from edge_tprune.reduction.ops import unit


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


def rows(width: int) -> np.ndarray:
    """Ordinary rows, small and large ones, and a zero row: (1, 6, width)."""
    x = np.random.default_rng(0).normal(size=(1, 6, width))
    return (x * np.array([1.0, 1.0, 0.03, 1e3, 1e4, 0.0])[:, None]).astype(np.float32)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("width", [64, 255, 256, 384])
def test_rows_have_unit_length_and_zero_stays_zero(form: str, width: int) -> None:
    x = rows(width)
    exact = x.astype(np.float64)
    wanted = exact / np.maximum(np.linalg.norm(exact, axis=-1, keepdims=True), 1e-9)
    np.testing.assert_allclose(unit(torch.from_numpy(x)).numpy(), wanted, atol=2e-5)
    program = torch.onnx.export(
        Unit().eval(), (torch.from_numpy(x),), dynamo=True, opset_version=FORMS[form].opset, input_names=["x"], verbose=False
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, atol=2e-5)
