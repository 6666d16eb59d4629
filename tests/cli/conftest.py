"""The journey once, with the reference architecture and random weights, for all tests of the commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_tprune.cli import main


@dataclass
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def journey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, profile) after build, eval and profile."""
    root = tmp_path_factory.mktemp("journey")
    bundle = root / "bundle"
    options = ["--weights", "random", "--method", "evit", "--budgets", "1.0,0.5"]
    assert main(["build", "reference", *options, "--out", str(bundle)]) == 0
    assert main(["eval", str(bundle), "--limit", "30"]) == 0
    assert (
        main(["profile", str(bundle), "--out", str(root / "profiles"), "--rounds", "3", "--seconds", "0.1", "--warmup", "0.1"])
        == 0
    )
    (profile,) = (root / "profiles").iterdir()
    return bundle, profile
