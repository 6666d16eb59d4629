"""What a run comes to, per budget: derived from the raw samples, so any reader can derive it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.agent.digest import Digest
from edge_tprune.agent.record import Check, Round, Run
from edge_tprune.files import write_json

FORMAT = "edge-tprune-summary"
VERSION = 2
SUMMARY = "summary.json"


def percentile(values: np.ndarray, percent: float) -> float:
    """The nearest-rank percentile: the smallest of `values` (N,) that at least `percent` % of them do not exceed."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def summarize(run: Run) -> dict[str, Any]:
    """The summary.json of `run` (keys in profiles/README.md). What was not measured is None.

    Goes once over the rounds and keeps none, so a run of any length fits.
    """
    totals = {name: _Totals() for name in run.budgets}
    for turn in run.rounds:
        totals[turn.budget].add(turn)
    return {
        "format": FORMAT,
        "version": VERSION,
        "verdict": None,
        "sensor": None,
        "idle": {"power_w": None, "drift_w": None},
        "observer": None,
        "budgets": {name: _budget(run, totals[name], run.checks.get(name)) for name in run.budgets},
    }


def round_medians(run: Run) -> dict[str, dict[int, float]]:
    """Per budget: round -> median latency in ms. Rounds are the unit of paired comparisons: pair budgets by round."""
    medians: dict[str, dict[int, float]] = {name: {} for name in run.budgets}
    for turn in run.rounds:
        medians[turn.budget][turn.round] = percentile(turn.latency_ms, 50)
    return medians


def write_summary(run: Run) -> Path:
    """Writes the run's summary.json into its directory, atomically, and returns its path."""
    path = run.path / SUMMARY
    write_json(path, summarize(run))
    return path


class _Totals:
    """What one budget's turns come to."""

    def __init__(self) -> None:
        self.turns = 0
        self.latency = Digest()
        self.stages: dict[str, Digest] = {}
        self.load_ms: list[float] = []
        self.round_median_ms: dict[str, float] = {}
        self.busy_ns = self.timed_ns = 0
        self.missed: int | None = None

    def add(self, turn: Round) -> None:
        self.turns += 1
        self.latency.add(turn.latency_ns)
        for stage, values in (turn.stages_ns or {}).items():
            self.stages.setdefault(stage, Digest()).add(values)
        self.load_ms.append(turn.load_ms)
        self.round_median_ms[str(turn.round)] = percentile(turn.latency_ms, 50)
        self.busy_ns += int(turn.latency_ns.sum())
        self.timed_ns += turn.end_ns - turn.t_ns
        if turn.missed is not None:
            self.missed = (self.missed or 0) + turn.missed


def _budget(run: Run, totals: _Totals, check: Check | None) -> dict[str, Any]:
    plan = run.info["plan"]
    peak = check.peak_memory_bytes if check else None
    fixed_rate = None
    if plan.get("mode") == "fixed_rate" and totals.turns:
        fixed_rate = {
            "fps": plan["fps"],
            "missed_deadlines": totals.missed,
            "duty_cycle_percent": 100 * totals.busy_ns / totals.timed_ns,
        }
    return {
        "inferences": totals.latency.count,
        "rounds": totals.turns,
        "latency_ms": _latency(totals.latency),
        "throughput_images_per_s": (
            run.info["bundle"]["batch"] * totals.latency.count / (totals.latency.total / 1e9) if totals.turns else None
        ),
        "peak_memory_mb": None if peak is None else peak / 1e6,
        "load_ms": percentile(np.array(totals.load_ms), 50) if totals.turns else None,
        "golden_ok": check.golden_ok if check else None,
        "round_median_ms": totals.round_median_ms,
        "stages_ms": _stages(totals.stages),
        "fixed_rate": fixed_rate,
        "min_memory_available_mb": None,
        "power": {"mean_w": None, "above_idle_w": None},
        "energy": {
            "gross_mj_per_image": None,
            "above_idle_mj_per_image": None,
            "status": "no_sensor",
            "reason": None,
            "window_s": None,
            "window_needed_s": None,
        },
        "verdict": None,
    }


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
