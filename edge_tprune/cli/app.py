"""All commands, in the order in which `--help` lists them: that of a person's journey."""

from edge_tprune.cli.root import app  # isort: split

# isort: off
from edge_tprune.cli.commands import methods, build, search, explain, evaluate, deploy, doctor, engines, profile, compare, select, report  # noqa: F401 (importing a command registers it)

__all__ = ["app"]
