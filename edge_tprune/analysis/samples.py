"""One run as a comparison needs it, through the one reader of profiles, `record.reader`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_tprune.errors import UserError
from edge_tprune.record.document import RunDocument
from edge_tprune.record.lines import Check
from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.summarize import summarize
from edge_tprune.record.summary import Summary, read_summary
from edge_tprune.record.turn import Turn
from edge_tprune.telemetry.state import MachineState


@dataclass(frozen=True)
class Samples:
    """One run: its settings and environment, and per budget every latency that was recorded."""

    path: Path
    document: RunDocument  #: run.json; accuracy that was judged on the device takes the place of the bundle's
    checks: Mapping[str, Check]  #: by budget
    turns: Mapping[str, tuple[Turn, ...]]  #: by budget, every budget of the run, in the order they ran
    unsteady: int = 0  #: turns in which latency had not settled when timing began
    state: MachineState | None = None  #: of the machine when the run began; None where that was not recorded
    summary: Summary | None = None  #: summary.json, derived again where it is missing; None where nothing was timed
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  #: what a person should know before trusting the numbers

    @property
    def count(self) -> int:
        """Turns that were measured."""
        return sum(map(len, self.turns.values()))


def read_samples(path: Path) -> Samples:
    """Reads the profile at `path`, whole or cut short.

    Raises:
        UserError: not a profile, a newer format, a file that is damaged anywhere but in its last line, or values that make no sense.
    """
    run = read_run(path)
    summary, warnings = _find_summary(run)
    return Samples(
        path=run.path,
        document=run.document,
        checks=run.checks,
        turns={name: tuple(run.turns_of(name)) for name in run.budgets},
        unsteady=sum(turn.warmup_steady is False for turn in run.turns),
        state=next((state.values for state in run.states if state.which == "begin"), None),
        summary=summary,
        notes=run.notes,
        warnings=(*run.warnings, *warnings),
    )


def _find_summary(run: Run) -> tuple[Summary | None, list[str]]:
    """The summary that the run left, derived again where it is missing or damaged, and a warning where it is damaged.

    It is written when a session ends. Where the last one did not end, or has not yet, it is of an earlier one, and not of all turns.
    """
    warnings: list[str] = []
    try:
        if run.end is not None and (summary := read_summary(run.path)) is not None:
            return summary, []
    except UserError as error:
        warnings.append(str(error))
    try:
        return (summarize(run) if run.turns else None), warnings
    except (ArithmeticError, ValueError) as error:  # each value is in range, and what follows from all of them is not
        raise UserError(f"profile {run.path} holds values that make no sense ({error!r}). Copy the profile again") from error
