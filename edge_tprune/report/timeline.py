"""What happened when: latency turn by turn, power, clocks, temperatures and load over the time of a run, thinned for drawing."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_tprune.record.reader import Run
from edge_tprune.text import printable

MAX_POINTS = 500  #: of one trace; more readings than that are drawn as their mean with a band from the lowest to the highest
MAX_TRACES = 6  #: in one lane
MAX_TURNS = 4000  #: of more turns, whole rounds are left out evenly

_GAP = 5  # a pause of so many usual intervals is a gap in the line, not a slope
_BETWEEN_SESSIONS = 0.02  # of all sessions' time; how long a run lay still before it was resumed, no clock tells

#: title, unit, ending of a metric's name -> factor to that unit. The first ending that fits decides.
_LANES: tuple[tuple[str, str, Mapping[str, float]], ...] = (
    ("power", "W", {"_power_mw": 1e-3, "_power_w": 1.0}),
    ("clocks", "MHz", {"_frequency_mhz": 1.0, "_mhz": 1.0, "_khz": 1e-3, "_hz": 1e-6}),
    ("temperature", "°C", {"_temp_c": 1.0, "_celsius": 1.0, "_c": 1.0}),
    ("load", "%", {"_load_percent": 1.0, "_utilization_percent": 1.0}),
)
_COUNTER, _ITS_POWER = "_energy_mj", "_power_mw"


@dataclass(frozen=True)
class Trace:
    """One sensor over time."""

    name: str
    seconds: np.ndarray  #: float64 (points,)
    mean: np.ndarray  #: float64 (points,); NaN breaks the line where nothing was read, or what was read overflows
    low: np.ndarray | None  #: likewise: the lowest reading that a point stands for; None where it stands for one
    high: np.ndarray | None


@dataclass(frozen=True)
class Lane:
    """The sensors of one kind."""

    title: str
    unit: str
    traces: tuple[Trace, ...]
    left_out: int  #: sensors that were not drawn, for there are too many


@dataclass(frozen=True)
class TurnSpan:
    """One budget's turn in one round."""

    begin_s: float
    end_s: float
    round: int  #: from 0
    budget: str
    p50_ms: float


@dataclass(frozen=True)
class Timeline:
    """A run over time, from its first turn or reading on."""

    budgets: tuple[str, ...]  #: of the bundle, in its order: their places are their styles
    turns: tuple[TurnSpan, ...]
    lanes: tuple[Lane, ...]
    seconds: float  #: from the first thing shown to the last
    absent: tuple[str, ...]  #: titles of lanes that no sensor filled
    readings: int  #: of all sources together, before thinning
    idle: tuple[tuple[float, float], ...] = ()  #: begin and end (s) of the times in which the machine was left alone
    sessions: int = 1  #: a resumed run has several, which are set one after the other
    every: int = 1  #: which rounds are shown: all, or every so many-th

    @property
    def thinned(self) -> bool:
        """Whether points stand for several readings."""
        return any(trace.low is not None for lane in self.lanes for trace in lane.traces)

    def to_json(self) -> dict[str, object]:
        """For the page's script."""
        return {
            "kind": "timeline",
            "budgets": self.budgets,
            "turns": [
                [_round(turn.begin_s), _round(turn.end_s), turn.round, self.budgets.index(turn.budget), _round(turn.p50_ms)]
                for turn in self.turns
            ],
            "lanes": [
                {
                    "title": lane.title,
                    "unit": lane.unit,
                    "traces": [
                        {
                            "name": trace.name,
                            "x": _numbers(trace.seconds),
                            "mean": _numbers(trace.mean),
                            "low": None if trace.low is None else _numbers(trace.low),
                            "high": None if trace.high is None else _numbers(trace.high),
                        }
                        for trace in lane.traces
                    ],
                }
                for lane in self.lanes
            ],
            "idle": [[_round(begin), _round(end)] for begin, end in self.idle],
            "seconds": _round(self.seconds),
        }


