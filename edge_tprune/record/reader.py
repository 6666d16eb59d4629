"""A run read back from its profile directory, whole or cut short. The format is described in profiles/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from edge_tprune.errors import UserError
from edge_tprune.record.writer import KIND, LEAST_INFERENCES, RUN, SAMPLES, SENSORS

_T = TypeVar("_T")


@dataclass(frozen=True)
class Check:
    """What the separate process found about one budget."""

    budget: str
    golden_ok: bool
    golden_max_abs_diff: float | None  #: None where an output was not a finite number, or nothing came out
    load_ms: float | None
    peak_memory_bytes: int | None
    error: str | None  #: why the budget could not be run at all
    engine: dict[str, Any] | None = None  #: `Engine.info`


@dataclass(frozen=True)
class Round:
    """One budget's turn in one round."""

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
    stages_ns: dict[str, np.ndarray] | None = None  #: "h2d", "compute", "d2h": int64 (inferences,), where the engine tells
    due_ns: np.ndarray | None = None  #: int64 (inferences,): when each was due, from `t_ns`; None in saturation mode
    missed: int | None = None  #: frames that were dropped or finished after the next was due; None in saturation mode
    session: int = 0  #: which start of the process it belongs to: only times of one session can be compared
    complete: bool = True  #: whether the turn ran to its end

    @property
    def latency_ms(self) -> np.ndarray:
        """float64 (inferences,)."""
        return self.latency_ns / 1e6


@dataclass(frozen=True)
class Reading:
    """One reading of one source's sensors."""

    source: str
    t_ns: int  #: the middle of the read
    read_ns: int  #: how long it took
    values: dict[str, float]  #: metric -> value
    gaps: dict[str, str] = field(default_factory=dict)  #: metric -> why it has no value
    session: int = 0


@dataclass(frozen=True)
class Baseline:
    """A time in which the machine was left alone."""

    which: str  #: "before" or "after" the rounds
    t_ns: int
    end_ns: int
    session: int = 0


@dataclass(frozen=True)
class State:
    """The state the machine was in: modes, locks, counters (`telemetry.machine.state`)."""

    which: str  #: "begin" or "end" of a session
    values: dict[str, Any]
    session: int = 0


class Stored(Sequence[_T], Generic[_T]):
    """Records that stay in their file: every iteration reads them again, so that a long run need not fit into memory."""

    def __init__(self, read: Callable[[], Iterator[_T]]) -> None:
        self._read = read
        self._count: int | None = None

    def __iter__(self) -> Iterator[_T]:
        return self._read()

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self._read())
        return self._count

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[_T, ...]: ...
    def __getitem__(self, index: int | slice) -> _T | tuple[_T, ...]:
        if isinstance(index, slice):
            return tuple(self._read())[index]
        if index < 0:
            index += len(self)
        for item in islice(self._read(), max(index, 0), None):
            return item
        raise IndexError(index)


@dataclass(frozen=True)
class Run:
    """A profile that was read back."""

    path: Path
    info: dict[str, Any]  #: run.json; accuracy that was judged on the device takes the place of the bundle's
    checks: dict[str, Check]  #: by budget
    rounds: Sequence[Round]  #: in the order they ran
    readings: Sequence[Reading]  #: in the order they were written; of one source, in order of time
    notes: tuple[str, ...]
    end: str | None  #: "complete", "interrupted", "failed", or None where the process died
    warnings: tuple[str, ...]  #: what a person should know before trusting the numbers
    baselines: tuple[Baseline, ...] = ()
    states: tuple[State, ...] = ()
    sessions: int = 1  #: how often the run was started: once, and once per resumption

    @property
    def budgets(self) -> list[str]:
        """Names of the run's budgets, in bundle order."""
        return [budget["name"] for budget in self.info["budgets"]]

    def of(self, budget: str) -> list[Round]:
        """The rounds of one budget."""
        return [entry for entry in self.rounds if entry.budget == budget]


