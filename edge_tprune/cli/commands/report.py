"""`edge-tprune report`: one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.common import print_json
from edge_tprune.cli.options import Json, MaxDrop, MaxMemory, MaxP95, MinFps, Minimize, ProfilesArgument
from edge_tprune.cli.root import app


@app.command(
    epilog="Examples: edge-tprune report profiles/RUN --out report.html · edge-tprune report profiles/RUN --picture --max-top1-drop 2"
)
def report(
    profiles: ProfilesArgument,
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    picture: Annotated[
        bool, typer.Option("--picture", help="Also write accuracy against latency as an SVG beside it.")
    ] = False,
    max_p95_ms: MaxP95 = None,
    max_top1_drop: MaxDrop = None,
    min_fps: MinFps = None,
    max_peak_memory_mb: MaxMemory = None,
    objective: Minimize = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page: the answer, the table, the plots, the environment, how to reproduce."""
    from edge_tprune.analysis.report import write_report

    limits = {
        "max_p95_ms": max_p95_ms,
        "max_top1_drop": max_top1_drop,
        "min_fps": min_fps,
        "max_peak_memory_mb": max_peak_memory_mb,
    }
    written = write_report(profiles, page, constraints=limits, objective=objective, picture=picture)
    print_json({"report": str(written), "picture": str(written.with_suffix(".svg")) if picture else None}) if json else print(
        written
    )
