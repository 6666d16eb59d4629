"""Which images prove a graph, and how many."""

from __future__ import annotations

import timm
import torch

from edge_tprune.export.steadiness import choose_images, choosing_modules, proof_images
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import network_shape
from tests.small import decide


def test_a_large_network_is_proved_on_fewer_images() -> None:
    """Eight passes of ViT-B at 518 pixels for every budget and every draw of noise are many minutes on two cores."""
    with torch.device("meta"):
        sizes = (("vit_base_patch16_224", {}), ("vit_large_patch16_224", {}), ("vit_base_patch14_dinov2", {"img_size": 518}))
        counts = [proof_images(network_shape(timm.create_model(name, **given))) for name, given in sizes]
    assert counts == [8, 4, 2]


def test_only_budgets_that_choose_tokens_are_asked(loaded: LoadedModel) -> None:
    settings = decide(loaded, "evit", budgets=[1.0, 0.8, 0.6], blocks=[2])
    assert [module.schedule for module in choosing_modules(settings)] == [b.schedule.tokens for b in settings.budgets[1:]]
    said: list[tuple[int, str]] = []
    proof = choose_images(loaded, settings, lambda tried, what: said.append((tried, what)))
    assert proof.batches.shape == (8, 1, 3, 48, 48)
    passes = [(tried, f"choosing images, pass {number} of 6") for tried in (0, 1) for number in range(1, 7)]
    assert said[:12] == passes, "how far it is, pass by pass"
    unpruned = decide(loaded, "evit", budgets=[1.0], blocks=[2])
    assert choosing_modules(unpruned) == []
    assert choose_images(loaded, unpruned).left_out == 0
