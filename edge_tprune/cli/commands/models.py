"""`edge-tprune models`: which of timm's networks can lose tokens."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.options import Json, Quiet
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import Heading, Table, print_json, print_note, print_table


@command(
    "edge-tprune models 'vit_small*dino*'",
    "edge-tprune models eva02_tiny_patch14_224",
    "edge-tprune models --json",
    "edge-tprune models --update docs/models.md",
)
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Only names that match this pattern (* and ?); all plain ViTs by default.", show_default=False),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option(
            help="Write the tables into this Markdown file, between their marker comments or at the end.", show_default=False
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List timm's pretrained plain ViTs: which are supported, and why others are refused. Downloads nothing."""
    from edge_tprune.cli.model_views import require_host

    require_host()
    from edge_tprune.files import write_text
    from edge_tprune.models.catalog import examine, format_markdown, insert_tables, pretrained_names, read_page

    if update is not None:
        read_page(update)  # a file that cannot take the tables is refused before minutes are spent on them
    names = pretrained_names(pattern)
    with show_progress("networks", quiet) as advance:
        entries = list(examine(names, lambda done: advance("networks", done, len(names))))
    taken = sum(entry.refused is None for entry in entries)
    if update is not None:
        write_text(update, insert_tables(read_page(update), format_markdown(entries)))
    if json:
        print_json({"tried": len(entries), "taken": taken, "models": [asdict(entry) for entry in entries]})
        return
    if update is None:
        headings = [
            Heading("name"),
            Heading("tokens", right=True),
            Heading("MACs", "G", right=True),
            Heading("output, or why not", fold=True),
        ]
        rows = [
            [
                entry.name,
                "-" if entry.tokens is None else str(entry.tokens),
                "-" if entry.macs is None else f"{entry.macs / 1e9:.2f}",
                entry.refused or entry.output or "",
            ]
            for entry in entries
        ]
        print_table(Table(headings, rows))
    print_note(f"{taken} of {len(entries)} taken" + (f"; wrote {update}" if update is not None else ""))
