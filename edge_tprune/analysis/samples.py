"""The raw latencies of a run, read with bounded memory: what a day of measuring left behind must not need a day to read.

Small profiles go through the agent's own reader. Large ones go through Polars, in pieces of whole lines, and only the keys that a
comparison needs are kept: 10 million latencies (195 MB of JSON) take two to three seconds and some 250 MB on two cores, where the agent's
reader takes 6 s and 430 MB, and DuckDB's `read_json` 2.7 s and 540 MB (`make bench`). Where Polars is not installed, as on a board, or where
a line is not what it should be, the agent's reader has the word: it is slower, but says exactly what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_tprune.agent.record import KIND, SAMPLES, Check, Run, describe_failure, read_run
from edge_tprune.agent.summary import FORMAT, SUMMARY, VERSION, summarize
from edge_tprune.documents import DocumentKind
from edge_tprune.errors import UserError

if TYPE_CHECKING:
    import polars as pl

LARGE_BYTES = 16 << 20  #: of raw samples; from here on Polars reads faster than it takes to import
_SENSORS = "sensors.jsonl"
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Turn:
    """What one budget's turn in one round took."""

    round: int  #: from 0
    latency_ns: NDArray[np.int64]  #: (inferences,)


@dataclass(frozen=True)
class Samples:
    """One run: its plan and environment, and per budget every latency that was recorded."""

    path: Path
    info: Mapping[str, Any]  #: run.json
    checks: Mapping[str, Check]  #: by budget
    turns: Mapping[str, tuple[Turn, ...]]  #: by budget, every budget of the run, in the order they ran
    unsteady: int  #: turns in which latency had not settled when timing began
    summary: Mapping[str, Any]  #: summary.json as the agent derived it; {} where it is missing and too much to derive again
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
    if sum(file.stat().st_size for file in (path / SAMPLES, path / _SENSORS) if file.is_file()) >= large_bytes:
        try:
            import polars  # noqa: F401 (whether it is here at all)

            return _read_columns(path)
        except (ImportError, _NotAsExpected):
            pass
    return from_run(read_run(path))


def from_run(run: Run) -> Samples:
    """What a comparison needs of a run that the agent's reader read."""
    turns = {name: tuple(Turn(turn.round, turn.latency_ns) for turn in run.of(name)) for name in run.budgets}
    unsteady = sum(turn.warmup_steady is False for turn in run.rounds)
    summary, warnings = _stored_summary(run.path)
    if not summary and run.rounds:
        summary = summarize(run)
    return Samples(run.path, run.info, run.checks, turns, unsteady, summary, run.notes, run.warnings + warnings)


class _NotAsExpected(Exception):
    """Something in the file is not what a whole, undamaged profile holds."""


def _read_columns(path: Path) -> Samples:
    """As `from_run(read_run(path))`, through Polars.

    Raises:
        UserError: run.json is not that of a profile.
        _NotAsExpected: the samples need the agent's reader.
    """
    import polars as pl

    info = KIND.read(path)
    turns: dict[str, list[Turn]] = {budget["name"]: [] for budget in info["budgets"]}
    checks: dict[str, Check] = {}
    notes: list[str] = []
    end: str | None = None
    unsteady = 0
    warnings: list[str] = []
    for frame in _frames(path / SAMPLES, warnings):
        rounds = frame.filter(pl.col("kind") == "round")
        unsteady += rounds.filter(~pl.col("warmup_steady")).height
        for turn, budget in _turns(rounds):
            if budget not in turns:
                raise _NotAsExpected
            turns[budget].append(turn)
        for line in frame.filter(pl.col("kind").is_in(["check", "note", "end"])).iter_rows(named=True):
            if line["kind"] == "check":
                check = _check(line)
                checks[check.budget] = check
            elif line["kind"] == "note":
                notes.append(str(line["text"]))
            else:
                end = line["reason"]
    own = {name: tuple(of) for name, of in turns.items()}
    summary, remarks = _stored_summary(path)
    if not summary and not remarks:
        remarks = (f"{SUMMARY} is missing: power, energy and verdict are left out",)
    said = tuple(warnings) + _incomplete(info, own, checks, end) + remarks
    return Samples(path, info, checks, own, unsteady, summary, tuple(notes), said)


