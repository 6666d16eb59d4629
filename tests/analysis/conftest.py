"""Profile directories as the agent writes them, and rows made by hand. Session-wide, so that property tests can use them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_tprune.analysis.recorded import RowVerdict
from edge_tprune.analysis.table import Profile, Row
from edge_tprune.record.document import RunDocument
from edge_tprune.statistics import Interval

TOKENS = 197
#: budget -> tokens after blocks, latency ms, top-1 change (value, low, high), top-1 %, memory MB
BUDGETS: dict[str, tuple[list[int], float, tuple[float, float, float] | None, float, float]] = {
    "1.0": ([197] * 12, 10.0, None, 96.4, 118),
    "0.9": ([197] * 3 + [176] * 3 + [154] * 3 + [133] * 3, 9.2, (0.1, -0.1, 0.3), 96.5, 117),
    "0.8": ([197] * 3 + [152] * 3 + [117] * 3 + [90] * 3, 8.3, (-0.2, -0.5, 0.1), 96.2, 116),
    "0.65": ([197] * 3 + [112] * 3 + [64] * 3 + [37] * 3, 7.0, (-0.8, -1.3, -0.3), 95.6, 114),
    "0.5": ([197] * 3 + [70] * 3 + [25] * 3 + [9] * 3, 5.6, (-6.0, -7.2, -4.8), 90.4, 112),
}


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "confidence": 0.95}


def run_info(method: str = "zero_tprune", rounds: int = 6, batch: int = 1) -> dict[str, Any]:
    """A run.json. Change what a test needs changed before it is written."""
    budgets = []
    for name, (schedule, _, change, top1, _) in BUDGETS.items():
        budgets.append(
            {
                "name": name,
                "requested": float(name),
                "own_pattern": name != "1.0",
                "schedule": schedule,
                "macs": int(1.26e9 * float(name)),
                "macs_share": float(name),
                "accuracy": {
                    "top1_percent": top1,
                    "top5_percent": 99.0,
                    "top1_change_points": interval(*change) if change else None,
                    "top5_change_points": None,
                    "agreement_percent": interval(98.0, 97.0, 99.0),
                    "kl_nats": interval(0.02, 0.01, 0.03),
                    "images": 1000,
                    "runtime": "onnxruntime",
                    "precision": "fp32",
                    "evaluated_utc": "2025-11-21T09:00:00+00:00",
                    "data": {"name": "digits in clutter, test split", "images": 1000, "labelled": True, "sha256": "d" * 64},
                },
                "artifact": {
                    "runtime": "onnxruntime", "precision": "fp32", "form": "attention-op",
                    "file": f"onnx/{name}.onnx", "sha256": "a" * 64, "bytes": 1000,
                },
            }
        )  # fmt: skip
    return {
        "format": "edge-tprune-profile",
        "version": 1,
        "run_id": "0123456789abcdef",
        "started_utc": "2025-11-21T09:30:00+00:00",
        "tool_version": "0.1.0",
        "bundle": {
            "name": f"deit_tiny-{method}",
            "fingerprint": "f" * 64,
            "batch": batch,
            "model": {
                "name": "deit_tiny_patch16_224",
                "weights": "w.safetensors",
                "weights_sha256": "b" * 64,
                "classes": 10,
                "parameters": 5_000_000,
                "tokens": TOKENS,
                "prefix_tokens": 1,
                "blocks": 12,
                "macs": 1_260_000_000,
                "input": {"name": "image", "shape": [batch, 3, 224, 224], "dtype": "float32"},
                "output": {"name": "logits", "shape": [batch, 10], "dtype": "float32"},
            },
            "method": {"name": method, "options": {}, "blocks": [4, 7, 10]},
        },
        "budgets": budgets,
        "plan": {
            "seed": 0,
            "rounds": rounds,
            "seconds_per_round": 0.2,
            "warmup_seconds": 0.1,
            "threads": 2,
            "runtime": "onnxruntime",
            "isolation": "one engine at a time",
            "order": [list(BUDGETS)] * rounds,
        },
        "environment": {
            "hostname": "bench-1",
            "machine": "x86_64",
            "os": "Debian GNU/Linux 12",
            "kernel": "6.1.0",
            "python": "3.11.4",
            "cpu_model": "Example CPU @ 2.00GHz",
            "cpu_count": 2,
            "memory_total_bytes": 8_000_000_000,
            "cpu_governor": "performance",
            "board_model": None,
            "l4t_release": None,
            "versions": {"onnxruntime": "1.23.0", "numpy": "2.0.0"},
        },
    }


def sample_lines(
    info: dict[str, Any], latencies: dict[str, float] | None = None, inferences: int = 40, noise: float = 0.01, seed: int = 0
) -> list[dict[str, Any]]:
    """The samples.jsonl of `info`: rounds drift together, budgets keep their ratio."""
    rng = np.random.default_rng(seed)
    latencies = latencies or {name: budget[1] for name, budget in BUDGETS.items()}
    names = [budget["name"] for budget in info["budgets"]]
    lines: list[dict[str, Any]] = [{"kind": "start", "t_ns": 0, "utc": info["started_utc"]}]
    for name in names:
        peak = int(BUDGETS[name][4] * 1e6) if name in BUDGETS else None
        lines.append(
            {
                "kind": "check", "t_ns": 1, "budget": name, "golden_max_abs_diff": 1e-6, "golden_ok": True,
                "load_ms": 50.0, "peak_memory_bytes": peak, "error": None,
            }
        )  # fmt: skip
    for index in range(info["plan"]["rounds"]):
        drift = float(np.exp(rng.normal(0, 0.02)))
        for position, name in enumerate(names):
            own = float(np.exp(rng.normal(0, noise)))
            ms = latencies.get(name, 10.0) * drift * own * (1 + rng.exponential(0.03, inferences))
            latency_ns = (ms * 1e6).astype(int)
            start_ns = np.concatenate([[0], np.cumsum(latency_ns)[:-1]])
            lines.append(
                {
                    "kind": "round", "t_ns": 10 + index, "round": index, "position": position, "budget": name, "load_ms": 50.0,
                    "warmup_inferences": 5, "start_ns": start_ns.tolist(), "latency_ns": latency_ns.tolist(),
                }
            )  # fmt: skip
    lines.append({"kind": "end", "t_ns": 99, "reason": "complete"})
    return lines


#: budget -> mean power W, energy per image mJ, each +- 1 %
POWER = {"1.0": (9.8, 98.0), "0.9": (9.6, 88.0), "0.8": (9.3, 77.0), "0.65": (8.9, 62.0), "0.5": (8.4, 47.0)}


def summary_document(info: dict[str, Any], scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A summary.json of version 2 with what only the agent derives. Change what a test needs changed before it is written.

    Args:
        info: the run.json it belongs to.
        scale: of power and energy.
        changes: keys of the document itself.
    """

    def around(value: float) -> dict[str, float]:
        return interval(scale * value, scale * value * 0.99, scale * value * 1.01)

    budgets = {}
    for name in [budget["name"] for budget in info["budgets"]]:
        watts, millijoules = POWER.get(name, (9.0, 90.0))
        budgets[name] = {
            "inferences": 240,
            "rounds": info["plan"]["rounds"],
            "load_ms": 50.0,
            "stages_ms": {
                "h2d": {"p50": 0.2, "p95": 0.3},
                "compute": {"p50": 6.0, "p95": 6.5},
                "d2h": {"p50": 0.1, "p95": 0.1},
            },
            "fixed_rate": None,
            "min_memory_available_mb": 2100.0,
            "power": {"mean_w": around(watts), "above_idle_w": around(watts - 4)},
            "energy": {
                "gross_mj_per_image": around(millijoules),
                "above_idle_mj_per_image": around(millijoules / 2),
                "status": "resolved",
                "reason": None,
            },
            "verdict": {"status": "valid", "reasons": []},
        }
    return {
        "format": "edge-tprune-summary",
        "version": 2,
        "verdict": {"status": "valid", "reasons": []},
        "sensor": {"metric": "total_power_mw", "source": "rails", "made_of": "VDD_IN", "interval_s": 0.1},
        "idle": {"power_w": around(4.0), "drift_w": 0.1},
        "observer": {"cpu_percent": 1.0},
        "budgets": budgets,
        **changes,
    }


