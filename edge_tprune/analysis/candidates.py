"""Choosing where rows come from several environments: "which board and budget for 60 images/s under 10 W?"

A constraint is absolute, so every environment may offer the best of its own rows that keeps it. The offers stand side by side and are
not ranked: what differs between them is named, and ranking them is the reader's decision (`force`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, product
from string import ascii_uppercase
from typing import Any

from rich.console import Console

from edge_tprune.analysis.compare import Column, describe_differences, metric_column, name_columns, print_table, say
from edge_tprune.analysis.limits import Limit, join_limits, margin_text
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.select import FORMAT, VERSION, Choice, NothingFits, choose, choose_each, render_choice
from edge_tprune.analysis.table import UNKNOWN, Group, Row, Rows, differences

#: What tells environments apart best, so that a name made of the first few that differ says most.
_TELLING = ("board", "host", "power mode", "clocks", "model", "runtime", "precision", "batch", "load", "CPU")


@dataclass(frozen=True)
class Candidates:
    """What each environment offers. At least one offers something."""

    answers: tuple[tuple[Group, Choice | NothingFits], ...]
    differs: Mapping[str, tuple[str, ...]]  #: what keeps the environments from being ranked: label -> its values
    warnings: tuple[str, ...] = ()  #: profiles that could not be read, and why

    @property
    def choices(self) -> list[Choice]:
        """The offers, in the order of the environments."""
        return [answer for _, answer in self.answers if isinstance(answer, Choice)]

    @property
    def only(self) -> Choice | None:
        """The answer, where a single environment offers one."""
        return self.choices[0] if len(self.choices) == 1 else None

    def name(self, group: Group) -> str:
        """What tells this environment from the others: 'Jetson Orin Nano · 15W'."""
        return self._names[id(group)]

    @cached_property
    def _names(self) -> dict[int, str]:
        """As many of the conditions as it takes to tell all apart, the most telling first."""
        labels = sorted(self.differs, key=lambda each: _TELLING.index(each) if each in _TELLING else len(_TELLING))
        parts: dict[int, tuple[str, ...]] = {id(group): () for group, _ in self.answers}
        for label in labels:
            longer = {id(group): (*parts[id(group)], group.conditions.get(label, UNKNOWN)) for group, _ in self.answers}
            if len(set(longer.values())) > len(set(parts.values())):
                parts = longer
        return {key: " · ".join(part for part in of if part != UNKNOWN) or UNKNOWN for key, of in parts.items()}

    def to_document(self) -> dict[str, Any]:
        """The offers as one JSON document; `chosen` where only one environment offers something."""
        offers: list[dict[str, Any]] = []
        none: list[dict[str, Any]] = []
        for group, answer in self.answers:
            entry = {"environment": self.name(group), "conditions": dict(group.conditions), **answer.to_document()}
            (offers if isinstance(answer, Choice) else none).append(entry)
        return {
            "format": FORMAT,
            "version": VERSION,
            "chosen": offers[0]["chosen"] if len(offers) == 1 else None,
            "candidates": offers,
            "without": none,
            "differences": {each: list(values) for each, values in self.differs.items()},
            "warnings": list(self.warnings),
        }


def choose_everywhere(
    rows: Rows, constraints: Mapping[str, float | None] | None = None, objective: str | None = None, force: bool = False
) -> Choice | Candidates:
    """`choose` where all rows are comparable or `force` is given, else the best of every environment.

    Raises:
        UserError: as `choose`.
        NothingFits: no environment has a row that keeps every constraint; the nearest misses of each are named.
    """
    groups = rows.groups
    if force or len(groups) < 2:
        return choose(rows, constraints, objective, force)
    found = Candidates(tuple(choose_each(rows, constraints, objective)), differences(rows), rows.left_out)
    if not found.choices:
        noes = [(found.name(members), answer) for members, answer in found.answers if isinstance(answer, NothingFits)]
        raise NothingFits(
            "; ".join(f"{name}: {str(no).rstrip('.')}" for name, no in noes),
            tuple(miss for _, no in noes for miss in no.misses),
            tuple(entry for _, no in noes for entry in no.left_out),
        )
    return found


def render_candidates(found: Candidates, console: Console) -> None:
    """Prints what each environment offers, which offer nothing and why, and what keeps them from being ranked."""
    choices = found.choices
    limits = [margin.limit for margin in choices[0].margins]
    asked = f" with {join_limits(limits)}" if limits else ""
    say(
        console,
        f"{len(choices)} of {len(found.answers)} environments {'has' if len(choices) == 1 else 'have'} a budget{asked}:",
        "bold",
    )
    letters = dict(zip((id(answer) for _, answer in found.answers), _letters()))
    for members, answer in found.answers:
        say(console, f"  {letters[id(answer)]}  {found.name(members)}")
    rows = [choice.row for choice in choices]
    of = {id(choice.row): letters[id(choice)] for choice in choices}
    shown = [Column("environment", "", "", lambda row: of[id(row)]), *name_columns(rows)]
    shown += [
        metric_column(METRICS[name]) for name in _metrics(choices, limits) if any(row.value(name) is not None for row in rows)
    ]
    say(console, "")
    print_table(shown, rows, console, mark_best=False)
    for choice in choices if found.only is None else ():
        for margin in choice.margins:
            say(console, f"{letters[id(choice)]}: {margin_text(margin)}")
    for _, answer in found.answers:
        if isinstance(answer, NothingFits):
            say(console, f"{letters[id(answer)]}: {answer}")
    say(console, "")
    for warning in found.warnings:
        say(console, f"warning: {warning}", "yellow")
    if found.only is not None:
        render_choice(found.only, console)
        return
    say(
        console,
        f"Not ranked: these environments differ in {describe_differences(_all_rows(found))}. Each keeps the constraints by itself; "
        "speed-ups and changes of accuracy are relative to the unpruned model of the same environment. --force ranks them.",
    )
    for choice in choices:
        for caveat in choice.caveats:
            say(console, f"warning: {letters[id(choice)]}: {caveat}", "yellow")


def _letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    for length in count(1):
        yield from map("".join, product(ascii_uppercase, repeat=length))


def _metrics(choices: Sequence[Choice], limits: Sequence[Limit]) -> list[str]:
    """What the offers are told by: what was asked for, latency, accuracy, speed-up."""
    wanted = [choices[0].metric.name, *(limit.metric.name for limit in limits), "p50_ms", "top1_change_points", "speedup"]
    return [name for name in METRICS if name in wanted]


def _all_rows(found: Candidates) -> list[Row]:
    return [row for members, _ in found.answers for row in members.rows]