def read_run(path: Path | str, *, keep: bool = True) -> Run:
    """Reads the profile at `path`, whole or cut short; what is missing is said in `Run.warnings`.

    Args:
        path: the profile's directory.
        keep: hold the rounds in memory; otherwise every iteration over them reads the file again. Readings are always so.

    Raises:
        UserError: not a profile, a newer format, or a file that is damaged anywhere but in its last line.
    """
    path = Path(path)
    try:
        info = KIND.read(path)
    except UserError as error:
        if not path.is_dir() or (path / RUN).exists():
            raise
        raise UserError(f"{error}{_profiles_in(path)}") from error
    names = {budget["name"] for budget in info["budgets"]}
    checks: dict[str, Check] = {}
    accuracy: dict[str, Any] = {}
    notes: list[str] = []
    baselines: list[Baseline] = []
    states: list[State] = []
    rounds: list[Round] = []
    end: str | None = None
    warnings: list[str] = []
    turns = 0

    def read_line(line: dict[str, Any]) -> None:
        nonlocal end
        kind, session = line["kind"], reader.session
        if kind == "check":
            checks[line["budget"]] = _check(line)
        elif kind == "accuracy":
            accuracy[line["budget"]] = dict(line["accuracy"])
        elif kind == "baseline":
            baselines.append(Baseline(line["which"], line["t_ns"], line["end_ns"], session))
        elif kind == "state":
            states.append(State(line["which"], dict(line["values"]), session))
        elif kind == "note":
            notes.append(str(line["text"]))
        elif kind == "end":
            end = str(line["reason"])
        elif kind == "resume":
            end = None

    reader = _TurnReader(names, read_line)
    for entry in reader.turns(path, warnings):
        turns += 1
        if keep:
            rounds.append(entry)
    planned = info["plan"]["rounds"] * len(names)
    if end != "complete":
        why = {None: "was cut off", "interrupted": "was interrupted"}.get(end, end)
        warnings.append(f"the run {why}: {turns} of {planned} turns were measured")
    for check in checks.values():
        if not check.golden_ok:
            warnings.append(f"budget {check.budget} was not timed: {describe_failure(check)}")
    for budget in info["budgets"]:
        budget["accuracy"] = accuracy.get(budget["name"], budget["accuracy"])
    return Run(
        path,
        info,
        checks,
        tuple(rounds) if keep else Stored(lambda: _TurnReader(names).turns(path)),
        Stored(lambda: _readings(path)),
        tuple(notes),
        end,
        tuple(warnings),
        tuple(baselines),
        tuple(states),
        reader.session + 1,
    )


def read_lines(path: Path, parse: Callable[[dict[str, Any]], _T | None], warnings: list[str] | None = None) -> Iterator[_T]:
    """What `parse` makes of each line of a file of JSON lines, where it makes something of it.

    A last line that is not whole is left out, which `warnings` is told.

    Raises:
        UserError: the file cannot be read, or a line before the last is not JSON or `parse` refuses it.
    """
    damaged: Exception | None = None
    try:
        with path.open("rb") as stream:
            for number, text in enumerate(stream):
                if damaged is not None:
                    raise UserError(
                        f"profile {path.parent}: line {number} of {path.name} is damaged ({damaged!r}). {KIND.mend}"
                    ) from damaged
                try:
                    found = parse(json.loads(text))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    damaged = error
                    continue
                if found is not None:
                    yield found
    except OSError as error:
        raise UserError(f"profile {path.parent}: cannot read {path.name} ({error.strerror}). {KIND.mend}") from error
    if damaged is not None and warnings is not None:
        warnings.append(f"the last line of {path.name} was cut short and is left out")


def describe_failure(check: Check) -> str:
    """Why a budget failed its check, in words."""
    if check.error is not None:
        return check.error
    if check.golden_max_abs_diff is None:
        return "its golden outputs are not finite numbers here"
    return f"its golden outputs are off by {check.golden_max_abs_diff:.3g}"


