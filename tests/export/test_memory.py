"""What does not fit is refused before it begins."""

from __future__ import annotations

import pytest
import timm
import torch

from edge_tprune.errors import UserError
from edge_tprune.export.memory import bytes_needed, check_memory
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from tests.small import PREPROCESSING, decide


def needed(name: str, batch: int = 1, **arguments: object) -> int:
    """Of a network without memory for its weights."""
    with torch.device("meta"):
        model = timm.create_model(name, dynamic_img_size=False, **arguments)
    loaded = LoadedModel(name, model, "random", "", PREPROCESSING)
    return bytes_needed(loaded, decide(loaded, "none", budgets=[1.0], batch=batch))


def test_the_estimate_follows_weights_tokens_and_batch() -> None:
    assert "none" in registry.methods()
    large = needed("vit_base_patch14_dinov2", img_size=518)
    assert 2.6e9 < large < 3.0e9, "2.78 GB were measured (docs/models.md)"
    assert needed("vit_giant_patch14_dinov2", img_size=224) > 4 * 4.5 * 1.1e9
    maps = 4 * 12 * 1370**2 * 4
    assert needed("vit_base_patch14_dinov2", batch=3, img_size=518) - large == pytest.approx(2 * maps)


def test_a_machine_that_is_too_small_is_named_with_what_is_needed() -> None:
    check_memory(int(2e9), int(8e9))
    with pytest.raises(
        UserError, match=r"needs about 21\.5 GB of memory, and this machine has 8\.0 GB with swap: build on a larger"
    ):
        check_memory(int(21.5e9), int(8e9))
