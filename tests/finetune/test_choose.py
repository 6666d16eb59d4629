from __future__ import annotations

import re
import time

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from edge_tprune.errors import NegativeAnswer
from edge_tprune.finetune import choose
from edge_tprune.finetune.distill import Teacher
from edge_tprune.finetune.holdout import Scores
from edge_tprune.finetune.photos import Photos
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.models.data import ReferenceTask
from edge_tprune.models.loading import load_model
from tests.finetune.conftest import PLAIN, RECIPE, REQUEST


def scores(value: float) -> Scores:
    return Scores(np.full(4, value), np.full(4, value), np.full(4, 100.0), np.zeros(4), None)


def test_over_confident_logits_are_softened() -> None:
    torch.manual_seed(0)
    humble = torch.randn(50, 10)
    assert choose.temperature(humble, True)[0] == 1
    assert choose.temperature(humble * 8, True)[0] > 1
    degrees, why = choose.temperature(humble * 1000, True)
    assert degrees == choose.TEMPERATURES[-1]
    assert "still" in why


def test_draws_follow_what_is_to_be_made_up() -> None:
    found = choose.draws({"1.0": scores(0.0), "0.65": scores(0.01), "0.5": scores(0.16)})
    assert sum(found.values()) == pytest.approx(1, abs=0.01)
    assert found["0.5"] > found["0.65"] > found["1.0"] > 0.05
    assert choose.draws({"0.5": scores(0.0)}) == {"0.5": 1.0}


@pytest.mark.parametrize("steps", [8, 20, 159, 560])
def test_the_average_forgets_the_untrained_weights(steps: int) -> None:
    """Weights of one training differ from those of another only as far as the average has left the first ones."""
    decay = choose.average(steps)
    held = 1.0  # of the weights after the first step, by which the average begins
    for _ in range(steps - 1):
        held *= decay
    assert held < 0.01
    assert sum(decay**k * (1 - decay) for k in range(steps)) == pytest.approx(1, abs=0.01)
    assert decay == 0 or 1 / (1 - decay) <= 1 + steps / 8, "and holds a small part of the training"


def test_digits_are_not_mirrored() -> None:
    """A mirrored digit is another one: the reference network says so itself."""
    loaded = load_model("reference")
    photos = Photos(ReferenceTask(20, "train"), range(20), loaded.preprocessing, seed=0, workers=1)
    photos.read()
    _, flip, why = choose.crops_understood(Teacher(loaded.model, PLAIN), photos)
    assert not flip
    assert "mirrored" in why


def test_the_rate_is_the_one_whose_pilot_is_best() -> None:
    tried: list[Recipe] = []

    def pilot(recipe: Recipe) -> choose.Pilot:
        tried.append(recipe)
        return choose.Pilot({"0.6": scores(abs(recipe.rate - 2e-5))}, 0.5, 2.0)

    request = replace(REQUEST, rate=None)
    found = choose.length_and_rate(replace(RECIPE, steps=240), request, pilot, time.monotonic(), lambda *_: None)
    assert found.rate == 2e-5
    assert {recipe.rate for recipe in tried} == set(choose.RATES)
    assert {recipe.steps for recipe in tried} == {20}
    assert found.steps == 240
    assert {recipe.average for recipe in tried} == {choose.average(20)}
    assert found.average == choose.average(240)
    assert "2e-05: 0.0000" in found.chosen["rate"]


def test_a_given_rate_is_not_searched() -> None:
    recipe = choose.length_and_rate(RECIPE, REQUEST, lambda recipe: pytest.fail("not asked for"), 0.0, lambda *_: None)
    assert recipe == replace(RECIPE, average=choose.average(RECIPE.steps))


def test_mixed_weights_lie_between() -> None:
    untrained = {"weight": torch.tensor([0.0, 4.0]), "count": torch.tensor(3)}
    trained = {"weight": torch.tensor([2.0, 0.0]), "count": torch.tensor(7)}
    mixed = choose.mixed(untrained, trained, 0.25)
    assert mixed["weight"].tolist() == [0.5, 3.0]
    assert mixed["count"] == 7
    assert torch.equal(choose.mixed(untrained, trained, 1.0)["weight"], trained["weight"])


@pytest.mark.parametrize("rate", [None, 1e-4])
def test_a_given_time_is_filled(rate: float | None) -> None:
    request = replace(REQUEST, rate=rate, seconds=1000.0)
    began = time.monotonic() - 100
    found = choose.length_and_rate(
        RECIPE, request, lambda recipe: choose.Pilot({"0.6": scores(1.0)}, 2.0, 5.0), began, lambda *_: None
    )
    assert found.steps == pytest.approx(0.95 * (900 - (choose.EVALUATIONS + 3 + len(choose.SHARES)) * 5) / 2, abs=2)


def test_a_short_time_is_spent_on_training_and_one_that_is_too_short_is_said() -> None:
    """Three short trainings may take longer than the time that was given."""
    tried: list[Recipe] = []

    def pilot(recipe: Recipe) -> choose.Pilot:
        tried.append(recipe)
        return choose.Pilot({"0.6": scores(1.0)}, 2.0, 5.0)

    def choose_in(seconds: float) -> Recipe:
        request = replace(REQUEST, rate=None, seconds=seconds)
        return choose.length_and_rate(RECIPE, request, pilot, time.monotonic() - 10, lambda *_: None)

    looks = (choose.EVALUATIONS + 3 + len(choose.SHARES)) * 5
    found = choose_in(10 + looks + 60)
    assert (found.steps, found.rate, len(tried)) == (pytest.approx(0.95 * 30, abs=1), choose.RATES[0], 1)
    assert "untried" in found.chosen["rate"]
    with pytest.raises(NegativeAnswer, match=r"20 s are too short for this fine-tuning .* give at least (\d+) s") as raised:
        choose_in(20)
    enough = int(re.search(r"at least (\d+) s", str(raised.value))[1])  # type: ignore[index]
    assert choose_in(enough + 0.1).steps == 8


@pytest.mark.parametrize(("bfloat16", "gains"), [(0.9, False), (0.1, True)])
def test_whether_bfloat16_gains_is_measured_in_turn(bfloat16: float, gains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose pace falls to a third halfway, which would decide it if one were timed after the other."""
    clock, products = [0.0], []

    class Matrix:
        def __init__(self, kind: torch.dtype) -> None:
            self.kind = kind

        def __matmul__(self, other: Matrix) -> None:
            products.append(self.kind)
            clock[0] += (bfloat16 if self.kind == torch.bfloat16 else 1.0) * (1 if len(products) <= 10 else 3)

    monkeypatch.setattr(choose.torch, "ones", lambda *size, dtype: Matrix(dtype))
    monkeypatch.setattr(choose.time, "perf_counter", lambda: clock[0])
    assert choose.bfloat16_gains(torch.device("cpu")) is gains
    assert products.count(torch.bfloat16) == products.count(torch.float32) > 0