class _TurnReader:
    """Puts turns together from their parts; every line of another kind goes to `other`.

    A turn that was cut off counts where nothing followed it: a run that was resumed measured it again.
    """

    def __init__(self, names: set[str], other: Callable[[dict[str, Any]], None] = lambda line: None) -> None:
        self._names = names
        self._other = other
        self._parts: list[dict[str, Any]] = []
        self.session = 0

    def parse(self, line: dict[str, Any]) -> Round | None:
        kind = line["kind"]
        if kind in ("part", "round"):
            part = _checked_turn(line, self._names)
            if self._parts and self._parts[0]["t_ns"] != part["t_ns"]:
                self._parts = []
            self._parts.append(part)
            if kind == "round":
                found = _round(self._parts, self.session, complete=True)
                self._parts = []
                if not found.start_ns.size:
                    raise ValueError("a round without an inference")
                return found
            return None
        if kind == "resume":
            self._parts = []
            self.session += 1
        self._other(line)
        return None

    def unfinished(self) -> Round | None:
        """The turn that was under way when the file ended, if enough of it was recorded."""
        if sum(len(part["start_ns"]) for part in self._parts) < LEAST_INFERENCES:
            return None
        return _round(self._parts, self.session, complete=False)

    def turns(self, path: Path, warnings: list[str] | None = None) -> Iterator[Round]:
        """All turns of the profile at `path`."""
        yield from read_lines(path / SAMPLES, self.parse, warnings)
        if (last := self.unfinished()) is not None:
            yield last


def _checked_turn(line: dict[str, Any], names: set[str]) -> dict[str, Any]:
    if line["budget"] not in names or len(line["start_ns"]) != len(line["latency_ns"]):
        raise ValueError("not a round of this run")
    _round([line], 0, complete=True)
    return line


def _round(parts: list[dict[str, Any]], session: int, *, complete: bool) -> Round:
    first, last = parts[0], parts[-1]
    start_ns, latency_ns = _joined(parts, "start_ns"), _joined(parts, "latency_ns")
    stages = first.get("stages_ns")
    return Round(
        round=int(first["round"]),
        position=int(first["position"]),
        budget=first["budget"],
        t_ns=int(first["t_ns"]),
        load_ms=float(first["load_ms"]),
        warmup_inferences=int(first["warmup_inferences"]),
        warmup_steady=first.get("warmup_steady"),
        start_ns=start_ns,
        latency_ns=latency_ns,
        end_ns=int(last.get("end_ns") or first["t_ns"] + (start_ns + latency_ns).max(initial=0)),
        warmup_begin_ns=first.get("warmup_begin_ns"),
        stages_ns=None if not stages else {stage: _joined([part["stages_ns"] for part in parts], stage) for stage in stages},
        due_ns=None if first.get("due_ns") is None else _joined(parts, "due_ns"),
        missed=None if first.get("missed") is None else sum(int(part["missed"]) for part in parts),
        session=session,
        complete=complete,
    )


def _joined(parts: list[dict[str, Any]], key: str) -> np.ndarray:
    joined = np.concatenate([np.array(part[key], dtype=np.int64) for part in parts])
    if joined.ndim != 1:
        raise ValueError(f"{key} is not a list of numbers")
    return joined


def _readings(path: Path) -> Iterator[Reading]:
    """All readings: those of the sampler's process, or, in version 1, those between the rounds."""
    own = (path / SENSORS).exists()
    session = 0

    def parse(line: dict[str, Any]) -> Reading | None:
        nonlocal session
        if line["kind"] == "sampler":
            session = int(line["session"])
        if line["kind"] != "sensors":
            return None
        values = line["values"]
        return Reading(
            source=str(line["source"]),
            t_ns=int(line["t_ns"]),
            read_ns=int(line["read_ns"]),
            values={name: float(value) for name, value in values.items() if value is not None},
            gaps={**{name: "not told" for name, value in values.items() if value is None}, **line.get("gaps", {})},
            session=session,
        )

    return read_lines(path / (SENSORS if own else SAMPLES), parse)


def _check(line: dict[str, Any]) -> Check:
    return Check(
        budget=line["budget"],
        golden_ok=line["golden_ok"],
        golden_max_abs_diff=line["golden_max_abs_diff"],
        load_ms=line["load_ms"],
        peak_memory_bytes=line["peak_memory_bytes"],
        error=line.get("error"),
        engine=line.get("engine"),
    )


def _profiles_in(path: Path) -> str:
    """The hint for someone who named the directory that holds the profiles."""
    inside = sorted(str(file.parent) for file in path.glob(f"[!.]*/{RUN}"))
    return f". Profiles in it: {', '.join(inside[-3:])}" if inside else ""
