"""The baseline of a smaller image: timm's own network at that size, in the accounting and the interface of every other method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.models.families import adapt
from edge_tprune.reduction import registry
from edge_tprune.reduction.methods.resize import smaller_grids, solve_resize
from edge_tprune.schedule import NetworkShape
from tests.small import small_model


def test_it_is_timms_network_at_that_size(any_vit: nn.Module, images: Tensor) -> None:
    model, prefix = any_vit, any_vit.num_prefix_tokens
    if adapt(model).relative_table(1) is not None:
        with pytest.raises(UserError, match="its patches or positions are not for images of another size"):
            edge_tprune.prune(model, method="resize", schedule=[9 + prefix] * 4)
        return
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = model(images)
    pruned = edge_tprune.prune(model, method="resize", schedule=[9 + prefix] * 4)
    found = pruned(images)
    assert {id(p) for p in pruned.model.blocks.parameters()} == {id(p) for p in model.blocks.parameters()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model stays as it was"
    assert torch.equal(model(images), whole)
    exact = NetworkShape.exact_schedule(pruned.shape)[-1]
    if exact < pruned.shape.tokens:
        saves = edge_tprune.prune(model, method="resize", schedule=[9 + prefix] * 3 + [exact])
        torch.testing.assert_close(saves(images), found, rtol=0, atol=1e-4)
        assert edge_tprune.macs(saves) < edge_tprune.macs(pruned)
    model.set_input_size((24, 24))
    torch.testing.assert_close(found, model(functional.interpolate(images, size=(24, 24), mode="bilinear")), rtol=0, atol=1e-4)
    assert edge_tprune.macs(pruned) == edge_tprune.macs(model), "the network at that size costs as much"


def test_a_budget_becomes_the_largest_image_within_it() -> None:
    """DeiT-Tiny at 192, 176 and 160 pixels costs 0.71, 0.59 and 0.48 of its MACs."""
    shape = NetworkShape.plain(197, 1, 12, 192, 192, 768, 28_901_376, 192_000)
    shape = replace(shape, place="image", read_tokens=1)
    for budget, side, share in ((0.8, 12, 0.7083), (0.65, 11, 0.5857), (0.5, 10, 0.4771)):
        found = solve_resize(shape, (14, 14), budget, None, exact=False)
        assert found.tokens == (side * side + 1,) * 12
        assert found.share == pytest.approx(share, abs=1e-4)
        assert found.remark == f"budget {budget:g}: the largest image within it, of {side * side} patches, comes to {share:.3f}"
        exact = solve_resize(shape, (14, 14), budget, None, exact=True)
        assert exact.share <= budget
        assert exact.tokens[-1] == 1
        assert exact.tokens[0] >= found.tokens[0]
    whole = solve_resize(shape, (14, 14), 1.0, None, exact=True)
    assert (whole.tokens, whole.remark) == ((197,) * 12, "")


def test_grids_keep_the_shape_of_the_image() -> None:
    assert smaller_grids((4, 4)) == [(3, 3), (2, 2), (1, 1)]
    assert smaller_grids((3, 6)) == [(2, 5), (2, 4), (2, 3), (1, 2), (1, 1)]
    assert smaller_grids((6, 3)) == [(5, 2), (4, 2), (3, 2), (2, 1), (1, 1)]


def test_it_is_a_baseline_and_no_method_of_tokens() -> None:
    model = small_model(channels=24).model
    assert "resize" not in registry.methods()
    assert set(registry.baselines()) == {"resize"}
    with pytest.raises(
        UserError, match="chooses no tokens: only `build`, and commands that measure or compare what it built, take it"
    ):
        registry.method("resize")
    with pytest.raises(UserError, match="Did you mean resize"):
        registry.any_method("resise")
    with pytest.raises(UserError, match="chooses no tokens"):
        edge_tprune.prune_in(nn.ModuleDict({"vit": model}), "vit", method="resize", budget=0.5)
    for given, says in (
        ({"budget": 0.01}, r"budget 0\.01 cannot be reached by a smaller image: the nearest reachable is"),
        ({"budget": 0.5, "blocks": [2]}, "leave blocks and multiples of tokens out"),
        ({"schedule": [26, 26, 20, 20]}, "the same number of tokens in every block"),
        ({"schedule": [27] * 4}, r"that of a smaller image: 37, 26, 17, 10, \.\.\. \(given: 27, 27, 27, 27\)"),
        ({"budget": 0.6, "output": "features"}, "method resize gives no features"),
    ):
        with pytest.raises(UserError, match=says):
            edge_tprune.prune(model, method="resize", **given)  # type: ignore[arg-type]
    pruned = edge_tprune.prune(model, method="resize", schedule=[26, 26, 26, 1])
    with pytest.raises(UserError, match="an image of 40 x 40 pixels: the network takes 48 x 48"):
        pruned(torch.zeros(1, 3, 40, 40))
    with pytest.raises(UserError, match="no vector for every patch"):
        pruned.forward_features(torch.zeros(1, 3, 48, 48))
