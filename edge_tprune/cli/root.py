"""The command line as a whole; each command is one file in `commands/` and registers itself here."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.version import __version__

app = typer.Typer(
    name="edge-tprune",
    help="Fit a vision transformer to an edge board: remove tokens without training, build one checked graph per budget, measure, choose.",
    epilog="Example: edge-tprune build reference --out bundles/ref && edge-tprune eval bundles/ref && edge-tprune profile bundles/ref",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edge-tprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an internal error, instead of writing it to a file.")
    ] = False,
) -> None:
    pass
