"""From the profile of a probe bundle to a cost model: built, profiled and read with the real parts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from edge_tprune.agent.profile import profile
from edge_tprune.analysis.latency import model_latency, round_effects, write_latency
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.builder import build
from edge_tprune.export.probes import decide_probes
from edge_tprune.record.settings import RunRequest
from edge_tprune.schedule.latency import KIND
from tests.small import small_model


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    loaded = small_model(channels=48)
    settings = decide_probes(loaded, ["evit"])
    bundle = build(loaded, settings, folder / "bundle").bundle
    assert bundle.manifest.name == "small-test-probe"
    own = {budget.name: budget.method for budget in bundle.budgets}
    assert own["1.0"] is None
    assert own["evit-1"].name == "evit"  # type: ignore[union-attr]
    request = RunRequest(rounds=3, seconds_per_round=0.01, warmup_seconds=0.0, baseline_seconds=0.0, threads=1)
    return profile(Bundle.open(folder / "bundle"), folder / "profiles", request)


@pytest.mark.slow
def test_a_profile_of_probes_becomes_a_model(probed: Path) -> None:
    found = write_latency(probed, force=True)
    assert KIND.read(probed) == found
    assert (found.network.name, found.batch, found.runtime, found.threads) == ("small-test", 1, "onnxruntime", 1)
    run = json.loads((probed / "run.json").read_text())
    methods = {budget["name"]: (budget["method"] or run["bundle"]["method"])["name"] for budget in run["budgets"]}
    assert found.costs.keys() >= {"p50_ms", "p95_ms"}
    for metric in ("p50_ms", "p95_ms"):
        model = found.costs[metric]
        assert model.exact
        assert set(model.steps) == {"evit"}
        assert model.tokens[-1] == 37
        assert len(model.probes) == len(run["budgets"]) - 1
        assert list(model.block) == sorted(model.block)
    assert methods["exact"] == "slice"
    assert methods["evit-1"] == "evit"
    known = found.costs["p50_ms"]
    assert known.full > 0


@pytest.mark.slow
def test_a_disturbed_profile_is_refused(probed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_tprune.analysis import latency

    monkeypatch.setattr(latency, "_verdict", lambda rows: ("suspect", "1.0: other programs were running"))
    with pytest.raises(UserError, match=r"was disturbed while it measured \(suspect: 1.0: other programs were running\)"):
        model_latency(probed)
    assert model_latency(probed, force=True).status == "suspect"


def test_a_profile_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        model_latency(tmp_path / "nothing")


def test_what_a_round_did_to_all_graphs_is_taken_out() -> None:
    rng, truth = random.Random(0), np.array([10.0, 8.0, 5.0, 3.0, 2.0])
    slow = [1.0, 1.4, 1.0, 1.8, 1.0, 1.05, 2.0, 1.0]
    by_round = [{r: t * s * (1 + rng.gauss(0, 0.004)) for r, s in enumerate(slow)} for t in truth]
    by_round[2][5] *= 3  # one turn that another program disturbed
    values, errors = round_effects(by_round)
    assert values / values[0] == pytest.approx(truth / truth[0], rel=0.01)
    assert (errors / values < 0.01).all()
    del by_round[0][1], by_round[3][2]
    again, _ = round_effects(by_round)
    assert again / again[0] == pytest.approx(truth / truth[0], rel=0.01)
    with pytest.raises(UserError, match="fewer than two whole rounds"):
        round_effects([{0: 1.0}, {0: 1.0, 1: 2.0}])
