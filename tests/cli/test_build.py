"""`edge-tprune build`, where it builds engines too."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_tprune.bundle.bundle import Bundle
from tests.cli.conftest import Outcome
from tests.small import built, loaded  # noqa: F401

Command = Callable[..., Outcome]


def test_ctrl_c_while_engines_are_built_says_that_the_bundle_is_there(
    command: Command,
    built: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    there = SimpleNamespace(bundle=Bundle.open(built), remarks=(), reused=False)
    monkeypatch.setattr("edge_tprune.export.builder.build", lambda *_, **__: there)
    monkeypatch.setattr("edge_tprune.bundle.engines.check_targets", lambda targets: None)
    monkeypatch.setattr("edge_tprune.bundle.engines.build_ahead", stop)
    words = ["--weights", "random", "--runtime", "tensorrt-rtx", "--target", "sm86,sm89", "--out", "my bundles/b"]
    outcome = command("build", "reference", *words)
    assert outcome.code == 130
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("edge-tprune: ")]
    said, _, again = line.partition("build its engines with: ")
    assert said == "edge-tprune: interrupted: the bundle is built; "
    expected = ["edge-tprune", "engines", "my bundles/b", "--runtime", "tensorrt-rtx", "--target", "sm86,sm89"]
    assert shlex.split(again) == expected


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("0.65=197,100,b", "--schedule"),
        ("1.5=197,100", "--schedule 1.5=197,100: before = goes the budget"),
        ("small=197,100", "--schedule small=197,100: before = goes the budget"),
        ("nan=197,100", "--schedule nan=197,100: before = goes the budget"),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused(command: Command, tmp_path: Path, schedule: str, says: str) -> None:
    outcome = command("build", "reference", "--schedule", schedule, "--out", tmp_path / "b")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert says in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_schedule_may_name_its_budget(command: Command, tmp_path: Path) -> None:
    tokens = "197,197,150,150,150,100,100,100,100,100,100,1"
    schedule = ["--schedule", f"0.65={tokens}"]
    outcome = command("build", "reference", "--weights", "random", "--budgets", "", *schedule, "--out", tmp_path / "b")
    assert outcome.code == 0, outcome.err
    (budget,) = Bundle.open(tmp_path / "b").budgets
    assert (budget.name, budget.requested, ",".join(map(str, budget.schedule))) == ("0.65", 0.65, tokens)
    assert not budget.own_pattern
