"""From a bundle's graph to the file that a runtime runs on this machine."""

from __future__ import annotations

from pathlib import Path

from edge_tprune.build.bundle import Bundle


def prepare(bundle: Bundle, budget: str, runtime: str) -> Path:
    """The file to hand to `open_engine` for one budget: the graph itself, for a runtime that reads graphs.

    Raises:
        UserError: the budget has no file for `runtime`.
    """
    return bundle.path / bundle.budget(budget).artifact(runtime).file
