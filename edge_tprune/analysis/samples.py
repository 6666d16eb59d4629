"""The raw latencies of a run, read with bounded memory: what a day of measuring left behind must not need a day to read.

Small profiles go through the agent's own reader. Large ones go through Polars, in pieces of whole lines and with only the keys that a
comparison needs: ten million latencies (196 MB) cost 1.2 s of CPU, half of what the agent's reader takes, and memory grows with nothing
but the latencies themselves (277 MB). DuckDB reads the same file in 0.5 s, but as a whole (430 MB, and more for a longer run), and its JSON
reader cannot be handed pieces. `make bench` prints what load and summary come to. Where Polars is missing, as on a board, or where a line
is not what it should be, the agent's reader has the word: it is slower, but says exactly what is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_tprune.documents import UntypedDocumentKind as DocumentKind
from edge_tprune.errors import UserError
from edge_tprune.record.reader import Check, Run, describe_failure, read_run
from edge_tprune.record.summary import FORMAT, SUMMARY, VERSION, summarize
from edge_tprune.record.writer import KIND, LEAST_INFERENCES, SAMPLES

if TYPE_CHECKING:
    import polars as pl

LARGE_BYTES = 16 << 20  #: of raw samples; from here on Polars reads faster than it takes to import
_PIECE_BYTES = 16 << 20
_TURN_LINE = re.compile(rb'\{"kind": ?"(round|part)"')
_SENSORS_LINE = re.compile(rb'\{"kind": ?"sensors"')


@dataclass(frozen=True)
class Turn:
    """What one budget's turn in one round took."""

    round: int  #: from 0
    latency_ns: NDArray[np.int64]  #: (inferences,)


@dataclass(frozen=True)
class Samples:
    """One run: its plan and environment, and per budget every latency that was recorded."""

    path: Path
    info: Mapping[str, Any]  #: run.json; accuracy that was judged on the device takes the place of the bundle's
    checks: Mapping[str, Check]  #: by budget
    turns: Mapping[str, tuple[Turn, ...]]  #: by budget, every budget of the run, in the order they ran
    unsteady: int  #: turns in which latency had not settled when timing began
    state: Mapping[str, Any]  #: the state the machine was in when the run began; {} where that was not recorded
    summary: Mapping[str, Any]  #: summary.json, derived again where it is missing
    notes: tuple[str, ...]
    warnings: tuple[str, ...]  #: what a person should know before trusting the numbers

    @property
    def count(self) -> int:
        """Turns that were measured."""
        return sum(map(len, self.turns.values()))


def read_samples(path: Path, large_bytes: int = LARGE_BYTES) -> Samples:
    """Reads the profile at `path`, whole or cut short.

    Args:
        path: the profile's directory.
        large_bytes: from how many bytes of samples on Polars reads them, where it is installed.

    Raises:
        UserError: not a profile, a newer format, or a file that is damaged anywhere but in its last line.
    """
    file = path / SAMPLES
    if file.is_file() and file.stat().st_size >= large_bytes:
        try:
            import polars  # noqa: F401 (whether it is here at all)

            return _Columns(path).read()
        except (ImportError, _NotAsExpected):
            pass
    return _from_run(read_run(path))


def _from_run(run: Run) -> Samples:
    """What a comparison needs of a run that the agent's reader read."""
    turns = {name: tuple(Turn(turn.round, turn.latency_ns) for turn in run.of(name)) for name in run.budgets}
    summary, warnings = _summary(run.path, run)
    return Samples(
        path=run.path,
        info=run.info,
        checks=run.checks,
        turns=turns,
        unsteady=sum(turn.warmup_steady is False for turn in run.rounds),
        state=next((state.values for state in run.states if state.which == "begin"), {}),
        summary=summary,
        notes=run.notes,
        warnings=(*run.warnings, *warnings),
    )


