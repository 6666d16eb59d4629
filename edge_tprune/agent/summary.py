"""What a run comes to, per budget: derived from the raw samples, so any reader can derive it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.agent.record import Run
from edge_tprune.files import write_json

FORMAT = "edge-tprune-summary"
VERSION = 1
SUMMARY = "summary.json"


def percentile(values: np.ndarray, percent: float) -> float:
    """The nearest-rank percentile: the smallest of `values` (N,) that at least `percent` % of them do not exceed."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def summarize(run: Run) -> dict[str, Any]:
    """The summary.json of `run` (keys in profiles/README.md). What was not measured is None."""
    return {"format": FORMAT, "version": VERSION, "budgets": {name: _budget(run, name) for name in run.budgets}}


def round_medians(run: Run) -> dict[str, dict[int, float]]:
    """Per budget: round -> median latency in ms. Rounds are the unit of paired comparisons: pair budgets by round."""
    return {name: {turn.round: percentile(turn.latency_ms, 50) for turn in run.of(name)} for name in run.budgets}


def write_summary(run: Run) -> Path:
    """Writes the run's summary.json into its directory, atomically, and returns its path."""
    path = run.path / SUMMARY
    write_json(path, summarize(run))
    return path


def _budget(run: Run, name: str) -> dict[str, Any]:
    turns = run.of(name)
    check = run.checks.get(name)
    peak = check.peak_memory_bytes if check else None
    latency_ms = np.concatenate([turn.latency_ms for turn in turns]) if turns else None
    return {
        "inferences": 0 if latency_ms is None else len(latency_ms),
        "rounds": len(turns),
        "latency_ms": _latency(latency_ms),
        "throughput_images_per_s": (
            None if latency_ms is None else run.info["bundle"]["batch"] * len(latency_ms) / (float(latency_ms.sum()) / 1e3)
        ),
        "peak_memory_mb": None if peak is None else peak / 1e6,
        "load_ms": percentile(np.array([turn.load_ms for turn in turns]), 50) if turns else None,
        "golden_ok": check.golden_ok if check else None,
    }


def _latency(values: np.ndarray | None) -> dict[str, float | None]:
    if values is None:
        return dict.fromkeys(("p50", "p95", "p99", "mean", "std", "min", "max"))
    return {
        "p50": percentile(values, 50),
        "p95": percentile(values, 95),
        "p99": percentile(values, 99),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "min": float(values.min()),
        "max": float(values.max()),
    }
