"""What a run comes to, per budget: derived from the raw samples, so any reader can derive it again."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_tprune.files import write_json
from edge_tprune.record.digest import Digest
from edge_tprune.record.energy import Idle, Turn, budget_energy, choose_sensor, idle_power
from edge_tprune.record.facts import IDLE, Facts, Span, gather
from edge_tprune.record.reader import Check, Round, Run
from edge_tprune.record.verdict import Turns, judge_budget, judge_run, verdict_json

FORMAT = "edge-tprune-summary"
VERSION = 2
SUMMARY = "summary.json"


def percentile(values: np.ndarray, percent: float) -> float:
    """The nearest-rank percentile: the smallest of `values` (N,) that at least `percent` % of them do not exceed."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def summarize(run: Run) -> dict[str, Any]:
    """The summary.json of `run` (keys in profiles/README.md). What was not measured is None.

    Goes once over the rounds and once over the readings and keeps neither: a turn leaves some hundred bytes behind.
    """
    totals = {name: _Totals() for name in run.budgets}
    spans: list[Span] = []
    for turn in run.rounds:
        totals[turn.budget].add(turn)
        spans.append(Span.of(turn))
    turns = len(spans)
    spans += [Span(IDLE, idle.t_ns, idle.t_ns, idle.end_ns, idle.session) for idle in run.baselines]
    plan = run.info["plan"]
    sensor = choose_sensor(plan.get("sources") or [], plan["runtime"])
    facts = gather(run, spans, sensor)
    idle = Idle()
    if sensor is not None:
        idle = idle_power(sensor, [(span.session, power) for span, power in zip(spans[turns:], facts.powers[turns:])])
    reasons = {name: judge_budget(name, run.checks.get(name), totals[name].turns, facts) for name in run.budgets}
    batch = run.info["bundle"]["batch"]
    budgets = {}
    for name in run.budgets:
        own = [
            Turn(
                batch * inferences, span.seconds, (span.begin_ns - span.load_begin_ns) / 1e9, _middle(span), span.session, power
            )
            for span, inferences, power in zip(
                [span for span in spans if span.budget == name],
                totals[name].inferences,
                [power for span, power in zip(spans, facts.powers) if span.budget == name],
            )
        ]
        energy = budget_energy(sensor, own, idle)
        available = facts.stat(name, "memory_available_bytes")
        budgets[name] = {
            **_budget(run, totals[name], run.checks.get(name)),
            "min_memory_available_mb": None if available is None else available.least / 1e6,
            "power": energy.power_json(),
            "energy": energy.to_json(),
            "verdict": verdict_json(reasons[name]),
        }
    missing = facts.missing_sources.get(sensor.source) if sensor is not None else None
    return {
        "format": FORMAT,
        "version": VERSION,
        "verdict": verdict_json(judge_run(run, facts, reasons)),
        "sensor": None if sensor is None else sensor.to_json(None if missing is None else 1 - missing),
        "idle": {"power_w": None if idle.interval is None else idle.interval.to_json(), "drift_w": idle.drift_w},
        "observer": _observer(facts),
        "budgets": budgets,
    }


def round_medians(run: Run) -> dict[str, dict[int, float]]:
    """Per budget: round -> median latency in ms. Rounds are the unit of paired comparisons: pair budgets by round."""
    medians: dict[str, dict[int, float]] = {name: {} for name in run.budgets}
    for turn in run.rounds:
        medians[turn.budget][turn.round] = percentile(turn.latency_ms, 50)
    return medians


def write_summary(run: Run) -> dict[str, Any]:
    """Writes the run's summary.json into its directory, atomically, and returns what it holds."""
    summary = summarize(run)
    write_json(run.path / SUMMARY, summary)
    return summary


class _Totals:
    """What one budget's turns come to."""

    def __init__(self) -> None:
        self.latency = Digest()
        self.stages: dict[str, Digest] = {}
        self.load_ms: list[float] = []
        self.inferences: list[int] = []  #: of each turn
        self.round_median_ms: dict[str, float] = {}
        self.busy_ns = self.timed_ns = self.unsteady = 0
        self.missed: int | None = None

    def add(self, turn: Round) -> None:
        self.latency.add(turn.latency_ns)
        for stage, values in (turn.stages_ns or {}).items():
            self.stages.setdefault(stage, Digest()).add(values)
        self.load_ms.append(turn.load_ms)
        self.inferences.append(len(turn.latency_ns))
        self.round_median_ms[str(turn.round)] = percentile(turn.latency_ms, 50)
        self.busy_ns += int(turn.latency_ns.sum())
        self.timed_ns += turn.end_ns - turn.t_ns
        self.unsteady += turn.warmup_steady is False
        if turn.missed is not None:
            self.missed = (self.missed or 0) + turn.missed

    @property
    def turns(self) -> Turns:
        return Turns(len(self.inferences), self.unsteady, list(self.round_median_ms.values()))


def _budget(run: Run, totals: _Totals, check: Check | None) -> dict[str, Any]:
    """What needs no sensor."""
    plan, count = run.info["plan"], len(totals.inferences)
    peak = check.peak_memory_bytes if check else None
    fixed_rate = None
    if plan.get("mode") == "fixed_rate" and count:
        fixed_rate = {
            "fps": plan["fps"],
            "missed_deadlines": totals.missed,
            "duty_cycle_percent": 100 * totals.busy_ns / totals.timed_ns,
        }
    return {
        "inferences": totals.latency.count,
        "rounds": count,
        "latency_ms": _latency(totals.latency),
        "throughput_images_per_s": (
            run.info["bundle"]["batch"] * totals.latency.count / (totals.latency.total / 1e9) if count else None
        ),
        "peak_memory_mb": None if peak is None else peak / 1e6,
        "load_ms": percentile(np.array(totals.load_ms), 50) if count else None,
        "golden_ok": check.golden_ok if check else None,
        "round_median_ms": totals.round_median_ms,
        "stages_ms": _stages(totals.stages),
        "fixed_rate": fixed_rate,
    }


def _middle(span: Span) -> int:
    return (span.begin_ns + span.end_ns) // 2


def _observer(facts: Facts) -> dict[str, float | None] | None:
    if facts.cpu_s is None or not facts.elapsed_s:
        return None
    memory = facts.sampler_memory_bytes
    return {"cpu_percent": 100 * facts.cpu_s / facts.elapsed_s, "memory_mb": None if memory is None else memory / 1e6}


def _latency(latency: Digest) -> dict[str, float | None]:
    found = {f"p{percent}": latency.percentile(percent) for percent in (50, 95, 99)}
    found |= {"mean": latency.mean, "std": latency.deviation, "min": latency.least, "max": latency.greatest}
    return {key: None if value is None else value / 1e6 for key, value in found.items()}


def _stages(stages: dict[str, Digest]) -> dict[str, dict[str, float | None]] | None:
    """Median and 95th percentile of each stage on the device's clock."""
    if not stages:
        return None
    return {
        stage: {f"p{percent}": None if (value := of.percentile(percent)) is None else value / 1e6 for percent in (50, 95)}
        for stage, of in stages.items()
    }
