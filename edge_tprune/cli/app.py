"""All commands, in the order in which `--help` lists them: that of a person's journey."""

from functools import cache
from importlib import import_module
from typing import Any

import typer

from edge_tprune.cli.root import app

_COMMANDS = (
    "methods",
    "models",
    "build",
    "search",
    "finetune",
    "explain",
    "evaluate",
    "deploy",
    "doctor",
    "engines",
    "profile",
    "latency",
    "fit",
    "compare",
    "select",
    "export",
    "report",
)
for _command in _COMMANDS:
    import_module(f"edge_tprune.cli.commands.{_command}")  # importing a command registers it


@cache
def command_tree() -> Any:
    """The commands as click knows them. Made once: reading the signatures of all of them takes a tenth of a second."""
    return typer.main.get_command(app)


__all__ = ["app", "command_tree"]
