"""`edge-tprune compare`: one row per budget, and what changed between two points in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_tprune.cli.options import EqualWithin, Json, ProfilesArgument
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_note, print_text, print_warning
from edge_tprune.errors import NegativeAnswer, UnresolvedAnswer, UserError

if TYPE_CHECKING:
    from edge_tprune.analysis.changes import Changes
    from edge_tprune.analysis.contrast import EqualityMargin
    from edge_tprune.analysis.table import Rows

_NOT_TWO = (
    "two points in time are two profiles, the older one first, or --against OLD with any number of new ones. "
    "Try: edge-tprune compare OLD NEW --fail-on-regression"
)


@command(
    "edge-tprune compare profiles/RUN",
    "edge-tprune compare profiles --export runs.parquet",
    "edge-tprune compare OLD NEW --fail-on-regression --equal-within 5%",
    "edge-tprune compare profiles/today --against profiles/release",
)
def compare(
    profiles: ProfilesArgument,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Older profiles: show what became slower, less efficient or less accurate since then, beyond the noise.",
            metavar="OLD",
        ),
    ] = None,
    fail_on_regression: Annotated[
        bool,
        typer.Option("--fail-on-regression", help="Exit code 1 if something became worse, 3 if the measurement cannot tell."),
    ] = False,
    equal_within: EqualWithin = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare even if the machine or the load differ; the output names the differences.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Also write all rows to a .csv, .json or .parquet file.", metavar="FILE")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table, for a README.")] = False,
    json: Json = False,
) -> None:
    """Show one row per budget: tokens, MACs, accuracy, latency, power, energy, memory, speed-up and its uncertainty.

    Profiles that cannot be compared are shown in separate tables. For two profiles, OLD and NEW, the changes are shown too.
    """
    from edge_tprune.analysis.contrast import BETWEEN_RUNS, WITHIN_RUN, EqualityMargin
    from edge_tprune.analysis.documents import changes_document, comparison_document
    from edge_tprune.analysis.export import check_place, write_export
    from edge_tprune.analysis.loading import load_rows
    from edge_tprune.cli.comparison_views import print_changes, print_comparison
    from edge_tprune.report.markdown import markdown_changes, markdown_table

    within = EqualityMargin.parse(equal_within, WITHIN_RUN) if equal_within is not None else WITHIN_RUN
    between = EqualityMargin.parse(equal_within, BETWEEN_RUNS) if equal_within is not None else BETWEEN_RUNS
    if json and markdown:
        raise UserError("--json and --markdown are two forms of the answer: give one")
    if export is not None:
        check_place(export)
    rows = load_rows(profiles)
    changes = _find_changes(rows, profiles, against, between, force, wanted=fail_on_regression or force)
    if export is not None:
        print_note(f"wrote {write_export(rows, export)}")
    if json:
        print_json({**comparison_document(rows), "changes": None if changes is None else changes_document(changes)})
    elif markdown:
        print_text(markdown_table(rows, within))
        if changes is not None:
            print_text(markdown_changes(changes))
        for warning in rows.warnings:
            print_warning(warning)
    else:
        print_comparison(rows, within)
        if changes is not None:
            print_changes(changes)
    if fail_on_regression and changes is not None:
        _raise_for_regression(changes)


def _raise_for_regression(changes: Changes) -> None:
    """The gate: it passes only where a regression is ruled out.

    Raises:
        NegativeAnswer: something became worse.
        UnresolvedAnswer: nothing is known to be worse, but something may be.
    """
    from edge_tprune.analysis.wording import list_regressions, list_undecided

    if regressions := list_regressions(changes):
        raise NegativeAnswer(f"regression: {_shorten(regressions)}")
    if undecided := list_undecided(changes):
        raise UnresolvedAnswer(
            f"cannot tell whether this is a regression: {_shorten(undecided)}. Measure more, or widen --equal-within"
        )


def _shorten(reasons: list[str], most: int = 3) -> str:
    """The first few of many reasons; the table above has them all."""
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def _find_changes(
    rows: Rows, named: list[Path], against: list[Path] | None, margin: EqualityMargin, force: bool, wanted: bool
) -> Changes | None:
    """What changed from `against`, or from the first to the second of two profiles; None where there are no two points in time.

    Raises:
        UserError: changes are `wanted`, or there is something to compare `against`, and they cannot be compared.
    """
    from edge_tprune.analysis.changes import find_changes
    from edge_tprune.analysis.loading import find_profiles, load_rows

    if against:
        before = load_rows(against)
        for warning in before.warnings:
            print_warning(warning)
        return find_changes(list(before), list(rows), margin, force)
    found = [find_profiles(path) for path in named] if len(named) == 2 else []
    if [len(profiles) for profiles in found] != [1, 1] or found[0][0].resolve() == found[1][0].resolve():
        if wanted:
            raise UserError(_NOT_TWO)
        return None
    old, new = ([row for row in rows if row.profile.path.resolve() == path.resolve()] for (path,) in found)
    try:
        return find_changes(old, new, margin, force)
    except UserError:
        if wanted:
            raise
        return None  # two boards or two methods side by side, not two points in time
