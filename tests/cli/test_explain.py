"""`edge-tprune explain`: what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome

Command = Callable[..., Outcome]


@pytest.mark.parametrize("budgets", [[], ["--budgets", "1.0"]])
def test_blocks_are_refused_where_nothing_asks_for_them(command: Command, tmp_path: Path, budgets: list[str]) -> None:
    tokens = ",".join(["20"] * 12)
    outcome = command("explain", "reference", "--schedule", tokens, *budgets, "--blocks", "3", "--out", tmp_path / "e.png")
    assert outcome.code == 2
    assert "--blocks is for pruning to a share of MACs, and no such share is asked for" in outcome.err
    assert list(tmp_path.iterdir()) == []
