from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edge_tprune.record.lines import CheckLine
from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.summarize import summarize, write_summary
from edge_tprune.record.summary import KIND, read_summary
from edge_tprune.record.writer import Recorder

from .tiny_run import add_turn, document


def test_a_summary_by_hand(tmp_path: Path) -> None:
    with Recorder.create(tmp_path, "run", document()) as recorder:
        found: dict[str, Any] = {"golden_ok": True, "golden_max_abs_diff": 0.0, "load_ms": 2.5, "peak_memory_bytes": 3_000_000}
        recorder.append(CheckLine(t_ns=1, budget="a", **found))
        add_turn(recorder, 0, "a", (1_000_000, 2_000_000, 9_000_000))
        add_turn(recorder, 1, "a", (4_000_000,))
    summary = json.loads(KIND.encode(summarize(read_run(recorder.path))))
    assert list(summary)[:2] == ["format", "version"]
    assert (summary["format"], summary["version"]) == ("edge-tprune-summary", 2)
    a = summary["budgets"]["a"]
    assert a["latency_ms"] == pytest.approx(
        {"p50": 2, "p95": 9, "p99": 9, "mean": 4, "std": math.sqrt(38 / 3), "min": 1, "max": 9}
    )
    assert (a["inferences"], a["rounds"], a["load_ms"], a["peak_memory_mb"], a["golden_ok"]) == (4, 2, 1.0, 3.0, True)
    assert a["throughput_images_per_s"] == pytest.approx(4 / 16e-3)
    b = summary["budgets"]["b"]
    assert (b.pop("inferences"), b.pop("rounds")) == (0, 0)
    assert set(b.pop("latency_ms").values()) == {None}
    assert (b.pop("round_median_ms"), set(b.pop("power").values())) == ({}, {None})
    assert b.pop("energy")["status"] == "no_sensor"
    assert b.pop("verdict")["reasons"][0]["code"] == "not_timed"
    assert set(b.values()) == {None}


def test_one_inference_has_no_deviation(tmp_path: Path) -> None:
    with Recorder.create(tmp_path, "run", document()) as recorder:
        add_turn(recorder, 0, "a", (1_000_000,))
    assert summarize(read_run(recorder.path)).budgets["a"].latency_ms.std is None


def test_the_file_is_what_any_reader_derives(finished: Run) -> None:
    written = read_summary(finished.path)
    assert written == summarize(finished)
    assert write_summary(finished) == written
    assert read_summary(finished.path) == written
