"""A run read back from its profile directory, whole or cut short. The format is described in profiles/README.md.

This is the only reader of a profile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge_tprune.bundle.manifest import Accuracy
from edge_tprune.documents import InvalidDocument, convert
from edge_tprune.errors import UserError
from edge_tprune.record.document import KIND, RUN, BudgetRecord, RunDocument
from edge_tprune.record.lines import (
    SAMPLES,
    SENSORS,
    AccuracyLine,
    BaselineLine,
    Check,
    CheckLine,
    CostLine,
    EndLine,
    NoteLine,
    PartLine,
    ReadingLine,
    ResumeLine,
    SampleLine,
    SamplerLine,
    SensorLine,
    StartLine,
    StateLine,
)
from edge_tprune.record.log import LogReader, is_being_written
from edge_tprune.record.turn import Stored, Turn, TurnAssembler
from edge_tprune.telemetry.state import MachineState


@dataclass(frozen=True)
class SourceReading:
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
    """The state the machine was in: modes, locks, counters."""

    which: str  #: "begin" or "end" of a session
    values: MachineState
    session: int = 0


@dataclass(frozen=True)
class Run:
    """A profile that was read back."""

    path: Path
    document: RunDocument  #: run.json; accuracy that was judged on the device takes the place of the bundle's
    checks: dict[str, Check]  #: by budget
    turns: Sequence[Turn]  #: in the order they ran
    readings: Sequence[SourceReading]  #: in the order they were written; of one source, in order of time
    notes: tuple[str, ...]
    end: str | None  #: "complete", "interrupted", "failed", or None where the process died
    warnings: tuple[str, ...]  #: what a person should know before trusting the numbers
    baselines: tuple[Baseline, ...] = ()
    states: tuple[State, ...] = ()
    sessions: int = 1  #: how often the run was started: once, and once per resumption

    @property
    def budgets(self) -> list[str]:
        """Names of the run's budgets, in bundle order."""
        return self.document.budget_names

    def turns_of(self, budget: str) -> list[Turn]:
        """The turns of one budget."""
        return [turn for turn in self.turns if turn.budget == budget]


def describe_end(end: str | None) -> str:
    """What a run did that did not end as planned, from `Run.end`: 'was cut off'."""
    return {None: "was cut off", "interrupted": "was interrupted"}.get(end) or str(end)


def read_run(path: Path | str, *, keep: bool = True) -> Run:
    """Reads the profile at `path`, whole or cut short; what is missing is said in `Run.warnings`.

    Args:
        path: the profile's directory.
        keep: hold the turns in memory; otherwise every iteration over them reads the file again. Readings are always so.

    Raises:
        UserError: not a profile, a newer format, or a file that is damaged anywhere but in its last line.
    """
    path = Path(path)
    document = _read_document(path)
    log = _SampleLog(path, document)
    warnings: list[str] = []
    turns: list[Turn] = []
    count = 0
    for turn in log.turns(warnings):
        count += 1
        if keep:
            turns.append(turn)
    planned = document.settings.rounds * len(document.budgets)
    if log.end != "complete":
        why = "is still going on" if is_being_written(path / SAMPLES) else describe_end(log.end)
        warnings.append(f"the run {why}: {count} of {planned} turns were measured")
    for check in log.checks.values():
        if not check.golden_ok:
            warnings.append(f"budget {check.budget} was not timed: {check.describe_failure()}")
    return Run(
        path,
        log.with_accuracy(),
        log.checks,
        tuple(turns) if keep else Stored(lambda: _SampleLog(path, document).turns()),
        Stored(lambda: _read_readings(path)),
        tuple(log.notes),
        log.end,
        tuple(warnings),
        tuple(log.baselines),
        tuple(log.states),
        log.sessions,
    )


def read_costs(path: Path) -> list[CostLine]:
    """What each sampler of the profile at `path` has used in the end, in order; empty where that was not recorded."""
    costs: list[CostLine | None] = []

    def take(line: SamplerLine | CostLine) -> None:
        if isinstance(line, SamplerLine):
            costs.append(None)
        elif costs:
            costs[-1] = line
        else:
            costs.append(line)

    if (path / SENSORS).exists():
        for _ in LogReader[SamplerLine | CostLine](SamplerLine | CostLine).read(path / SENSORS, take):
            pass
    return [cost for cost in costs if cost is not None]


