"""Options that commands share."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edge_tprune.analysis.limits import LIMITS
from edge_tprune.cli.options import Limits, with_limits


def test_one_parameter_stands_for_an_option_per_limit() -> None:
    app = typer.Typer()
    seen: dict[str, Any] = {}

    @app.command()
    @with_limits
    def command(name: str, *, limits: Limits, more: bool = False) -> None:
        """A command."""
        seen.update(limits, name=name, more=more)

    def run(*arguments: str) -> int:
        seen.clear()
        return CliRunner().invoke(app, ["a", *arguments]).exit_code

    assert run() == 0
    assert seen == {"name": "a", "more": False, **dict.fromkeys(LIMITS)}
    for limit in LIMITS:
        assert run("--" + limit.replace("_", "-"), "1.5", "--more") == 0
        assert seen == {"name": "a", "more": True, **dict.fromkeys(LIMITS), limit: pytest.approx(1.5)}
    assert run("--min-fps", "many") == 2
