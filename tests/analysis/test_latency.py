"""From the profile of a probe bundle to a cost model. The real chain: tests/cli/test_fit.py."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_tprune.analysis.latency import model_latency, round_effects
from edge_tprune.cli import main
from edge_tprune.cli.costs import read_latency
from edge_tprune.errors import UserError
from edge_tprune.schedule.latency import KIND, LATENCY
from edge_tprune.schedule.probes import design_probes
from tests.schedule.test_latency import SHAPE, true_cost

from .conftest import Profiles


def test_a_profile_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        model_latency(tmp_path / "nothing")


def test_graphs_that_were_not_timed_are_named(profiles: Profiles, tmp_path: Path) -> None:
    lines = [line for line in profiles.lines(profiles.info()) if (line["kind"], line.get("budget")) != ("round", "0.8")]
    path = profiles.write(tmp_path / "run", lines=lines)
    with pytest.raises(UserError, match=r"has no times of 0\.8: a model needs every graph"):
        model_latency(path, force=True)


def test_graphs_in_two_precisions_make_no_model(profiles: Profiles, tmp_path: Path) -> None:
    info = profiles.info()
    info["budgets"][1]["artifact"]["precision"] = "int8"
    path = profiles.write(tmp_path / "run", info)
    with pytest.raises(UserError, match="has graphs in fp32, int8, and a model is of one precision"):
        model_latency(path, force=True)


def test_the_model_of_the_one_profile_in_a_directory_lies_in_the_profile(
    profiles: Profiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, probes = profiles.info("slice"), design_probes(SHAPE, {})
    unpruned = {**info["budgets"][0], "requested": None, "accuracy": None}
    info["budgets"] = [{**unpruned, "name": probe.name, "schedule": list(probe.tokens)} for probe in probes]
    latencies = {probe.name: true_cost(SHAPE, probe.method, probe.tokens) for probe in probes}
    path = profiles.write(tmp_path / "run", info, latencies=latencies)
    assert main(["latency", str(tmp_path), "--force"]) == 0
    assert f"wrote {path / LATENCY}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
    assert read_latency(tmp_path) == KIND.read(path)
    turns = KIND.read(path).turns
    assert turns is not None
    KIND.write(path, msgspec.structs.replace(KIND.read(path), turns=None))
    assert read_latency(tmp_path).turns is None, "of an earlier version"
    KIND.write(path, msgspec.structs.replace(KIND.read(path), turns=turns - 1))
    with pytest.raises(
        UserError, match=rf"was made of {turns - 1} turns, and the profile has {turns}: remove it, and make it again"
    ):
        read_latency(tmp_path)
    KIND.write(path, msgspec.structs.replace(KIND.read(path), run_id="another"))
    with pytest.raises(
        UserError,
        match=r"was made of run another, and the profile is of run .*: remove it, and make it again with edge-tprune latency",
    ):
        read_latency(tmp_path)


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
