"""The search under a latency model: methods compete, the limit holds, tables are kept, and what cannot be is said first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_tprune.errors import UserError
from edge_tprune.models.data import Dataset, ReferenceTask
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction.host import network_shape
from edge_tprune.schedule import from_tokens
from edge_tprune.schedule.latency import Latency, stages
from edge_tprune.schedule.latency_fit import Measured, fit_cost
from edge_tprune.schedule.probes import design_probes
from edge_tprune.search.configuration import TABLES, decide, find, network_record, search_limits
from edge_tprune.search.cost import total
from edge_tprune.search.schedule_file import read
from edge_tprune.search.score import read_images
from edge_tprune.search.sensitivity import KIND, Sensitivity
from edge_tprune.search.starts import planned
from edge_tprune.search.workers import Here, Network, score_all
from tests.small import small_model


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    return small_model(channels=24)


@pytest.fixture(scope="module")
def latency(small: LoadedModel) -> Latency:
    """MACs in ms, and 0.002 ms per token that enters a stage."""
    shape = network_shape(small.model)
    probes = design_probes(shape, {"evit": lambda n: 2, "tome": lambda n: n - (n - 1) // 2})

    def cost(method: str, tokens: tuple[int, ...]) -> float:
        return 10 * shape.share(tokens) + (0.002 * sum(stages(shape, tokens)) if method != "slice" else 0.0)

    graphs = [Measured(p.method, p.tokens, cost(p.method, p.tokens)) for p in probes]
    return Latency(
        run_id="run", network=network_record(small, shape), runtime="onnxruntime", precision="fp32", batch=1, threads=1,
        power_mode=None, machine="none", status="valid", costs={"p50_ms": fit_cost(shape, "p50_ms", graphs)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Dataset:
    return ReferenceTask(8, "train")


def test_the_best_of_two_methods_within_the_limit(
    small: LoadedModel, latency: Latency, images: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    settings = decide(small, ["evit", "tome"], images, latency=latency, limits=[6.0, 8.0], trials=20, seed=1)
    document = find(small, settings, images, out)
    assert read(out) == document
    shape = network_shape(small.model)
    assert len(document.budgets) == 2
    for limit, (share, entry) in zip((6.0, 8.0), document.budgets.items()):
        method = entry.method or document.method
        assert float(share) == pytest.approx(from_tokens(shape, entry.tokens).share, abs=1e-4)
        assert entry.predicted is not None
        assert entry.predicted["p50_ms"].value == pytest.approx(total(settings.cost, method, entry.tokens))
        assert 0.9 * limit < entry.predicted["p50_ms"].value <= limit
    (first, second) = document.budgets.values()
    assert first.kl is not None
    assert second.kl is not None
    assert second.kl.value <= first.kl.value
    tables = KIND.read(tmp_path / TABLES).tables
    assert {table.method for table in tables} == {"evit", "tome"}
    # Another limit reuses the tables.
    before = (tmp_path / TABLES).read_bytes()
    again = decide(small, ["evit", "tome"], images, latency=latency, limits=[7.0], trials=20, seed=1)
    search_limits(small, again, images, out)
    assert (tmp_path / TABLES).read_bytes() == before


def test_no_regret_in_a_space_that_is_small_enough_to_try_out(
    small: LoadedModel, latency: Latency, images: Dataset, tmp_path: Path
) -> None:
    """One method, one or two stages: the search ends within the spread of the best three of all schedules."""
    settings = decide(small, ["evit"], images, latency=latency, limits=[7.0], trials=30, stages=(1, 2))
    (found,) = search_limits(small, settings, images, tmp_path / "x.json")
    scorer = read_images(small, images, "kl", lambda what, done, of: None)
    shape, every = network_shape(small.model), []
    for first in range(1, 4):
        for second in range(first, 4):
            for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
                weights = [0.0] * 3
                weights[second - 1], weights[first - 1] = max(weight, 0.05), 1.0
                configuration = found.space.from_weights("evit", weights, {"fuse": False})
                assert configuration is not None
                schedule = found.space.schedule(configuration)
                if schedule is not None:
                    every.append(
                        (score_all(Here(scorer), [Network("evit", schedule.tokens, {"fuse": False})])[0], schedule.tokens)
                    )
    every.sort()
    assert found.best.loss <= every[2][0], "among the three best of all"
    assert len(shape.full_schedule()) == 4


def test_what_dynamic_programming_finds_spends_the_limit(small: LoadedModel, latency: Latency, images: Dataset) -> None:
    settings = decide(small, ["evit"], images, latency=latency, limits=[7.0])
    space = settings.space(7.0)
    table = Sensitivity(method="evit", counts=(4, 20, 37), loss=((3.0, 1.0, 0.0), (0.6, 0.2, 0.0), (0.3, 0.1, 0.0)))
    configuration = planned(space, table)
    assert configuration is not None
    schedule = space.schedule(configuration)
    assert schedule is not None
    spent = total(space.cost, "evit", schedule.tokens)
    assert spent is not None
    assert 6.3 < spent <= 7.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"methods": ["bat"]}, "the latency model does not know bat"),
        ({"metric": "energy_mj_per_image"}, "energy_mj_per_image is not known of this board"),
        ({"limits": [0.1]}, "p50_ms 0.1 cannot be met: the least that the model knows is"),
        ({"limits": [-1.0]}, "-1 is no limit of p50_ms"),
        ({"methods": ["evit", "tome"], "options": {"fuse": True}}, "options are of one method"),
        ({"output": "features"}, "features needs all tokens: build the probes with --output features"),
    ],
)
def test_what_cannot_be_is_said_first(
    arguments: dict[str, Any], says: str, small: LoadedModel, latency: Latency, images: Dataset, tmp_path: Path
) -> None:
    given = {"methods": ["evit"], "limits": [7.0]} | arguments
    with pytest.raises(UserError, match=says):
        settings = decide(small, given.pop("methods"), images, latency=latency, **given)
        find(small, settings, images, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_a_model_of_another_network_is_refused(latency: Latency, images: Dataset) -> None:
    other = replace(small_model(channels=24), name="another")
    with pytest.raises(UserError, match="the latency model is of another network"):
        decide(other, ["evit"], images, latency=latency, limits=[7.0])
