"""The option --schedule: tokens after each block, or a file that `search` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_tprune.cli.parsing import parse_list
from edge_tprune.documents import MethodOptions
from edge_tprune.errors import UserError


@dataclass(frozen=True)
class Schedules:
    """What --schedule says."""

    #: As they were typed: the share, if any, and tokens after each block.
    typed: tuple[tuple[float | None, tuple[int, ...]], ...] = ()
    found: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  #: of a file: by requested share
    method: str | None = None  #: of the file
    options: MethodOptions = field(default_factory=dict)  #: of the file's method
    #: Share -> method and options, where not the file's.
    own: Mapping[str, tuple[str, MethodOptions]] = field(default_factory=dict)

    def choose_method(self, given: str | None, default: str) -> str:
        """The file's method, or else the given one.

        Raises:
            UserError: both, and they differ.
        """
        if self.method is not None and given not in (None, self.method):
            raise UserError(f"the schedule file is for method {self.method}, not {given}: leave --method out")
        return self.method or given or default


def read_schedules(texts: Sequence[str] | None) -> Schedules:
    """Reads the values of --schedule.

    Raises:
        UserError: two files, an unreadable one, a text that is no list of numbers, or a share outside (0, 1].
    """
    from edge_tprune.search.schedule_file import read

    files = [text for text in texts or [] if text.endswith(".json")]
    if len(files) > 1:
        raise UserError(f"{len(files)} schedule files are given: each is for one method, give one")
    typed = tuple(_read_typed(text) for text in texts or [] if text not in files)
    if not files:
        return Schedules(typed)
    found = read(Path(files[0]))
    budgets = {share: entry.tokens for share, entry in found.budgets.items()}
    own = {share: (entry.method, entry.options or {}) for share, entry in found.budgets.items() if entry.method is not None}
    return Schedules(typed, budgets, found.method, found.options, own)


def _read_typed(text: str) -> tuple[float | None, tuple[int, ...]]:
    """From "197,150,..." or "0.65=197,150,..."."""
    before, named, counts = text.rpartition("=")
    tokens = tuple(parse_list(counts, int, "--schedule"))
    if not named:
        return None, tokens
    try:
        share = float(before)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(
            f"--schedule {text}: before = goes the budget that it is for, above 0 and at most 1, as in 0.65={counts}"
        )
    return share, tokens
