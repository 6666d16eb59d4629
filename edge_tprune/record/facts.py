"""Facts of the machine during a run: one pass over the sensor readings, which are sorted into turns and idle times and not kept."""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_tprune.record.meter import Meter
from edge_tprune.record.power import Power, PowerWindow
from edge_tprune.record.reader import Run, SourceReading, read_costs
from edge_tprune.record.settings import SourceRecord
from edge_tprune.record.spans import IDLE, Span


@dataclass
class Stat:
    """Sums over the readings of one metric."""

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    increase: float = 0.0  #: from reading to reading, where there was one; across sessions nothing is counted

    def add(self, value: float, increase: float) -> None:
        """One more reading."""
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.greatest = max(self.greatest, value)
        self.increase += increase

    @property
    def mean(self) -> float:
        """Mean of the readings."""
        return self.total / self.count


@dataclass
class Trend:
    """A straight line through the readings of one metric."""

    count: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    _t: float = 0.0
    _x: float = 0.0
    _tt: float = 0.0
    _tx: float = 0.0

    def add(self, t_ns: int, value: float) -> None:
        """One more reading; its sums are of times since the first."""
        if not self.count:
            self.first_s = t_ns / 1e9
        self.last_s = t_ns / 1e9
        t = self.last_s - self.first_s
        self.count += 1
        self._t += t
        self._x += value
        self._tt += t * t
        self._tx += t * value

    @property
    def rise(self) -> float:
        """How much the line rises from the first reading to the last."""
        spread = self._tt - self._t * self._t / max(1, self.count)
        if self.count < 3 or spread <= 0:
            return 0.0
        return (self._tx - self._t * self._x / self.count) / spread * (self.last_s - self.first_s)


@dataclass
class Facts:
    """What was found."""

    powers: list[Power | None] = field(default_factory=list)  #: per span
    stats: dict[str | None, dict[str, Stat]] = field(default_factory=dict)  #: budget (or IDLE) -> metric, while timing
    whole: dict[str, Stat] = field(default_factory=dict)  #: metric, over everything that was sampled
    #: (session, temperature) -> its course while budgets were timed: clocks of sessions have nothing in common
    trends: dict[tuple[int, str], Trend] = field(default_factory=dict)
    gaps: dict[str, Counter[str]] = field(default_factory=dict)  #: metric -> reason -> readings, of metrics that had a value
    slow: Counter[str] = field(default_factory=Counter)  #: source -> reads that took longer than its period
    #: Budget -> share of the sensor's readings that did not come.
    missing: dict[str | None, float] = field(default_factory=dict)
    missing_sources: dict[str, float] = field(default_factory=dict)  #: source -> share of its readings while timing
    cpu_s: float | None = None  #: what the sampler used ...
    elapsed_s: float | None = None  #: ... in this time
    sampler_memory_bytes: float | None = None

    def stat(self, budget: str | None, metric: str) -> Stat | None:
        """Readings of a metric while a budget was timed; None where there are none."""
        return self.stats.get(budget, {}).get(metric)


def gather(run: Run, spans: Sequence[Span], meter: Meter | None) -> Facts:
    """Goes over the readings of `run` once.

    Args:
        run: whose readings are taken.
        spans: turns and idle times, in order of time within each session.
        meter: what power is computed from.
    """
    gatherer = _Gatherer(run.document.settings.sources, spans, meter)
    for reading in run.readings:
        gatherer.add(reading)
    facts = gatherer.facts()
    if costs := read_costs(run.path):
        facts.cpu_s = sum(cost.cpu_s for cost in costs)
        facts.elapsed_s = sum(cost.elapsed_s for cost in costs)
        facts.sampler_memory_bytes = max(cost.memory_bytes for cost in costs)
    return facts


