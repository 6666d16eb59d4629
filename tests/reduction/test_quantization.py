"""Linear layers of 8-bit integers against the definition, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import prune
from edge_tprune.reduction.quantization import INT8, UINT8, IntegerType, QuantizedLinear, quantizable, quantize_layers
from tests.small import small_model

RANGES = ((-0.5, 3.0), (0.25, 2.0), (-2.0, -1.0), (-4.0, 1.0))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return small_model()


def slow_integers(x: np.ndarray, low: float, high: float, kind: IntegerType) -> tuple[np.ndarray, float, int]:
    """One number after the other: integers, scale and zero point."""
    if kind is INT8:
        scale, zero, lowest, highest = max(abs(low), abs(high)) / 127, 0, -128, 127
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        scale, lowest, highest = (high - low) / 255, 0, 255
        zero = round(-low / scale)
    return np.array([min(highest, max(lowest, round(float(value) / scale) + zero)) for value in x]), scale, zero


@pytest.mark.parametrize("kind", [UINT8, INT8])
@pytest.mark.parametrize("limits", RANGES)
def test_a_layer_multiplies_the_integers_of_the_definition(kind: IntegerType, limits: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(5, 4)
    x = 4 * torch.randn(5, generator=generator)
    with torch.no_grad():
        got = QuantizedLinear.of(layer, *limits, kind)(x[None, None])[0, 0].numpy()
    integers, scale, zero = slow_integers(x.numpy(), *limits, kind)
    expected = []
    for weights, bias in zip(layer.weight.detach().numpy(), layer.bias.detach().numpy()):
        step = np.abs(weights).max() / 127
        total = sum((int(q) - zero) * round(float(w / step)) for q, w in zip(integers, weights))  # in whole numbers
        expected.append(total * scale * step + bias)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [UINT8, INT8])
@pytest.mark.parametrize("limits", [*RANGES, (0.0, 0.0)])
def test_zero_stays_zero(kind: IntegerType, limits: tuple[float, float]) -> None:
    scale, zero = kind.scale_and_zero(*limits)
    assert scale > 0
    assert kind.lowest <= zero <= kind.highest


def test_some_rows_are_those_of_all() -> None:
    layer = QuantizedLinear.of(nn.Linear(6, 9), -2.0, 2.0, UINT8)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(layer.rows(x, layer.bias[3:7], slice(3, 7)), layer(x)[..., 3:7])


def test_every_linear_of_the_blocks_and_no_other_becomes_integers(loaded: LoadedModel) -> None:
    names = set(quantizable(loaded.model))
    assert names == {f"blocks.{b}.{part}" for b in range(4) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    kept = "blocks.2.mlp.fc2"
    made = quantize_layers(loaded.model, dict.fromkeys(names, (-4.0, 4.0)), UINT8, keep=[kept])
    assert {n for n, m in made.named_modules() if isinstance(m, QuantizedLinear)} == names - {kept}
    assert type(loaded.model.get_submodule("blocks.0.attn.qkv")) is nn.Linear, "the given network stays as it was"
    assert made.norm.weight is loaded.model.norm.weight, "floats are shared"


@pytest.mark.parametrize("method", ["evit", "mctf"])  # mctf asks for parts of the fused projection
def test_reductions_run_on_integers(loaded: LoadedModel, method: str) -> None:
    network = quantize_layers(loaded.model, dict.fromkeys(quantizable(loaded.model), (-6.0, 6.0)), UINT8)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        whole = prune(network, method=method, budget=0.6)(images)
    assert whole.shape == (2, 6)
    assert whole.isfinite().all()
