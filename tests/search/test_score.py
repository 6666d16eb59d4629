"""How far a pruned network is from the unpruned one; the scores of ordinary networks are in test_configuration.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import edge_tprune
from edge_tprune.errors import UserError
from edge_tprune.models.loading import LoadedModel
from edge_tprune.search.score import Scorer

SCHEDULE = (37, 24, 14, 14)


@pytest.fixture
def images(loaded: LoadedModel) -> torch.Tensor:
    return torch.randn(2, 3, *loaded.preprocessing.input_size[1:], generator=torch.Generator().manual_seed(0))


def test_a_single_output_is_a_class_against_its_absence(loaded: LoadedModel, images: torch.Tensor) -> None:
    model: Any = copy.deepcopy(loaded.model)
    torch.manual_seed(0)
    model.reset_classifier(1)
    pruned = edge_tprune.prune(model, method="evit", schedule=SCHEDULE)
    with torch.no_grad():
        p, q = (network(images).double().sigmoid()[:, 0] for network in (model, pruned))
    wanted = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    (found,) = Scorer(model, [images])("evit", SCHEDULE, {})
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)
    assert min(found) > 0


@pytest.mark.parametrize("output", ["logits", "embedding"])
def test_outputs_that_are_not_finite_are_one_line(
    output: str, loaded: LoadedModel, images: torch.Tensor, not_finite: str
) -> None:
    score = Scorer(loaded.model, [images], output=output)
    says = rf"method {not_finite}: the pruned network's outputs are not finite with the tokens \[37, 24, 14, 14\]"
    with pytest.raises(UserError, match=says):
        list(score(not_finite, SCHEDULE, {}))
    broken: Any = copy.deepcopy(loaded.model)
    with torch.no_grad():
        broken.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="the network's outputs for these images are not finite: are its weights those of"):
        Scorer(broken, [images], output=output)


@pytest.mark.parametrize(("kept_bytes", "after"), [(0, []), (30_000, [2]), (60_000, [1, 3]), (1e9, [1, 2, 3])])
def test_losses_are_the_same_however_many_tokens_are_kept(
    loaded: LoadedModel, images: torch.Tensor, kept_bytes: float, after: list[int]
) -> None:
    """37 tokens of 96 float32 channels of two images are 28,416 bytes."""
    kept = Scorer(loaded.model, [images], kept_bytes=kept_bytes)
    assert kept._first._after == after
    for schedule in (SCHEDULE, (37, 37, 14, 14), (24, 14, 14, 14)):
        with torch.no_grad():
            p = loaded.model(images).double().log_softmax(1)
            q = edge_tprune.prune(loaded.model, method="evit", schedule=schedule)(images).double().log_softmax(1)
        (found,) = kept("evit", schedule, {})
        assert found == pytest.approx((p.exp() * (p - q)).sum(1).tolist(), abs=1e-5)
        assert list(kept("evit", schedule, {})) == [found]