def make_timeline(run: Run) -> Timeline:
    """Everything that `run` recorded over time; what was read from its files is not held in memory.

    Energy counters are drawn as the power between two readings, where their source gives no power itself.
    """
    budgets = tuple(map(printable, run.budgets))
    rows = [
        (entry.session, entry.t_ns, entry.end_ns, entry.round, printable(entry.budget), float(np.median(entry.latency_ms)))
        for entry in run.turns
    ]
    series: dict[tuple[str, str], tuple[array[int], array[int], array[float]]] = {}
    readings = 0
    for reading in run.readings:
        readings += 1
        for metric, value in reading.values.items():
            sessions, stamps, values = series.setdefault((reading.source, metric), (array("q"), array("q"), array("d")))
            sessions.append(reading.session)
            stamps.append(reading.t_ns)
            values.append(value)
    idle = [(base.session, base.t_ns, base.end_ns) for base in run.baselines]
    clock = _SessionClock([*((row[0], *row[1:3]) for row in rows), *idle, *_spans(series.values())])
    every = max(1, -(-len(rows) // MAX_TURNS))
    turns = tuple(
        TurnSpan(float(clock(session, begin)), float(clock(session, end)), number, budget, p50)
        for session, begin, end, number, budget, p50 in rows
        if number % every == 0
    )
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is a gap in its line
        lanes = tuple(_lanes(_on_clock(series, clock), clock.seconds))
    return Timeline(
        budgets=budgets,
        turns=turns,
        lanes=lanes,
        seconds=clock.seconds,
        absent=tuple(title for title, _, _ in _LANES if all(lane.title != title for lane in lanes)),
        readings=readings,
        idle=tuple((float(clock(session, begin)), float(clock(session, end))) for session, begin, end in idle),
        sessions=max(1, len(clock.offsets)),
        every=every,
    )


class _SessionClock:
    """Seconds from the first thing that happened, over the sessions of a run, whose own clocks do not compare."""

    def __init__(self, spans: Sequence[tuple[int, int, int]]) -> None:
        ends: dict[int, tuple[int, int]] = {}
        for session, begin, end in spans:
            first, last = ends.get(session, (begin, end))
            ends[session] = (min(first, begin), max(last, end))
        pause = _BETWEEN_SESSIONS * sum(end - begin for begin, end in ends.values())
        self.offsets: dict[int, float] = {}  #: session -> what to take from its nanoseconds
        done = 0.0
        for session in sorted(ends):
            begin, end = ends[session]
            self.offsets[session] = begin - done
            done += end - begin + pause
        self.seconds = max(0.0, done - pause) / 1e9  #: from the first to the last

    def __call__(self, session: int, stamps_ns: Any) -> Any:
        return (stamps_ns - self.offsets[session]) / 1e9


def thinned(name: str, seconds: np.ndarray, values: np.ndarray, span: float) -> Trace:
    """At most MAX_POINTS points (and the gaps between them) for readings sorted by time, over a picture of `span` seconds."""
    if len(seconds) <= MAX_POINTS:
        mean = values
        low = high = None
    else:
        slot = np.minimum((seconds - seconds[0]) / (seconds[-1] - seconds[0]) * MAX_POINTS, MAX_POINTS - 1).astype(np.int64)
        first = np.flatnonzero(np.diff(slot, prepend=-1))
        counts = np.diff(first, append=len(slot))
        mean = np.add.reduceat(values, first) / counts
        low, high = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
        seconds = np.add.reduceat(seconds, first) / counts
    steps = np.diff(seconds)
    usual = float(np.median(steps)) if len(steps) else span
    breaks = np.flatnonzero(steps > _GAP * usual) + 1
    seconds = np.insert(seconds, breaks, (seconds[breaks - 1] + seconds[breaks]) / 2)
    finite = [None if each is None else np.where(np.isfinite(each), each, np.nan) for each in (mean, low, high)]
    broken = [None if each is None else np.insert(each, breaks, np.nan) for each in finite]
    return Trace(name, seconds, np.asarray(broken[0]), broken[1], broken[2])


def _spans(series: Iterable[tuple[array[int], array[int], array[float]]]) -> Iterable[tuple[int, int, int]]:
    """Session, first and last stamp of every sensor in every session."""
    for sessions, stamps, _ in series:
        session, stamp = np.array(sessions), np.array(stamps)
        for own in np.unique(session):
            yield int(own), int(stamp[session == own].min()), int(stamp[session == own].max())


def _on_clock(
    series: Mapping[tuple[str, str], tuple[array[int], array[int], array[float]]], clock: _SessionClock
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (seconds, values) of every sensor, sorted by time."""
    names = [metric for _, metric in series]
    found = {}
    for (source, metric), (sessions, stamps, values) in series.items():
        session, stamp = np.array(sessions), np.array(stamps)
        seconds = np.empty(len(stamp))
        for own in np.unique(session):
            seconds[session == own] = clock(int(own), stamp[session == own])
        order = np.argsort(seconds, kind="stable")
        found[metric if names.count(metric) == 1 else f"{source} {metric}"] = (seconds[order], np.array(values)[order])
    return found


def _lanes(series: Mapping[str, tuple[np.ndarray, np.ndarray]], span: float) -> Iterable[Lane]:
    series = {**_counted_power(series), **series}
    for title, unit, endings in _LANES:
        members = []
        for name, (seconds, values) in series.items():
            ending = next((ending for ending in endings if name.endswith(ending)), None)
            if ending is not None:
                members.append((_words(name.removesuffix(ending)), seconds, values * endings[ending]))
        if members:
            members.sort(key=lambda member: (not member[0].startswith("total"), -float(member[2].mean())))
            shown = members[:MAX_TRACES]
            yield Lane(title, unit, tuple(thinned(*member, span) for member in shown), len(members) - len(shown))


def _counted_power(series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Power (mW) between two readings of each energy counter (mJ) that has no power of its own beside it."""
    found = {}
    for name, (seconds, energy_mj) in series.items():
        power = name.removesuffix(_COUNTER) + _ITS_POWER
        if name.endswith(_COUNTER) and power not in series and len(seconds) > 1:
            steps = np.diff(seconds)
            forward = steps > 0
            found[power] = ((seconds[1:] + seconds[:-1])[forward] / 2, np.diff(energy_mj)[forward] / steps[forward])
    return found


def _words(name: str) -> str:
    return printable(name.replace("_", " ")).strip() or "all"


def _round(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e4 else round(value, 1)


def _numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else _round(float(value)) for value in values]
