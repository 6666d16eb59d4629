"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edge_tprune.analysis.limits import LIMITS
from edge_tprune.cli import main
from edge_tprune.cli.app import command_tree
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


def _numbers() -> list[tuple[str, str, str]]:
    """(command, option, value that no number of it may have) of every option that is a number."""
    found = []
    for name, command in command_tree().commands.items():
        for parameter in command.params:
            kind = getattr(parameter, "type_descriptor", None)
            if kind is not None and kind.annotation in (int, float):
                values = ["18446744073709551616", "-18446744073709551616"] if kind.annotation is int else ["nan", "1e400"]
                found += [(name, max(parameter.opts, key=len), value) for value in values]
    return found


@pytest.mark.parametrize(("command", "option", "value"), _numbers())
def test_no_option_takes_a_number_that_is_none(
    command: str, option: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {"export": ["--out", "x"]}.get(command, [])
    assert main([command, "nothing", *needed, f"{option}={value}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("edge-tprune: ")
    assert option in said
    assert not list(tmp_path.iterdir())
