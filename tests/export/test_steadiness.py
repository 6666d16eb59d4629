"""Which images prove a graph, and how many."""

from __future__ import annotations

import pytest
import timm
import torch

from edge_tprune.export.settings import BudgetRequest
from edge_tprune.export.steadiness import choose_images, choosing_modules, count_flips, proof_images, run_all
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import network_shape
from edge_tprune.reduction.attention import fused_attention
from tests.small import decide, mix_to_ties


def test_a_large_network_is_proved_on_fewer_images() -> None:
    """Eight passes of ViT-B at 518 pixels for every budget and every draw of noise are many minutes on two cores."""
    with torch.device("meta"):
        sizes = (("vit_base_patch16_224", {}), ("vit_large_patch16_224", {}), ("vit_base_patch14_dinov2", {"img_size": 518}))
        counts = [proof_images(network_shape(timm.create_model(name, **given))) for name, given in sizes]
    assert counts == [8, 4, 2]


def test_networks_that_are_run_together_answer_as_they_do_alone(loaded: LoadedModel) -> None:
    """Networks whose first blocks are run once: of budgets whose first removal is elsewhere, too."""
    settings = decide(loaded, "evit", budgets=[1.0, 0.7, BudgetRequest(tokens=[37, 37, 20, 20])], blocks=[2, 3])
    modules = [budget.module for budget in settings.budgets]
    assert {module.untouched for module in modules} == {1, 2, 3}
    images = torch.randn(11, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    for found, module in zip(run_all(modules, images), modules):
        torch.testing.assert_close(found, module(images), rtol=0, atol=1e-5)
    images = images.repeat(6, 1, 1, 1) + 0.01 * torch.randn(66, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    together = count_flips(modules, images)
    assert torch.equal(together, torch.stack([count_flips([module], images) for module in modules]).sum(0))
    assert all(module.attention is fused_attention for module in modules)


@torch.inference_mode()
@pytest.mark.parametrize("method", ["evit", "tome", "zero_tprune"])
def test_an_image_whose_tokens_tie_is_not_steady(loaded: LoadedModel, method: str) -> None:
    module = decide(loaded, method, budgets=[0.75], blocks=[2]).budgets[0].module
    images = torch.randn(48, 3, 48, 48, generator=torch.Generator().manual_seed(7))
    tied = mix_to_ties(module, images)
    assert len(tied) >= 12
    flips = count_flips([module], torch.cat([tied, images, images.flip(3)]))
    assert int(flips[: len(tied)].min()) > 0
    assert float((flips[len(tied) :] == 0).float().mean()) > 0.9, "others are"


def test_only_budgets_that_choose_tokens_are_asked(loaded: LoadedModel) -> None:
    settings = decide(loaded, "evit", budgets=[1.0, 0.8, 0.6], blocks=[2])
    assert [module.schedule for module in choosing_modules(settings)] == [b.schedule.tokens for b in settings.budgets[1:]]
    said: list[tuple[int, str]] = []
    proof = choose_images(loaded, settings, lambda tried, what: said.append((tried, what)))
    assert proof.batches.shape == (8, 1, 3, 48, 48)
    passes = [(2 * number // 6, f"choosing images, pass {number + 1} of 6") for number in range(6)]
    assert said[:6] == passes, "how far it is, pass by pass"
    unpruned = decide(loaded, "evit", budgets=[1.0], blocks=[2])
    assert choosing_modules(unpruned) == []
    assert choose_images(loaded, unpruned).left_out == 0
