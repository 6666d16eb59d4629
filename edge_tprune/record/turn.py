"""Turns: one budget timed within a round. Put together here from the lines that a run wrote of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar, overload

import numpy as np

from edge_tprune.documents import InvalidDocument
from edge_tprune.record.lines import PartLine, TurnLine

LEAST_INFERENCES = 10  #: of a turn; one that was cut off before so many is not used

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Turn:
    """One budget timed within a round."""

    round: int  #: from 0
    position: int  #: its place in the round's order, from 0
    budget: str
    t_ns: int  #: when timing began
    load_ms: float
    warmup_inferences: int
    warmup_steady: bool | None  #: whether latency had settled when timing began
    start_ns: np.ndarray  #: int64 (inferences,): start of each inference, from `t_ns`
    latency_ns: np.ndarray  #: int64 (inferences,): end-to-end time of each inference
    end_ns: int  #: when timing ended, on the clock of `t_ns`
    warmup_begin_ns: int | None = None  #: when the load began, on the clock of `t_ns`; None in version 1
    #: "h2d", "compute", "d2h": int64 (inferences,); None: the engine has no clock.
    stages_ns: dict[str, np.ndarray] | None = None
    due_ns: np.ndarray | None = None  #: int64 (inferences,): when each was due, from `t_ns`; None in saturation mode
    missed: int | None = None  #: frames that were dropped or finished after the next was due; None in saturation mode
    session: int = 0  #: which start of the process it belongs to: only times of one session can be compared
    complete: bool = True  #: whether the turn ran to its end

    @property
    def latency_ms(self) -> np.ndarray:
        """float64 (inferences,)."""
        return self.latency_ns / 1e6


class TurnAssembler:
    """Puts turns together from their lines.

    A turn that was cut off counts only where nothing followed it: a run that was resumed measured it again.

    Args:
        budgets: names of the run's budgets.
    """

    def __init__(self, budgets: Collection[str]) -> None:
        self._budgets = budgets
        self._parts: list[PartLine] = []
        self._seen: set[tuple[int, str]] = set()
        self.session = 0

    def add(self, line: PartLine) -> Turn | None:
        """Takes a part, and returns the turn that it completes, if it does.

        Raises:
            InvalidDocument: the part belongs to no turn of this run, or its turn was recorded before.
        """
        _check_part(line, self._budgets)
        key = (line.round, line.budget)
        if key in self._seen:
            raise InvalidDocument(
                f"round {line.round} of budget {line.budget!r} was recorded before (was the log appended to itself?)"
            )
        first = self._parts[0] if self._parts else None
        if first is not None and (first.t_ns, first.round, first.budget) != (line.t_ns, *key):
            self._parts = []
        self._parts.append(line)
        if not isinstance(line, TurnLine):
            return None
        if not any(part.start_ns for part in self._parts):
            raise InvalidDocument("a turn without an inference")
        self._seen.add(key)
        turn = _join(self._parts, self.session, complete=True)
        self._parts = []
        return turn

    def resume(self) -> None:
        """A new session begins."""
        self._parts = []
        self.session += 1

    def cut_off(self) -> Turn | None:
        """The turn that was under way when the log ended, if enough of it was recorded."""
        if sum(len(part.start_ns) for part in self._parts) < LEAST_INFERENCES:
            return None
        return _join(self._parts, self.session, complete=False)


class Stored(Sequence[T], Generic[T]):
    """Records that stay in their file: every iteration reads them again, so that a long run need not fit into memory."""

    def __init__(self, read: Callable[[], Iterator[T]]) -> None:
        self._read = read
        self._count: int | None = None

    def __iter__(self) -> Iterator[T]:
        return self._read()

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self._read())
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self._read())[index]
        if index < 0:
            index += len(self)
        for item in islice(self._read(), max(index, 0), None):
            return item
        raise IndexError(index)


def _check_part(line: PartLine, budgets: Collection[str]) -> None:
    if line.budget not in budgets:
        raise InvalidDocument(f"budget is {line.budget!r}: this run has no such budget")
    if isinstance(line, TurnLine) and line.end_ns is not None and line.end_ns <= line.t_ns:
        raise InvalidDocument(f"end_ns is {line.end_ns}: expected more than t_ns, {line.t_ns}")
    count = len(line.start_ns)
    lists = {
        "latency_ns": line.latency_ns,
        "due_ns": line.due_ns,
        **{f"stages_ns.{name}": of for name, of in (line.stages_ns or {}).items()},
    }
    for name, values in lists.items():
        if values is not None and len(values) != count:
            raise InvalidDocument(f"{name} is a list of {len(values)}: expected {count} entries, as in start_ns")


def _join(parts: Sequence[PartLine], session: int, *, complete: bool) -> Turn:
    first, last = parts[0], parts[-1]
    start_ns = _array([part.start_ns for part in parts])
    latency_ns = _array([part.latency_ns for part in parts])
    end_ns = last.end_ns if isinstance(last, TurnLine) else None
    stages = first.stages_ns
    return Turn(
        round=first.round,
        position=first.position,
        budget=first.budget,
        t_ns=first.t_ns,
        load_ms=first.load_ms,
        warmup_inferences=first.warmup_inferences,
        warmup_steady=first.warmup_steady,
        start_ns=start_ns,
        latency_ns=latency_ns,
        end_ns=end_ns or first.t_ns + int((start_ns + latency_ns).max(initial=0)),
        warmup_begin_ns=first.warmup_begin_ns,
        stages_ns=None
        if not stages
        else {name: _array([(part.stages_ns or {}).get(name, []) for part in parts]) for name in stages},
        due_ns=None if first.due_ns is None else _array([part.due_ns or [] for part in parts]),
        missed=None if first.missed is None else sum(part.missed or 0 for part in parts),
        session=session,
        complete=complete,
    )


def _array(lists: Sequence[list[int]]) -> np.ndarray:
    return np.array([value for values in lists for value in values] if len(lists) > 1 else lists[0], np.int64)
