"""`edge-tprune compare`: one row per budget."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.cli.common import out, print_json
from edge_tprune.cli.options import Json, ProfilesArgument
from edge_tprune.cli.root import app


@app.command(
    epilog="Examples: edge-tprune compare profiles/RUN · edge-tprune compare profiles --json · edge-tprune compare profiles --markdown"
)
def compare(
    profiles: ProfilesArgument,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table, for a README.")] = False,
    json: Json = False,
) -> None:
    """Show one row per budget: tokens, MACs, accuracy, latency, throughput, memory, speed-up with its uncertainty."""
    from edge_tprune.analysis.compare import render, to_document
    from edge_tprune.analysis.report import markdown_table
    from edge_tprune.analysis.table import load_rows

    rows = load_rows(profiles)
    if json:
        print_json(to_document(rows))
    elif markdown:
        print(markdown_table(rows), end="")
    else:
        render(rows, out())