def _summary(path: Path, run: Run | None = None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the agent derived, derived again where that is missing or not readable, and a word where it was not readable."""
    stored = DocumentKind("summary", FORMAT, VERSION, "", "It is derived again from the samples")
    file = path / SUMMARY
    warnings: list[str] = []
    if file.is_file():
        try:
            return stored.read(file), ()
        except UserError as error:
            warnings.append(str(error))
    run = run or read_run(path, keep=False)
    return (summarize(run) if len(run.rounds) else {}), tuple(warnings)


class _NotAsExpected(Exception):
    """Something in the file is not what an undamaged profile holds, or is written in another way than the agent writes."""


@dataclass
class _Parts:
    """A turn, as far as it has been read."""

    t_ns: int
    round: int
    budget: str
    steady: bool | None
    latency_ns: list[NDArray[np.int64]]

    @property
    def turn(self) -> Turn:
        return Turn(self.round, self.latency_ns[0] if len(self.latency_ns) == 1 else np.concatenate(self.latency_ns))


class _Columns:
    """As `_from_run(read_run(path))`, through Polars. Lines of turns are columns; the few others are read one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = KIND.read(path)
        self.turns: dict[str, list[Turn]] = {budget["name"]: [] for budget in self.info["budgets"]}
        self.checks: dict[str, Check] = {}
        self.accuracy: dict[str, Any] = {}
        self.state: dict[str, Any] = {}
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.end: str | None = None
        self.unsteady = 0
        self._open: _Parts | None = None  # a turn whose parts have come, but not its end

    def read(self) -> Samples:
        """Raises `_NotAsExpected` where the agent's reader is needed."""
        for lines in _pieces(self.path / SAMPLES, self.warnings):
            turns: list[bytes] = []
            for text in lines.split(b"\n"):
                if _TURN_LINE.match(text):
                    turns.append(text)
                elif not _SENSORS_LINE.match(text):
                    self._other(text, turns)
            self._add_turns(turns)
        if self._open is not None and self._open.turn.latency_ns.size >= LEAST_INFERENCES:
            self._close()
        own = {name: tuple(of) for name, of in self.turns.items()}
        for budget in self.info["budgets"]:
            budget["accuracy"] = self.accuracy.get(budget["name"], budget["accuracy"])
        self._say_what_is_missing()
        summary, warnings = _summary(self.path)
        said = (*self.warnings, *warnings)
        return Samples(self.path, self.info, self.checks, own, self.unsteady, self.state, summary, tuple(self.notes), said)

    def _other(self, text: bytes, turns: list[bytes]) -> None:
        """Takes in one line that is no turn; `turns` are those before it that are not taken in yet."""
        try:
            line = json.loads(text)
            kind = line["kind"]
            if kind in ("round", "part"):
                raise _NotAsExpected
            if kind == "check":
                self.checks[line["budget"]] = Check(**{field.name: line.get(field.name) for field in fields(Check)})
            elif kind == "accuracy":
                self.accuracy[line["budget"]] = dict(line["accuracy"])
            elif kind == "state" and line["which"] == "begin" and not self.state:
                self.state = dict(line["values"])
            elif kind == "note":
                self.notes.append(str(line["text"]))
            elif kind == "end":
                self.end = str(line["reason"])
            elif kind == "resume":
                self._add_turns(turns)
                turns.clear()
                self._open = self.end = None
        except (ValueError, KeyError, TypeError) as error:
            raise _NotAsExpected from error

    def _add_turns(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        frame = _frame(b"\n".join(lines))
        lengths = frame["latency_ns"].list.len()
        needed = ("kind", "t_ns", "round", "budget")
        latencies = frame["latency_ns"].explode()
        if any(frame[name].null_count() for name in needed) or lengths.null_count() or latencies.null_count() or 0 in lengths:
            raise _NotAsExpected
        parts = np.split(latencies.to_numpy(), np.cumsum(lengths.to_numpy())[:-1])
        columns = (frame[name] for name in (*needed, "warmup_steady"))
        for kind, t_ns, index, budget, steady, part in zip(*columns, parts):
            if budget not in self.turns:
                raise _NotAsExpected
            if self._open is None or self._open.t_ns != t_ns:
                self._open = _Parts(t_ns, index, budget, steady, [])
            self._open.latency_ns.append(part)
            if kind == "round":
                self._close()

    def _close(self) -> None:
        if self._open is not None:
            self.turns[self._open.budget].append(self._open.turn)
            self.unsteady += self._open.steady is False
            self._open = None

    def _say_what_is_missing(self) -> None:
        if self.end != "complete":
            why = {None: "was cut off", "interrupted": "was interrupted"}.get(self.end, self.end)
            planned = self.info["plan"]["rounds"] * len(self.turns)
            measured = sum(map(len, self.turns.values()))
            self.warnings.append(f"the run {why}: {measured} of {planned} turns were measured")
        for check in self.checks.values():
            if not check.golden_ok:
                self.warnings.append(f"budget {check.budget} was not timed: {describe_failure(check)}")


def _frame(lines: bytes) -> pl.DataFrame:
    import polars as pl

    schema: dict[str, Any] = {
        "kind": pl.String,
        "t_ns": pl.Int64,
        "round": pl.Int64,
        "budget": pl.String,
        "warmup_steady": pl.Boolean,
        "latency_ns": pl.List(pl.Int64),
    }
    try:
        return pl.read_ndjson(lines, schema=schema)
    except pl.exceptions.PolarsError as error:
        raise _NotAsExpected from error


def _pieces(file: Path, warnings: list[str]) -> Iterator[bytes]:
    """Whole lines of `file`, some `_PIECE_BYTES` at a time. A last line that was cut short is left out, which `warnings` is told."""
    with file.open("rb") as stream:
        rest = b""
        while piece := stream.read(_PIECE_BYTES):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield lines
    if rest:
        try:
            json.loads(rest)
        except ValueError:
            warnings.append(f"the last line of {file.name} was cut short and is left out")
        else:
            yield rest
