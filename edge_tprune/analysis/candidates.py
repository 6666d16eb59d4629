"""Choosing where rows come from several environments: "which board and budget for 60 images/s under 10 W?"

A constraint is absolute, so every environment may offer the best of its own rows that keeps it. The offers stand side by side and are
not ranked: what differs between them is named, and ranking them is the reader's decision (`force`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from edge_tprune.analysis.choice import Answer, Choice, NoChoice, choose, choose_per_group
from edge_tprune.analysis.conditions import UNKNOWN
from edge_tprune.analysis.contrast import WITHIN_RUN, EqualityMargin
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Group, Row, Rows, find_differences

#: What tells environments apart best, so that a name made of the first few that differ says most.
_DISTINCTIVE = ("board", "host", "power mode", "clocks", "model", "runtime", "precision", "batch", "load", "CPU")


@dataclass(frozen=True)
class Candidates:
    """What each environment offers, if anything."""

    answers: tuple[tuple[Group, Answer], ...]
    differences: Mapping[str, tuple[str, ...]]  #: what keeps the environments from being ranked: label -> its values
    warnings: tuple[str, ...] = ()  #: profiles that could not be read, and why

    @property
    def choices(self) -> list[Choice]:
        """The offers, in the order of the environments."""
        return [answer for _, answer in self.answers if isinstance(answer, Choice)]

    @property
    def refusals(self) -> list[tuple[Group, NoChoice]]:
        """The environments that offer nothing."""
        return [(group, answer) for group, answer in self.answers if isinstance(answer, NoChoice)]

    @property
    def only(self) -> Choice | None:
        """The answer, where a single environment offers one."""
        return self.choices[0] if len(self.choices) == 1 else None

    @property
    def rows(self) -> list[Row]:
        """The rows of all environments."""
        return [row for group, _ in self.answers for row in group.rows]

    @property
    def metrics(self) -> list[Metric]:
        """What describes the offers: what was asked for, latency, accuracy, speed-up."""
        question = self.answers[0][1].question
        wanted = {*question.metrics, *(METRICS[name] for name in ("p50_ms", "top1_change_points", "speedup"))}
        rows = [choice.row for choice in self.choices]
        return [
            metric
            for metric in METRICS.values()
            if metric in wanted and any(row.value(metric.name) is not None for row in rows)
        ]

    def name(self, group: Group) -> str:
        """What tells this environment from the others: 'Jetson Orin Nano · 15W'."""
        return self._names[id(group)]

    @cached_property
    def _names(self) -> dict[int, str]:
        """As many of the conditions as it takes to tell all apart, the most distinctive first."""
        order = {label: place for place, label in enumerate(_DISTINCTIVE)}
        labels = sorted(self.differences, key=lambda label: order.get(label, len(order)))
        parts: dict[int, tuple[str, ...]] = {id(group): () for group, _ in self.answers}
        for label in labels:
            longer = {id(group): (*parts[id(group)], group.conditions.get(label, UNKNOWN)) for group, _ in self.answers}
            if len(set(longer.values())) > len(set(parts.values())):
                parts = longer
        return {key: " · ".join(part for part in of if part != UNKNOWN) or UNKNOWN for key, of in parts.items()}


def choose_everywhere(
    rows: Rows,
    constraints: Mapping[str, float | None] | None = None,
    objective: str | None = None,
    force: bool = False,
    margin: EqualityMargin = WITHIN_RUN,
) -> Answer | Candidates:
    """`choose` where all rows are comparable or `force` is given, else the best of every environment.

    Raises:
        UserError: as `choose`.
    """
    if force or len(rows.groups) < 2:
        return choose(rows, constraints, objective, force, margin)
    answers = choose_per_group(rows, constraints, objective, margin)
    return Candidates(tuple(answers), find_differences(rows), rows.left_out)
