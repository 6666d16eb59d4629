from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_tprune.errors import UserError
from edge_tprune.finetune.request import CROPS, Request, parse_time, schedules_of
from edge_tprune.models.data import ImageFolder
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import solve_schedule
from tests.finetune.conftest import REQUEST, SCHEDULES

OUT = Path("tuned.safetensors")


@pytest.mark.parametrize(
    ("text", "seconds"), [("20m", 1200), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), (" 2M ", 120), ("1h5s", 3605)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-5m", "0s", "20min", "1m1h", "1001h", "9" * 400 + "h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="give 20m, 1h30m or 90s"):
        parse_time(text)


@pytest.mark.parametrize(
    ("change", "out", "says"),
    [
        ({}, Path("tuned.pth"), "ends in .safetensors"),
        ({"labels": True}, OUT, "has no labels: leave --labels out"),
        ({"train": "some"}, OUT, "choose all, norm, late"),
        ({"batch": 0}, OUT, "--batch 0 is out of range"),
        ({"batch": 34}, OUT, r"has 40 photos: 8 are held out, and the other 32 do not fill a batch of 34"),
        ({"epochs": 0.0}, OUT, "--epochs 0 is out of range"),
        ({"epochs": float("nan")}, OUT, "--epochs nan is out of range"),
        ({"device": "cuda:x"}, OUT, "choose cpu, cuda or cuda:0"),
        ({"rate": 2.0}, OUT, "--rate 2 is out of range"),
        ({"seconds": 60.0}, OUT, "--time and --epochs"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(
    change: dict[str, object], out: Path, says: str, dataset: ImageFolder
) -> None:
    with pytest.raises(UserError, match=says):
        replace(REQUEST, **change).check(dataset, out)


def test_a_good_request_passes(dataset: ImageFolder) -> None:
    REQUEST.check(dataset, OUT)


def test_schedules_come_from_the_file_before_the_method(network: LoadedModel) -> None:
    assert schedules_of(network, REQUEST) == SCHEDULES
    both = schedules_of(network, replace(REQUEST, budgets=(0.8, 1.0, 0.6)))
    assert list(both) == ["1.0", "0.8", "0.6"]
    assert both["0.6"] == SCHEDULES["0.6"]
    for budgets, says in (
        ((1.0,), "names none that removes tokens"),
        ((0.8, 0.8), "given twice"),
        ((0.01,), "cannot be reached"),
        (tuple(0.5 + number / 4000 for number in range(1001)), "1001 are too many"),
    ):
        with pytest.raises(UserError, match=says):
            schedules_of(network, replace(REQUEST, budgets=budgets, schedules={}))


def test_budgets_remove_tokens_at_the_blocks_that_are_named(network: LoadedModel) -> None:
    """As `build --blocks` does, so that its bundle has the schedules that were trained."""
    for blocks in ((1, 2), (2, 3)):
        found = schedules_of(network, Request(method="evit", budgets=(1.0, 0.6), blocks=blocks))["0.6"]
        assert found == solve_schedule(network.model, "evit", name=network.name, budget=0.6, blocks=blocks).tokens
        first = next(number for number, tokens in enumerate(found, 1) if tokens < 37)
        assert first == blocks[0]


def test_schedules_know_the_methods_options(network: LoadedModel) -> None:
    """A faithful form removes tokens where its authors do, which a build with the same options does too."""
    options = {"faithful": True}
    found = schedules_of(network, Request(method="dpc_knn", budgets=(1.0, 0.6), options=options))
    built = solve_schedule(network.model, "dpc_knn", budget=0.6, name=network.name, options=options).tokens
    plain = solve_schedule(network.model, "dpc_knn", budget=0.6, name=network.name).tokens
    assert found["0.6"] == built
    assert built != plain
    assert len(set(found["1.0"])) == 1


def test_the_default_length_counts_crops_not_epochs() -> None:
    request = replace(REQUEST, epochs=None, batch=32)
    assert request.steps(1300) == pytest.approx(CROPS / 32, rel=0.01)
    assert request.steps(100) == 40 * 100 / 32, "few photos are not shown forever"
    assert request.steps(100_000) == 4 * 100_000 / 32
    assert request.held_out(30) == 8
    assert request.held_out(10_000) == 150