class _Gatherer:
    def __init__(self, sources: Sequence[SourceRecord], spans: Sequence[Span], meter: Meter | None) -> None:
        self._spans = spans
        self._meter = meter
        self._facts = Facts(powers=[None] * len(spans))
        self._periods = {source.name: source.period_s for source in sources if source.period_s}
        self._counters = {metric.name for source in sources for metric in source.metrics if metric.aggregation == "increase"}
        self._sessions: dict[int, tuple[list[int], list[int]]] = {}  #: session -> load begins, and the spans they are of
        for index in sorted(range(len(spans)), key=lambda index: (spans[index].session, spans[index].load_begin_ns)):
            begins, indices = self._sessions.setdefault(spans[index].session, ([], []))
            begins.append(spans[index].load_begin_ns)
            indices.append(index)
        self._came: dict[str, list[int]] = {name: [0] * len(spans) for name in self._periods}  #: readings per span
        self._open: tuple[int, PowerWindow] | None = None
        self._closed: set[int | None] = set()  #: spans whose power is known
        self._last: dict[tuple[int, str], float] = {}  #: (session, metric) -> value of a counter
        self._gaps: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, reading: SourceReading) -> None:
        facts = self._facts
        period_s = self._periods.get(reading.source)
        if period_s is not None and reading.read_ns > 1e9 * period_s:
            facts.slow[reading.source] += 1
        for metric, reason in reading.gaps.items():
            self._gaps[metric][reason] += 1
        index = self._find(reading)
        timed = index is not None and reading.t_ns >= self._spans[index].begin_ns
        budget = None if index is None else self._spans[index].budget
        for metric, value in reading.values.items():
            key = (reading.session, metric)
            increase = max(0.0, value - self._last.get(key, value)) if metric in self._counters else 0.0
            self._last[key] = value
            facts.whole.setdefault(metric, Stat()).add(value, increase)
            if timed or (index is not None and increase):
                facts.stats.setdefault(budget, {}).setdefault(metric, Stat()).add(value, increase)
            if timed and budget is not IDLE and metric.endswith("_temp_c"):
                facts.trends.setdefault((reading.session, metric), Trend()).add(reading.t_ns, value)
        if self._meter is not None and reading.source == self._meter.source:
            self._add_power(index, reading)
        elif timed and index is not None and reading.values and reading.source in self._came:
            self._came[reading.source][index] += 1

    def _add_power(self, index: int | None, reading: SourceReading) -> None:
        assert self._meter is not None
        value = reading.values.get(self._meter.metric)
        if index in self._closed:  # a read that stalled until its turn was over: too late to count
            return
        if self._open is not None and self._open[0] != index:
            self._close()
        if index is None or value is None:
            return
        span = self._spans[index]
        if self._open is None:
            self._open = index, PowerWindow(self._meter, span.load_begin_ns, span.begin_ns, span.end_ns)
        self._open[1].add(reading.t_ns, reading.read_ns, value)
        if reading.t_ns >= span.begin_ns and reading.source in self._came:
            self._came[reading.source][index] += 1

    def _close(self) -> None:
        if self._open is not None:
            index, window = self._open
            self._facts.powers[index] = window.power()
            self._closed.add(index)
            self._open = None

    def _find(self, reading: SourceReading) -> int | None:
        """The span that holds a reading, warm-up included."""
        begins, indices = self._sessions.get(reading.session, ([], []))
        place = bisect.bisect_right(begins, reading.t_ns) - 1
        if place < 0 or reading.t_ns > self._spans[indices[place]].end_ns:
            return None
        return indices[place]

    def facts(self) -> Facts:
        self._close()
        facts = self._facts
        facts.gaps = {metric: reasons for metric, reasons in self._gaps.items() if metric in facts.whole}
        for source, came in self._came.items():
            expected: Counter[str | None] = Counter()
            missing: Counter[str | None] = Counter()
            for span, count in zip(self._spans, came):
                ticks = math.floor(span.seconds / self._periods[source])
                expected[span.budget] += ticks
                missing[span.budget] += max(0, ticks - 1 - count)  # a window need not hold the ticks at both of its ends
            of_turns = sum(ticks for budget, ticks in expected.items() if budget is not IDLE)
            if of_turns:
                lost = sum(count for budget, count in missing.items() if budget is not IDLE)
                facts.missing_sources[source] = lost / of_turns
            if self._meter is not None and source == self._meter.source:
                facts.missing = {budget: missing[budget] / ticks for budget, ticks in expected.items() if ticks}
        return facts
