"""`edge-tprune select`: choose a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.cli.common import out, print_json
from edge_tprune.cli.options import Json, MaxDrop, MaxMemory, MaxP50, MaxP95, MinAgreement, MinFps, Minimize, ProfilesArgument
from edge_tprune.cli.root import app


@app.command(
    epilog="Examples: edge-tprune select profiles/RUN · edge-tprune select profiles/RUN --max-p95-ms 8 --max-top1-drop 1 --minimize latency · "
    "edge-tprune select profiles/RUN --min-fps 60 --maximize accuracy"
)
def select(
    profiles: ProfilesArgument,
    max_p50_ms: MaxP50 = None,
    max_p95_ms: MaxP95 = None,
    max_top1_drop: MaxDrop = None,
    min_agreement: MinAgreement = None,
    min_fps: MinFps = None,
    max_peak_memory_mb: MaxMemory = None,
    objective: Minimize = None,
    force: Annotated[bool, typer.Option("--force", help="Choose among rows that should not be compared, and say so.")] = False,
    json: Json = False,
) -> None:
    """Choose a budget under constraints, with the reason, the room it leaves and the runner-up. Exit code 1: nothing fits."""
    from edge_tprune.analysis.select import NothingFits, choose, render_choice
    from edge_tprune.analysis.table import load_rows

    limits = {
        "max_p50_ms": max_p50_ms,
        "max_p95_ms": max_p95_ms,
        "max_top1_drop": max_top1_drop,
        "min_agreement": min_agreement,
        "min_fps": min_fps,
        "max_peak_memory_mb": max_peak_memory_mb,
    }
    try:
        choice = choose(load_rows(profiles), limits, objective, force)
    except NothingFits as no:
        if json:
            print_json(no.to_document())
        raise
    if json:
        print_json(choice.to_document())
    else:
        render_choice(choice, out())