class _SampleLog:
    """One pass over samples.jsonl: yields the turns and collects everything else."""

    def __init__(self, path: Path, document: RunDocument) -> None:
        self._file = path / SAMPLES
        self._document = document
        self._assembler = TurnAssembler(set(document.budget_names))
        self._started = False
        self.checks: dict[str, Check] = {}
        self.accuracy: dict[str, Accuracy] = {}
        self.notes: list[str] = []
        self.baselines: list[Baseline] = []
        self.states: list[State] = []
        self.end: str | None = None

    @property
    def sessions(self) -> int:
        """How often the run was started."""
        return self._assembler.session + 1

    def turns(self, warnings: list[str] | None = None) -> Iterator[Turn]:
        """All turns, in the order they ran."""
        yield from LogReader[SampleLine](SampleLine).read(self._file, self._take, warnings)
        if (turn := self._assembler.cut_off()) is not None:
            yield turn

    def with_accuracy(self) -> RunDocument:
        """run.json with the accuracy that was judged on the device."""

        def update(budget: BudgetRecord) -> BudgetRecord:
            return msgspec.structs.replace(budget, accuracy=self.accuracy.get(budget.name, budget.accuracy))

        return msgspec.structs.replace(self._document, budgets=tuple(map(update, self._document.budgets)))

    def _take(self, line: SampleLine) -> Turn | None:
        session = self._assembler.session
        if isinstance(line, PartLine):
            return self._assembler.add(line)
        if isinstance(line, CheckLine):
            self.checks[self._check_budget(line.budget)] = line
        elif isinstance(line, AccuracyLine):
            self.accuracy[self._check_budget(line.budget)] = convert(line.accuracy, Accuracy)
        elif isinstance(line, BaselineLine):
            self.baselines.append(Baseline(line.which, line.t_ns, line.end_ns, session))
        elif isinstance(line, StateLine):
            self.states.append(State(line.which, line.values, session))
        elif isinstance(line, NoteLine):
            self.notes.append(line.text)
        elif isinstance(line, EndLine):
            self.end = line.reason
        elif isinstance(line, ResumeLine):
            self._assembler.resume()
            self.end = None
        elif isinstance(line, StartLine):
            if self._started:
                raise InvalidDocument("the run begins a second time here (was the log appended to itself?)")
            if line.run_id not in (None, self._document.run_id):
                raise InvalidDocument(f"it is of run {line.run_id}, and run.json of run {self._document.run_id}")
            self._started = True
        return None

    def _check_budget(self, budget: str) -> str:
        if budget not in self._document.budget_names:
            raise InvalidDocument(f"budget is {budget!r}: this run has no such budget")
        return budget


def _read_document(path: Path) -> RunDocument:
    try:
        document = KIND.read(path)
    except UserError as error:
        if not path.is_dir() or (path / RUN).exists():
            raise
        raise UserError(f"{error}{_profiles_in(path)}") from error
    names = document.budget_names
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"profile {path}: {RUN} has budget {doubled[0]!r} twice. {KIND.remedy}")
    return document


def _read_readings(path: Path) -> Iterator[SourceReading]:
    """All readings: those of the sampler's process, or, in version 1, those between the turns."""
    session = 0
    samplers: set[tuple[int, int, int]] = set()

    def take(line: SensorLine) -> SourceReading | None:
        nonlocal session
        if isinstance(line, SamplerLine):
            key = (line.session, line.pid, line.t_ns)
            if key in samplers:
                raise InvalidDocument("a sampler begins a second time here (was the log appended to itself?)")
            samplers.add(key)
            session = line.session
        if not isinstance(line, ReadingLine):
            return None
        values = {name: value for name, value in line.values.items() if value is not None}
        gaps = {name: "not reported" for name, value in line.values.items() if value is None}
        return SourceReading(line.source, line.t_ns, line.read_ns, values, gaps | line.gaps, session)

    sampled = (path / SENSORS).exists()
    return LogReader[SensorLine](SensorLine if sampled else ReadingLine).read(path / (SENSORS if sampled else SAMPLES), take)


def _profiles_in(path: Path) -> str:
    """The hint for someone who named the directory that holds the profiles."""
    inside = sorted(str(file.parent) for file in path.glob(f"[!.]*/{RUN}"))
    return f". Profiles in it: {', '.join(inside[-3:])}" if inside else ""