def write_profile(
    path: Path,
    info: dict[str, Any] | None = None,
    lines: list[dict[str, Any]] | None = None,
    summary: dict[str, Any] | None = None,
    **samples: Any,
) -> Path:
    """A profile directory as the agent leaves it; without summary.json unless one is given."""
    info = run_info() if info is None else info
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(info))
    lines = sample_lines(info, **samples) if lines is None else lines
    (path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


class Profiles:
    """The helpers above, for tests: `profiles.info()`, `profiles.write(path, info)`, `profiles.row(...)`."""

    info = staticmethod(run_info)
    lines = staticmethod(sample_lines)
    summary = staticmethod(summary_document)
    write = staticmethod(write_profile)
    copy = staticmethod(copy.deepcopy)

    @staticmethod
    def row(
        budget: str = "0.65",
        *,
        method: str = "zero_tprune",
        conditions: dict[str, str] | None = None,
        unpruned: bool = False,
        unfit: str | None = None,
        failed_check: bool = False,
        intervals: dict[str, Interval] | None = None,
        by_round: dict[str, dict[int, float]] | None = None,
        profile: str = "run",
        verdict: RowVerdict | None = None,
        why_missing: dict[str, str] | None = None,
        per_image: dict[str, np.ndarray] | None = None,
        started_utc: str | None = None,
        **values: float | None,
    ) -> Row:
        """A row made by hand: metrics as keywords."""
        if "top1_drop_points" in values and "top1_change_points" not in values:
            drop = values["top1_drop_points"]
            values["top1_change_points"] = None if drop is None else -drop
        info = run_info()
        info["started_utc"] = started_utc or info["started_utc"]
        return Row(
            profile=Profile(Path(profile), msgspec.convert(info, RunDocument), (), ()),
            model="deit_tiny_patch16_224",
            method=method,
            budget=budget,
            schedule=(197, 112, 64),
            tokens=TOKENS,
            unpruned=unpruned,
            values=values,
            intervals=intervals or {},
            by_round=by_round or {},
            latency_quantiles_ms=(),
            inferences=100,
            rounds=5,
            conditions=conditions or {"host": "a"},
            unfit=unfit,
            failed_check=failed_check,
            verdict=verdict,
            why_missing=why_missing or {},
            per_image=per_image or {},
        )


@pytest.fixture(scope="session")
def profiles() -> Profiles:
    return Profiles()


@pytest.fixture(scope="session")
def profile_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good profile. Read only."""
    return write_profile(tmp_path_factory.mktemp("profiles") / "20251121T093000Z-deit_tiny-zero_tprune-bench-1")
