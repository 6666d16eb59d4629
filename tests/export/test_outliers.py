"""Outlier images are what their names say, a camera could give them, and their bounds follow from what rounding changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.golden import OUTLIERS
from edge_tprune.errors import NegativeAnswer
from edge_tprune.export.outliers import OutlierProof, _largest_activation, make_outliers
from edge_tprune.export.overflow import HalfPrecisionBreak
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import PRECISIONS
from tests.small import PREPROCESSING, small_model

SCHEDULE = (37, 23, 12, 12)


def ordinary() -> torch.Tensor:
    return torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(3)) - 0.5


def levels(images: np.ndarray) -> np.ndarray:
    """(n, 3, H, W) normalised -> in 0..255."""
    mean, std = (np.array(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
    return np.asarray((images * std + mean) * 255)


def test_the_images_are_what_their_names_say(loaded: LoadedModel) -> None:
    batches = make_outliers(loaded, ordinary(), 2)
    assert batches.shape == (3, 2, 3, 48, 48)
    images = batches.reshape(-1, 3, 48, 48)
    pixels = levels(images.numpy())
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
    black, white, colour, board, _, again = pixels.round()
    assert (black.max(), white.min()) == (0, 255)
    assert colour.std((1, 2)).max() == 0
    assert set(np.unique(board)) == {0, 255}
    assert board[0, 0, 0] != board[0, 0, 16] == board[0, 16, 0]
    np.testing.assert_array_equal(again, black)
    torch.testing.assert_close(batches, make_outliers(loaded, ordinary(), 2), rtol=0, atol=0)


def test_the_ascent_finds_larger_activations(loaded: LoadedModel) -> None:
    found = make_outliers(loaded, ordinary(), 1)[4]
    with torch.no_grad():
        assert _largest_activation(loaded.model, found) > 1.05 * _largest_activation(loaded.model, ordinary()[None])


def test_a_bundle_holds_answers_and_bounds(built: Path, loaded: LoadedModel) -> None:
    outliers = Bundle.open(built).golden().outliers
    assert outliers is not None
    assert outliers.images.shape == (len(OUTLIERS), 1, 3, 48, 48)
    assert {budget for budget, _ in outliers.allowed} == {"1.0", "0.8", "0.6"}
    with torch.no_grad():
        expected = loaded.model(torch.from_numpy(outliers.images[:, 0].copy())).numpy()
    np.testing.assert_allclose(outliers.outputs["1.0"][:, 0], expected, atol=1e-5)
    assert outliers.allowed["1.0", "fp32"].max() < 0.01, "nothing is chosen there"


def test_a_network_that_overflows_on_outliers_only_is_no_half_precision_network(tmp_path: Path) -> None:
    """A channel reads the mean colour: on a white image it leaves float16's range, on a photo it does not."""
    loaded = small_model()
    loaded.model.patch_embed.proj.weight.data[5] = 6e2
    modules = [PrunedViT(loaded.model, registry.method("none"), (37,) * 4, {}, PRECISIONS[name]) for name in ("fp32", "fp16")]
    photo = ordinary()[None] * 0.2
    assert torch.isfinite(modules[1](photo)).all()
    proof = OutlierProof(make_outliers(loaded, photo[0], 1))
    proof.add_budgets({"1.0": modules[0]})
    graph = tmp_path / "graph.onnx"
    _export(modules[1], graph)
    with pytest.raises(
        HalfPrecisionBreak, match=r"in fp16 its logits are not finite on the outlier image 'all black'; .*overflows"
    ):
        proof.add_graph("1.0", graph, *modules)


def test_a_network_that_overflows_in_float32_is_refused() -> None:
    loaded = small_model()
    loaded.model.blocks[1].mlp.fc2.bias.data[:] = 1e30
    loaded.model.blocks[2].norm1.weight.data[:] = 1e38
    module = PrunedViT(loaded.model, registry.method("none"), (37,) * 4, {})
    with pytest.raises(NegativeAnswer, match="in float32 its logits are not finite on an outlier image"):
        OutlierProof(ordinary()[None, None]).add_budgets({"1.0": module})


def _export(module: PrunedViT, file: Path) -> None:
    from edge_tprune.export.graph import FORMS, SharedWeights, export, save

    with file.with_name("weights.bin").open("wb") as stream:
        model = export(module, FORMS["tensorrt"], 1, (3, 48, 48))
        SharedWeights(stream, "weights.bin").externalise(model)
        save(model, file)
