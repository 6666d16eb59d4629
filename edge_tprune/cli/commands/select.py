"""`edge-tprune select`: choose a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.cli.common import out, print_json
from edge_tprune.cli.options import Json, Limits, Minimize, ProfilesArgument, with_limits
from edge_tprune.cli.root import app


@app.command(
    epilog="Examples: edge-tprune select profiles/RUN · edge-tprune select profiles/RUN --max-p95-ms 8 --max-top1-drop 1 --minimize latency · "
    "edge-tprune select profiles --min-fps 60 --max-mean-power-w 10 --maximize accuracy"
)
@with_limits
def select(
    profiles: ProfilesArgument,
    *,
    limits: Limits,
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
