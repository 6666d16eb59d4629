"""`edge-tprune select`: choose a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.cli.common import out, print_json
from edge_tprune.cli.options import (
    Json,
    MaxDrop,
    MaxEnergy,
    MaxMemory,
    MaxMissed,
    MaxP50,
    MaxP95,
    MaxPower,
    MinAgreement,
    MinFps,
    Minimize,
    ProfilesArgument,
)
from edge_tprune.cli.root import app


@app.command(
    epilog="Examples: edge-tprune select profiles/RUN · edge-tprune select profiles/RUN --max-p95-ms 8 --max-top1-drop 1 --minimize latency · "
    "edge-tprune select profiles --min-fps 60 --max-mean-power-w 10 --maximize accuracy"
)
def select(
    profiles: ProfilesArgument,
    max_p50_ms: MaxP50 = None,
    max_p95_ms: MaxP95 = None,
    max_mean_power_w: MaxPower = None,
    max_energy_mj: MaxEnergy = None,
    max_top1_drop: MaxDrop = None,
    min_agreement: MinAgreement = None,
    min_fps: MinFps = None,
    max_peak_memory_mb: MaxMemory = None,
    max_missed_percent: MaxMissed = None,
    objective: Minimize = None,
    force: Annotated[bool, typer.Option("--force", help="Rank rows that should not be compared, and say so.")] = False,
    json: Json = False,
) -> None:
    """Choose a budget under constraints, with the reason, the room it leaves and the runner-up. Exit code 1: nothing fits.

    Profiles of several boards or methods may be named: every environment offers its best budget, and what keeps them from being
    ranked is said.
    """
    from edge_tprune.analysis.candidates import Candidates, choose_everywhere, render_candidates
    from edge_tprune.analysis.select import NothingFits, render_choice
    from edge_tprune.analysis.table import load_rows

    limits = {
        "max_p50_ms": max_p50_ms,
        "max_p95_ms": max_p95_ms,
        "max_mean_power_w": max_mean_power_w,
        "max_energy_mj": max_energy_mj,
        "max_top1_drop": max_top1_drop,
        "min_agreement": min_agreement,
        "min_fps": min_fps,
        "max_peak_memory_mb": max_peak_memory_mb,
        "max_missed_percent": max_missed_percent,
    }
    try:
        answer = choose_everywhere(load_rows(profiles), limits, objective, force)
    except NothingFits as no:
        if json:
            print_json(no.to_document())
        raise
    if json:
        print_json(answer.to_document())
    elif isinstance(answer, Candidates):
        render_candidates(answer, out())
    else:
        render_choice(answer, out())
