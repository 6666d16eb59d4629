"""Scale migration: nothing changes in floats, in any family; in integers channels of very different sizes cost nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edge_tprune.export import migration
from edge_tprune.export.calibration import Calibration, calibrate
from edge_tprune.export.migration import Channels, expected_error, find_migrations, migrate
from edge_tprune.export.observe import channels, observed
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import network_shape
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.quantization import UINT8, QuantizedLinear, quantize_layers
from edge_tprune.reduction.registry import method
from tests.export.test_integers import PHOTOS, quiet, settings_for
from tests.reduction.conftest import KINDS, SIZES, randomise
from tests.small import small_model

#: In what reads the norms of a block, every family is like one of these.
READERS = ("deit", "post norm", "swiglu", "eva02", "eva packed", "eva post norm", "shared keys", "gated", "beit", "beit plain")


def unpruned(model: nn.Module) -> PrunedViT:
    return PrunedViT(model, method("none"), network_shape(model).full_schedule(), {})


def watch(model: nn.Module, images: Tensor) -> dict[str, Channels]:
    watching = observed(model)
    unpruned(watching)(images)
    return channels(watching)


@torch.inference_mode()
@pytest.mark.parametrize("kind", READERS)
def test_floats_are_the_same_in_every_family(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "WORTH", float("inf"))
    monkeypatch.setitem(SIZES, "depth", 2)
    model, images = randomise(KINDS[kind]()).requires_grad_(False), torch.randn(2, 3, 32, 32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = find_migrations(model, watch(model, images))
    assert bool(found) == any(
        not isinstance(block.norm1, nn.Identity) and "Post" not in type(block).__name__ for block in model.blocks
    )
    expected, moved = unpruned(model)(images), unpruned(migrate(model, found))(images)
    torch.testing.assert_close(moved, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.fixture(scope="module")
def balanced() -> LoadedModel:
    return small_model()


@pytest.fixture(scope="module")
def lopsided(balanced: LoadedModel) -> LoadedModel:
    """The same function: in two norms a channel is 256 times as large, or far from zero, which the layer behind makes up for."""
    model = copy.deepcopy(balanced.model)
    with torch.no_grad():
        block = model.blocks[1]
        block.norm1.weight[7] *= 256
        block.norm1.bias[7] *= 256
        block.attn.qkv.weight[:, 7] /= 256
        block.norm2.bias[5] += 1000.0
        block.mlp.fc1.bias -= 1000.0 * block.mlp.fc1.weight[:, 5]
    return replace(balanced, model=model)


def calibrated(loaded: LoadedModel) -> Calibration:
    return calibrate(loaded, settings_for(loaded, budgets=[1.0]), PHOTOS, [], quiet)


@torch.inference_mode()
def loss(calibration: Calibration) -> float:
    """Mean square of what integers change of the logits, in units of their variance."""
    integers = quantize_layers(calibration.model, calibration.ranges(UINT8, "min-max"), UINT8)
    images = calibration.photos.judged
    expected = calibration.settings.budgets[0].module(images)
    return float((unpruned(integers)(images) - expected).square().mean() / expected.var())


def test_large_channels_cost_nothing_in_integers(
    balanced: LoadedModel, lopsided: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, migrated = calibrated(balanced), calibrated(lopsided)
    assert plain.record.migrated == (), "nothing is changed without need"
    assert migrated.record.migrated == ("blocks.1.norm1", "blocks.1.norm2")
    monkeypatch.setattr(migration, "WORTH", 0.0)
    assert loss(calibrated(lopsided)) > 20 * loss(plain)
    assert loss(migrated) < 2 * loss(plain)


def test_the_expected_error_is_what_rounding_makes() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 24) * torch.logspace(0, 1, 24) + 2.0
    layer = nn.Linear(24, 16)
    seen = Channels(x.amin(0), x.amax(0), x.double().mean(0), x.double().square().mean(0))
    with torch.no_grad():
        whole = QuantizedLinear.of(layer, float(x.min()), float(x.max()), UINT8)
        measured = float((whole(x) - layer(x)).square().mean(0).sum())
    expected = expected_error(layer.weight.detach(), seen, torch.ones(24), torch.zeros(24))
    assert expected == pytest.approx(measured, rel=0.2)
