"""From a run's turns and readings to its summary, in one pass over each: a turn leaves some hundred bytes behind."""

from __future__ import annotations

import msgspec
import numpy as np

from edge_tprune.files import check_own
from edge_tprune.record.digest import Digest
from edge_tprune.record.energy import Energy, SpanPower, budget_energy
from edge_tprune.record.facts import Facts, gather
from edge_tprune.record.idle import Idle, idle_power
from edge_tprune.record.lines import Check
from edge_tprune.record.meter import Meter, choose_meter
from edge_tprune.record.reader import Run
from edge_tprune.record.settings import RunSettings
from edge_tprune.record.spans import IDLE, Span
from edge_tprune.record.summary import (
    KIND,
    SUMMARY,
    BudgetSummary,
    EnergySummary,
    FixedRateSummary,
    IdleSummary,
    LatencySummary,
    MeterSummary,
    ObserverSummary,
    PowerSummary,
    StageSummary,
    Summary,
)
from edge_tprune.record.turn import Turn
from edge_tprune.record.verdict import TurnStatistics, conclude, judge_budget, judge_run, runs_on_gpu
from edge_tprune.statistics import percentile


def summarize(run: Run) -> Summary:
    """The summary of `run`."""
    settings, batch = run.document.settings, run.document.bundle.batch
    totals = {name: _Totals() for name in run.budgets}
    turns: list[Span] = []
    for turn in run.turns:
        totals[turn.budget].add(turn)
        turns.append(Span.of_turn(turn, batch))
    baselines = [Span(IDLE, idle.t_ns, idle.t_ns, idle.end_ns, idle.session) for idle in run.baselines]
    meter = choose_meter(settings.sources, settings.runtime)
    facts = gather(run, [*turns, *baselines], meter)
    powers, idle_powers = facts.powers[: len(turns)], facts.powers[len(turns) :]
    idle = Idle()
    if meter is not None:
        idle = idle_power(meter, [(span.session, power) for span, power in zip(baselines, idle_powers)])
    on_gpu = runs_on_gpu(run)
    reasons = {
        name: judge_budget(name, run.checks.get(name), totals[name].statistics, facts, on_gpu=on_gpu) for name in run.budgets
    }
    budgets = {}
    for name in run.budgets:
        own = [SpanPower(span, power) for span, power in zip(turns, powers) if span.budget == name]
        energy = budget_energy(meter, own, idle)
        available = facts.stat(name, "memory_available_bytes")
        budgets[name] = msgspec.structs.replace(
            totals[name].summarize(run.checks.get(name), settings, batch),
            min_memory_available_mb=None if available is None else available.least / 1e6,
            power=PowerSummary(mean_w=energy.mean_w, above_idle_w=energy.above_idle_w),
            energy=_summarize_energy(energy),
            verdict=conclude(reasons[name]),
        )
    return Summary(
        verdict=conclude(judge_run(run, facts, reasons, meter)),
        meter=None if meter is None else _summarize_meter(meter, facts),
        idle=IdleSummary(power_w=idle.interval, drift_w=idle.drift_w),
        observer=_summarize_observer(facts),
        budgets=budgets,
    )


def write_summary(run: Run) -> Summary:
    """Writes the run's summary.json into its directory, atomically, and returns what it holds.

    Raises:
        UserError: a file of somebody's lies there.
    """
    summary = summarize(run)
    check_own(run.path / SUMMARY, KIND.begins, "a summary")
    KIND.write(run.path, summary)
    return summary


class _Totals:
    """The sums over one budget's turns."""

    def __init__(self) -> None:
        self._latency = Digest()
        self._stages: dict[str, Digest] = {}
        self._load_ms: list[float] = []
        self._round_median_ms: dict[str, float] = {}
        self._busy_ns = self._timed_ns = self._unsteady = 0
        self._missed: int | None = None

    def add(self, turn: Turn) -> None:
        """One more turn."""
        self._latency.add(turn.latency_ns)
        for stage, values in (turn.stages_ns or {}).items():
            self._stages.setdefault(stage, Digest()).add(values)
        self._load_ms.append(turn.load_ms)
        self._round_median_ms[str(turn.round)] = percentile(turn.latency_ms, 50)
        self._busy_ns += int(turn.latency_ns.sum())
        self._timed_ns += turn.end_ns - turn.t_ns
        self._unsteady += turn.warmup_steady is False
        if turn.missed is not None:
            self._missed = (self._missed or 0) + turn.missed

    @property
    def statistics(self) -> TurnStatistics:
        """What the verdict needs."""
        return TurnStatistics(len(self._load_ms), self._unsteady, list(self._round_median_ms.values()))

    def summarize(self, check: Check | None, settings: RunSettings, batch: int) -> BudgetSummary:
        """What needs no sensor."""
        latency, count = self._latency, len(self._load_ms)
        peak = check.peak_memory_bytes if check else None
        fixed_rate = None
        if settings.mode == "fixed_rate" and settings.fps is not None and count:
            fixed_rate = FixedRateSummary(
                fps=settings.fps,
                missed_deadlines=self._missed,
                duty_cycle_percent=100 * self._busy_ns / self._timed_ns,
            )
        return BudgetSummary(
            inferences=latency.count,
            rounds=count,
            latency_ms=LatencySummary(
                p50=_ms(latency.percentile(50)),
                p95=_ms(latency.percentile(95)),
                p99=_ms(latency.percentile(99)),
                mean=_ms(latency.mean),
                std=_ms(latency.deviation),
                min=_ms(latency.least),
                max=_ms(latency.greatest),
            ),
            throughput_images_per_s=batch * latency.count / (latency.total / 1e9) if count else None,
            peak_memory_mb=None if peak is None else peak / 1e6,
            load_ms=percentile(np.array(self._load_ms), 50) if count else None,
            golden_ok=check.golden_ok if check else None,
            round_median_ms=dict(self._round_median_ms),
            stages_ms={
                stage: StageSummary(p50=_ms(values.percentile(50)), p95=_ms(values.percentile(95)))
                for stage, values in self._stages.items()
            }
            or None,
            fixed_rate=fixed_rate,
        )


def _summarize_energy(energy: Energy) -> EnergySummary:
    return EnergySummary(
        gross_mj_per_image=energy.gross_mj,
        above_idle_mj_per_image=energy.above_idle_mj,
        status=energy.status,
        reason=energy.reason,
        window_s=energy.window_s,
        window_needed_s=energy.window_needed_s,
    )


def _summarize_meter(meter: Meter, facts: Facts) -> MeterSummary:
    missing = facts.missing_sources.get(meter.source)
    return MeterSummary(
        metric=meter.metric,
        source=meter.source,
        made_of=meter.made_of,
        interval_s=meter.interval_s,
        step_w=None if meter.counter else meter.step,
        coverage=None if missing is None else 1 - missing,
        guess=meter.guess,
    )


def _summarize_observer(facts: Facts) -> ObserverSummary | None:
    if facts.cpu_s is None or not facts.elapsed_s:
        return None
    memory = facts.sampler_memory_bytes
    return ObserverSummary(cpu_percent=100 * facts.cpu_s / facts.elapsed_s, memory_mb=None if memory is None else memory / 1e6)


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