def _stored_summary(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the agent derived and why it cannot be used, where it cannot. A run that was killed has none."""
    file = path / SUMMARY
    if not file.is_file():
        return {}, ()
    kind = DocumentKind("summary", FORMAT, max(VERSION, 2), "", "")
    try:
        return kind.read(file), ()
    except UserError as error:
        return {}, (f"{SUMMARY} is left out: {error}",)


def _incomplete(
    info: Mapping[str, Any], turns: Mapping[str, Sequence[Turn]], checks: Mapping[str, Check], end: str | None
) -> tuple[str, ...]:
    """What a run that did not do all it had planned left out."""
    found = []
    if end != "complete":
        why = {None: "was cut off", "interrupted": "was interrupted"}.get(end, end)
        planned = info["plan"]["rounds"] * len(turns)
        found.append(f"the run {why}: {sum(map(len, turns.values()))} of {planned} turns were measured")
    found += [
        f"budget {check.budget} was not timed: {describe_failure(check)}" for check in checks.values() if not check.golden_ok
    ]
    return tuple(found)


def _frames(file: Path, warnings: list[str]) -> Iterator[pl.DataFrame]:
    """The lines of `file` in pieces of a bounded number of bytes; keys that no comparison needs are left out.

    A last line that was cut short is left out too, and said in `warnings`.
    """
    import polars as pl

    schema: dict[str, Any] = {
        "kind": pl.String,
        "round": pl.Int64,
        "budget": pl.String,
        "warmup_steady": pl.Boolean,
        "latency_ns": pl.List(pl.Int64),
        "golden_ok": pl.Boolean,
        "golden_max_abs_diff": pl.Float64,
        "load_ms": pl.Float64,
        "peak_memory_bytes": pl.Int64,
        "error": pl.String,
        "text": pl.String,
        "reason": pl.String,
    }
    for lines in _pieces(file):
        if not lines.endswith(b"\n"):
            try:
                json.loads(lines)
            except ValueError:
                warnings.append(f"the last line of {SAMPLES} was cut short and is left out")
                return
        try:
            frame = pl.read_ndjson(lines, schema=schema)
        except pl.exceptions.PolarsError as error:
            raise _NotAsExpected from error
        if frame["kind"].null_count():
            raise _NotAsExpected
        yield frame


def _pieces(file: Path) -> Iterator[bytes]:
    """Whole lines of `file`, some `_PIECE_BYTES` at a time; at last, alone, what follows the last line's end."""
    with file.open("rb") as stream:
        rest = b""
        while piece := stream.read(_PIECE_BYTES):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield lines + newline
        if rest:
            yield rest


def _turns(rounds: pl.DataFrame) -> Iterator[tuple[Turn, str]]:
    lengths = rounds["latency_ns"].list.len()
    if lengths.null_count() or rounds["round"].null_count() or (lengths == 0).any():
        raise _NotAsExpected
    latencies = rounds["latency_ns"].explode()
    if latencies.null_count():
        raise _NotAsExpected
    parts = np.split(latencies.to_numpy(), np.cumsum(lengths.to_numpy())[:-1])
    for index, budget, part in zip(rounds["round"], rounds["budget"], parts):
        yield Turn(index, part), budget


def _check(line: Mapping[str, Any]) -> Check:
    if line["budget"] is None or line["golden_ok"] is None:
        raise _NotAsExpected
    return Check(
        budget=line["budget"],
        golden_ok=line["golden_ok"],
        golden_max_abs_diff=line["golden_max_abs_diff"],
        load_ms=line["load_ms"],
        peak_memory_bytes=line["peak_memory_bytes"],
        error=line["error"],
    )
