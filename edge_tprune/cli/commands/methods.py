"""`edge-tprune methods`: what there is to choose from."""

from __future__ import annotations

from edge_tprune.cli.common import out, print_json
from edge_tprune.cli.options import Json
from edge_tprune.cli.root import app


@app.command(epilog="Examples: edge-tprune methods · edge-tprune methods --json")
def methods(json: Json = False) -> None:
    """List the reduction methods: paper, the evidence they need, where they reduce, their options; and which are absent, and why."""
    from edge_tprune.cli.views import absent_table, methods_document, methods_table

    document = methods_document()
    if json:
        print_json(document)
    else:
        out().print(methods_table(document))
        out().print(absent_table(document))
