"""`edge-tprune latency`: from a profile of probes to a model of what any schedule costs on that board."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_tprune.cli.options import Json
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_table


@command(
    "edge-tprune build reference --probe --out bundles/probe",
    "edge-tprune profile bundles/probe --out profiles",
    "edge-tprune latency profiles/RUN",
)
def latency(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="Profile of a bundle that `build --probe` wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Fit a model even if the run was disturbed.")] = False,
    json: Json = False,
) -> None:
    """Fit a model of the cost of any schedule on the profiled board, and write it to latency.json in the profile.

    The table shows, for every graph, the measured cost beside the prediction of a model fitted to the other graphs.
    """
    from edge_tprune.analysis.latency import write_latency
    from edge_tprune.analysis.loading import find_profiles
    from edge_tprune.cli.latency_views import latency_table
    from edge_tprune.schedule.latency import KIND, LATENCY

    found = write_latency(profile, force=force)
    if json:
        print_json(KIND.document(found))
        return
    print_table(latency_table(found))
    print_note(f"wrote {find_profiles(profile)[0] / LATENCY}")
