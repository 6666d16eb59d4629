"""The table that comparisons are made of: a row per profile and budget, each with what it must share with others to be compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_tprune.analysis.conditions import UNKNOWN
from edge_tprune.analysis.recorded import RowVerdict
from edge_tprune.record.document import RunDocument
from edge_tprune.record.summary import Summary
from edge_tprune.statistics import Interval
from edge_tprune.text import printable

VARIABLES = ("precision",)  #: conditions that may differ between rows that are compared, as their budgets do
QUANTILES = tuple(float(q) for q in np.linspace(0, 1, 201))  #: where `Row.latency_quantiles_ms` samples the distribution


@dataclass(frozen=True)
class Profile:
    """One run: what a report tells about it beyond its rows."""

    path: Path
    document: RunDocument  #: run.json
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    summary: Summary | None = None  #: summary.json; None where nothing was timed
    parts: int = 1  #: of its path that name it among others: more where two directories are called alike

    @property
    def name(self) -> str:
        """The directory's name."""
        return printable("/".join(self.path.resolve().parts[-self.parts :]))

    @property
    def started_utc(self) -> str:
        """When it began, ISO 8601."""
        return printable(self.document.started_utc)


@dataclass(frozen=True)
class Row:
    """One budget of one profile."""

    profile: Profile
    model: str
    method: str
    budget: str
    schedule: tuple[int, ...]  #: tokens after each block, class token included
    tokens: int | None  #: of the unpruned model
    unpruned: bool
    values: Mapping[str, float | None]  #: metric name -> value; None where nobody measured it
    intervals: Mapping[str, Interval]  #: metric name -> how sure the value is, where that is known
    by_round: Mapping[str, Mapping[int, float]]  #: metric name -> round -> value: pair budgets of one profile by these
    latency_quantiles_ms: tuple[float, ...]  #: at QUANTILES, nearest rank; empty where nothing was timed
    inferences: int
    rounds: int
    conditions: Mapping[str, str]  #: what must be equal for two rows to be compared: label -> value
    unfit: str | None  #: why this row must not be chosen whatever its numbers, or None
    failed_check: bool = False  #: it gave wrong outputs there
    verdict: RowVerdict | None = None  #: whether the run may be believed; None where it gave no verdict
    why_missing: Mapping[str, str] = field(default_factory=dict)  #: metric name -> why it has no value, where that is known
    #: "top1_percent", "agreement_percent" -> (images,)
    per_image: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Method, budget and, where it is not float32, precision: 'zero_tprune 0.65@int8'."""
        named = "@" in self.budget or self.precision in ("fp32", UNKNOWN)
        return f"{self.method} {self.budget}" + ("" if named else f"@{self.precision}")

    @property
    def precision(self) -> str:
        """Of its graph."""
        return self.conditions.get("precision", UNKNOWN)

    @property
    def tokens_text(self) -> str:
        """The counts that the network passes through: '197→149→112'."""
        counts = ([self.tokens] if self.tokens is not None else []) + list(self.schedule)
        changes = [count for index, count in enumerate(counts) if index == 0 or count != counts[index - 1]]
        return "→".join(map(str, changes))

    @property
    def suspect(self) -> str | None:
        """Why the measurement is to be taken with care, or None."""
        return "; ".join(self.verdict.reasons) or "not said why" if self.verdict and self.verdict.status == "suspect" else None

    @property
    def invalid(self) -> bool:
        """Whether the measurement itself must not be believed."""
        return self.verdict is not None and self.verdict.status == "invalid"

    def value(self, metric: str) -> float | None:
        """The metric's value, None where it is missing."""
        return self.values.get(metric)


@dataclass(frozen=True)
class Group:
    """Rows that may be compared with each other."""

    conditions: Mapping[str, str]  #: what they share: label -> value; a precision only where it is that of all
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """All rows that were loaded, and what a person should know before trusting them."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()  #: everything, what was left out first
    left_out: tuple[str, ...] = ()  #: profiles that could not be read, and why

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    @property
    def groups(self) -> list[Group]:
        """The rows by what they share, in order of first appearance."""
        return group_rows(self.rows)


def group_rows(rows: Iterable[Row]) -> list[Group]:
    """Rows whose conditions are equal but for `VARIABLES` together, in order of first appearance."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        key = tuple((label, value) for label, value in row.conditions.items() if label not in VARIABLES)
        groups.setdefault(key, []).append(row)
    return [Group(_shared(members), tuple(members)) for members in groups.values()]


def _shared(rows: Sequence[Row]) -> dict[str, str]:
    return {
        label: value
        for label, value in rows[0].conditions.items()
        if label not in VARIABLES or all(row.conditions.get(label) == value for row in rows)
    }


def find_differences(rows: Iterable[Row], ignore: Collection[str] = VARIABLES) -> dict[str, tuple[str, ...]]:
    """What keeps `rows` from being compared: label -> its distinct values. Empty where all may be compared.

    Args:
        rows: any rows.
        ignore: labels that may differ.
    """
    rows = list(rows)
    labels = dict.fromkeys(label for row in rows for label in row.conditions if label not in ignore)
    found = {label: tuple(dict.fromkeys(row.conditions.get(label, UNKNOWN) for row in rows)) for label in labels}
    return {label: values for label, values in found.items() if len(values) > 1}


def describe_differences(found: Mapping[str, Sequence[str]], limit: int = 60) -> str:
    """'host (a, b) and threads (1, 2)'; values longer than `limit` are cut."""
    short = [[value if len(value) <= limit else value[: limit - 1] + "…" for value in values] for values in found.values()]
    parts = [f"{label} ({', '.join(values)})" for label, values in zip(found, short)]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
