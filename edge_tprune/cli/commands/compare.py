"""`edge-tprune compare`: one row per budget, and what changed between two points in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_tprune.cli.common import out, print_json, say
from edge_tprune.cli.options import Json, ProfilesArgument
from edge_tprune.cli.root import app
from edge_tprune.errors import NegativeAnswer, UserError

if TYPE_CHECKING:
    from edge_tprune.analysis.changes import Changes
    from edge_tprune.analysis.table import Rows

_NOT_TWO = (
    "two points in time are two profiles, the older one first, or --against OLD with any number of new ones. "
    "Try: edge-tprune compare OLD NEW --fail-on-regression"
)


@app.command(
    epilog="Examples: edge-tprune compare profiles/RUN · edge-tprune compare profiles --export runs.parquet · "
    "edge-tprune compare OLD NEW --fail-on-regression · edge-tprune compare profiles/today --against profiles/release"
)
def compare(
    profiles: ProfilesArgument,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Older profiles: say what got slower, hungrier or less accurate since, beyond the noise.", metavar="OLD"
        ),
    ] = None,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit code 1 where something got worse, cannot be judged, or is gone.")
    ] = False,
    tolerance_percent: Annotated[
        float | None,
        typer.Option(
            help="Changes of latency, power, energy and memory below this are equal; 3 by default.", min=0, show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Judge changes although the machine or the load differ, and say so.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Also write all rows to a .csv, .json or .parquet file.", metavar="FILE")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table, for a README.")] = False,
    json: Json = False,
) -> None:
    """Show one row per budget: tokens, MACs, accuracy, latency, power, energy, memory, speed-up with its uncertainty.

    Profiles that may not be compared stand in tables of their own. Of two profiles, OLD and NEW, the changes are shown too.
    """
    from edge_tprune.analysis.changes import render_changes
    from edge_tprune.analysis.compare import render, to_document
    from edge_tprune.analysis.export import write_export
    from edge_tprune.analysis.table import load_rows
    from edge_tprune.report.report import markdown_table

    rows = load_rows(profiles)
    changes = _changes(rows, profiles, against, tolerance_percent, force, wanted=fail_on_regression or force)
    if export is not None:
        say(f"wrote {write_export(rows, export)}")
    if json:
        print_json({**to_document(rows), "changes": None if changes is None else changes.to_document()})
    elif markdown:
        print(markdown_table(rows), end="")
    else:
        render(rows, out())
        if changes is not None:
            render_changes(changes, out())
    if fail_on_regression and changes is not None and changes.failures:
        raise NegativeAnswer(f"regression: {'; '.join(changes.failures)}")


def _changes(
    rows: Rows, named: list[Path], against: list[Path] | None, tolerance_percent: float | None, force: bool, wanted: bool
) -> Changes | None:
    """What changed from `against`, or from the first to the second of two profiles; None where there are no two points in time.

    Raises:
        UserError: changes are `wanted`, or there is something to judge `against`, and they cannot be judged.
    """
    from edge_tprune.analysis.changes import DEFAULT_TOLERANCE_PERCENT, find_changes
    from edge_tprune.analysis.table import find_profiles, load_rows

    tolerance = DEFAULT_TOLERANCE_PERCENT if tolerance_percent is None else tolerance_percent
    if against:
        return find_changes(list(load_rows(against)), list(rows), tolerance, force)
    found = [find_profiles(path) for path in named] if len(named) == 2 else []
    if [len(profiles) for profiles in found] != [1, 1] or found[0][0].resolve() == found[1][0].resolve():
        if wanted:
            raise UserError(_NOT_TWO)
        return None
    old, new = ([row for row in rows if row.profile.path.resolve() == path.resolve()] for (path,) in found)
    try:
        return find_changes(old, new, tolerance, force)
    except UserError:
        if wanted:
            raise
        return None  # two boards or two methods side by side, not two points in time
