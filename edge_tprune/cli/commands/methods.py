"""`edge-tprune methods`: which reductions there are."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from edge_tprune.cli.model_options import Plugins, load_plugins
from edge_tprune.cli.options import Json
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_warning


@command("edge-tprune methods", "edge-tprune methods zero_tprune", "edge-tprune methods --json")
def methods(
    name: Annotated[str | None, typer.Argument(help="Show everything about this method.", show_default=False)] = None,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """List the reduction methods, or show one: its paper, what it reads, where it removes tokens, its options."""
    from edge_tprune.cli.method_views import find_method, list_methods, print_method, print_methods
    from edge_tprune.cli.model_views import require_host

    require_host()
    from edge_tprune.reduction.plugins import load_announced

    load_plugins(plugin)
    for broken, problem in load_announced().items():
        print_warning(f"method {broken} could not be loaded: {problem}")
    found = list_methods()
    if name is not None:
        row = find_method(found, name)
        print_json(msgspec.to_builtins(row)) if json else print_method(row)
    elif json:
        print_json(msgspec.to_builtins(found))
    else:
        print_methods(found)
