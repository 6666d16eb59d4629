"""All commands, in the order in which `--help` lists them: that of a person's journey."""

from importlib import import_module

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

__all__ = ["app"]
