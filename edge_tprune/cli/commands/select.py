"""`edge-tprune select`: choose a budget."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_tprune.cli.options import EqualWithin, Json, Limits, Minimize, ProfilesArgument, with_limits
from edge_tprune.cli.root import command
from edge_tprune.cli.terminal import print_json, print_warning
from edge_tprune.errors import NegativeAnswer


@command(
    "edge-tprune select profiles/RUN",
    "edge-tprune select profiles/RUN --max-p95-ms 8 --max-top1-drop 1",
    "edge-tprune select profiles --min-fps 60 --max-mean-power-w 10",
)
@with_limits
def select(
    profiles: ProfilesArgument,
    *,
    limits: Limits,
    objective: Minimize = None,
    equal_within: EqualWithin = None,
    force: Annotated[
        bool, typer.Option("--force", help="Rank rows that should not be compared; the output names the differences.")
    ] = False,
    json: Json = False,
) -> None:
    """Choose a budget under limits, with the reason, the margins and the runner-up. Exit code 1: no budget meets the limits.

    With profiles of several boards or power modes, the best budget of each is shown, and why they are not ranked.
    """
    from edge_tprune.analysis.candidates import Candidates, choose_everywhere
    from edge_tprune.analysis.choice import Choice
    from edge_tprune.analysis.contrast import WITHIN_RUN, EqualityMargin
    from edge_tprune.analysis.documents import answer_document
    from edge_tprune.analysis.loading import load_rows
    from edge_tprune.cli.comparison_views import describe_failure, print_candidates, print_choice

    margin = EqualityMargin.parse(equal_within, WITHIN_RUN) if equal_within is not None else WITHIN_RUN
    rows = load_rows(profiles)
    answer = choose_everywhere(rows, limits, objective, force, margin)
    if json:
        print_json(answer_document(answer))
    if isinstance(answer, Choice):
        if not json:
            print_choice(answer)
    elif isinstance(answer, Candidates) and answer.choices:
        if not json:
            print_candidates(answer)
    else:
        for left_out in rows.left_out:
            print_warning(left_out)
        raise NegativeAnswer(describe_failure(answer))
