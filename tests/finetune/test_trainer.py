from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from edge_tprune.finetune.distill import Students, Teacher
from edge_tprune.finetune.photos import Photos, Spot
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.finetune.store import Store
from edge_tprune.finetune.trainer import NotFinite, Trainer, TrainerState
from edge_tprune.models.loading import LoadedModel
from tests.finetune.conftest import PLAIN, RECIPE, SCHEDULES


def trainer(network: LoadedModel, photos: Photos, recipe: Recipe = RECIPE) -> Trainer:
    students = Students(network.model, "evit", {}, SCHEDULES, recipe.train)
    return Trainer(students, Teacher(network.model, PLAIN), photos, recipe, PLAIN)


def weights(one: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.students.model.state_dict().items()}


def test_a_state_from_the_disk_goes_on_bit_for_bit(network: LoadedModel, photos: Photos, tmp_path: Path) -> None:
    whole = trainer(network, photos)
    losses = list(whole.run(12))
    first = trainer(network, photos)
    begun = list(first.run(5))
    store = Store(tmp_path)
    store.save("state", *first.state())
    second = trainer(network, photos)
    state = store.load("state", TrainerState)
    assert state is not None
    second.load(*state)
    assert second.done == 5
    assert begun + list(second.run(12)) == losses
    for name, value in whole.students.model.state_dict().items():
        assert torch.equal(value, second.students.model.state_dict()[name]), name
    for name, value in whole.averaged().items():
        assert torch.equal(value, second.averaged()[name]), name
    assert msgspec.json.encode(whole.state()[1]) == msgspec.json.encode(second.state()[1])


def test_parts_of_a_batch_add_up(network: LoadedModel, photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient(part: int) -> tuple[float, dict[str, Tensor]]:
        monkeypatch.setattr("edge_tprune.finetune.trainer._PART", part)
        one = trainer(network, photos)
        one.spread = [torch.ones(())] * 4
        images = torch.stack([photos.crop(Spot(number, 0), 0.5, True) for number in range(8)])
        loss = one._backward(images, torch.zeros(8, dtype=torch.int64), "0.6")
        return loss, {name: p.grad.clone() for name, p in one.students.model.named_parameters() if p.grad is not None}

    whole, parts = gradient(8), gradient(3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-4)
    for name, value in whole[1].items():
        assert torch.allclose(parts[1][name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()) + 1e-8), name


def test_the_average_is_an_exponential_one(network: LoadedModel, photos: Photos) -> None:
    one = trainer(network, photos)
    average: dict[str, Tensor] = {}
    for _ in one.run(6):
        for name, value in weights(one).items():
            average[name] = value if name not in average else 0.8 * average[name] + 0.2 * value
    for name, value in one.averaged().items():
        assert torch.allclose(value, average[name], atol=1e-6), name


@pytest.mark.parametrize("train", ["norm", "late"])
def test_what_is_not_trained_stays_as_it_is(network: LoadedModel, photos: Photos, train: str) -> None:
    one = trainer(network, photos, replace(RECIPE, train=train))
    before = weights(one)
    list(one.run(3))
    for name, parameter in one.students.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert torch.equal(one.averaged()[name], before[name]) != parameter.requires_grad, name


def test_a_loss_that_is_not_finite_names_its_step(network: LoadedModel, photos: Photos) -> None:
    one = trainer(network, photos)
    list(one.run(2))
    with torch.no_grad():
        one.students.model.head.bias[0] = float("inf")
    with pytest.raises(NotFinite, match="the loss of step 3 is nan"):
        list(one.run(12))
    assert one.done == 2


def test_a_lower_rate_is_kept_to_after_loading(network: LoadedModel, photos: Photos) -> None:
    first = trainer(network, photos)
    list(first.run(4))
    slower = trainer(network, photos, RECIPE.halved())
    slower.load(*first.state())
    rates = []
    for _ in slower.run(10):
        rates.append(slower.optimiser.param_groups[0]["lr"])
    whole = trainer(network, photos)
    expected = []
    for _ in whole.run(10):
        expected.append(whole.optimiser.param_groups[0]["lr"] / 2)
    assert rates == pytest.approx(expected[4:])


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 11, 40])
def test_the_rate_rises_to_its_peak_and_falls_below_its_start(network: LoadedModel, photos: Photos, steps: int) -> None:
    one = trainer(network, photos, replace(RECIPE, steps=steps))
    rates = []
    for _ in range(steps):
        rates.append(one.optimiser.param_groups[0]["lr"])
        one.optimiser.step()
        one.schedule.step()
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) <= 1e-3 * 1.0001
    if steps >= 5:
        peak = rates.index(max(rates))
        assert rates[peak] == pytest.approx(1e-3, rel=0.15)
        assert rates[:peak] == sorted(rates[:peak])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[-1] < 1e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [("done", 10**9), ("done", -3), ("groups", []), ("groups", [{"lr": "x"}]), ("schedule", {"last_epoch": "x"}), ("rate", 0)],
)
def test_a_state_of_other_kinds_is_refused(network: LoadedModel, photos: Photos, key: str, value: object) -> None:
    made = trainer(network, photos)
    tensors, values = made.state()
    with pytest.raises((ValueError, ZeroDivisionError)):
        made.load(tensors, msgspec.structs.replace(values, **{key: value}))
