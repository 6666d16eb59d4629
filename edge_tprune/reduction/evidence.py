"""Measured on images: a method's patterns beside equal shares, and its default form beside the form of its authors (`Reducer.faithful`).

`python -m tests.benchmarks.patterns` and `python -m tests.benchmarks.faithful` write the files. KL is in nats, accuracy in points.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from edge_tprune.statistics import Interval

PATTERN_EVIDENCE = Path(__file__).parent / "pattern_evidence.json"
FAITHFUL_EVIDENCE = Path(__file__).parent / "faithful_evidence.json"


class _Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Two forms of a method at one budget."""

    method: str
    budget: str


class PatternEvidence(_Compared, frozen=True, kw_only=True):
    """A method's pattern, and equal shares at its own blocks."""

    tokens: tuple[int, ...]
    equal_tokens: tuple[int, ...]
    share: float
    equal_share: float
    kl: Interval  #: of the pattern
    equal_kl: Interval
    change: Interval  #: the pattern less equal shares, paired by image
    carries: bool  #: whether the pattern is no worse, beyond noise


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """One of a method's two forms."""

    tokens: tuple[int, ...]
    share: float
    kl: Interval
    top1_change_points: Interval
    first_kl: tuple[float, ...]  #: of the first images


class FaithfulEvidence(_Compared, frozen=True, kw_only=True):
    """A method's default form, and that of its authors. Differences are the default less the authors', paired by image."""

    images: int
    same: bool  #: whether the two are one
    default: Form
    faithful: Form
    kl_difference: Interval
    top1_difference_points: Interval


T = TypeVar("T", bound=_Compared)


class _Network(msgspec.Struct, Generic[T], frozen=True):
    rows: tuple[T, ...]


def pattern_evidence(method: str) -> dict[str, dict[str, PatternEvidence]]:
    """Network -> budget -> how a method's pattern did; empty where it has none."""
    return _of_method(method, _patterns())


def faithful_evidence(method: str) -> dict[str, dict[str, FaithfulEvidence]]:
    """Network -> budget -> how a method's two forms did; empty where it has one form."""
    return _of_method(method, _forms())


@lru_cache
def _patterns() -> dict[str, _Network[PatternEvidence]]:
    return msgspec.json.decode(PATTERN_EVIDENCE.read_bytes(), type=dict[str, _Network[PatternEvidence]])


@lru_cache
def _forms() -> dict[str, _Network[FaithfulEvidence]]:
    return msgspec.json.decode(FAITHFUL_EVIDENCE.read_bytes(), type=dict[str, _Network[FaithfulEvidence]])


def _of_method(method: str, networks: dict[str, _Network[T]]) -> dict[str, dict[str, T]]:
    found = {name: {row.budget: row for row in network.rows if row.method == method} for name, network in networks.items()}
    return {name: rows for name, rows in found.items() if rows}
