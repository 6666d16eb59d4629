from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.summary import percentile, round_medians, summarize, write_summary
from edge_tprune.record.writer import Recorder

from .tiny_run import add_round, info


def nearest_rank(values: list[float], percent: int) -> float:
    """The textbook's definition, in exact arithmetic."""
    rank = math.ceil(Fraction(percent, 100) * len(values))
    return sorted(values)[max(rank, 1) - 1]


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300), st.sampled_from([50, 95, 99]))
def test_percentiles_are_nearest_rank(values: list[int], percent: int) -> None:
    assert percentile(np.array(values) / 1e6, percent) == nearest_rank([value / 1e6 for value in values], percent)


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_percentiles_of_every_count(percent: int) -> None:
    for count in range(1, 2001):
        assert percentile(np.arange(1.0, count + 1), percent) == nearest_rank(list(range(1, count + 1)), percent)


def test_a_summary_by_hand(tmp_path: Path) -> None:
    with Recorder.create(tmp_path, "run", info()) as recorder:
        found: dict[str, Any] = {"golden_ok": True, "golden_max_abs_diff": 0.0, "load_ms": 2.5, "peak_memory_bytes": 3_000_000}
        recorder.append("check", budget="a", **found)
        add_round(recorder, 0, "a", (1_000_000, 2_000_000, 9_000_000))
        add_round(recorder, 1, "a", (4_000_000,))
    summary = summarize(read_run(recorder.path))
    assert summary["format"] == "edge-tprune-summary"
    assert summary["version"] == 2
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
    with Recorder.create(tmp_path, "run", info()) as recorder:
        add_round(recorder, 0, "a", (1_000_000,))
    assert summarize(read_run(recorder.path))["budgets"]["a"]["latency_ms"]["std"] is None


def test_the_file_is_what_any_reader_derives(finished: Run) -> None:
    written = json.loads((finished.path / "summary.json").read_text())
    assert written == summarize(finished)
    assert write_summary(finished) == written
    assert json.loads((finished.path / "summary.json").read_text()) == written


def test_round_medians_pair_budgets_by_round(finished: Run) -> None:
    medians = round_medians(finished)
    assert list(medians) == finished.budgets
    assert all(list(by_round) == [0, 1, 2, 3, 4] for by_round in medians.values())
    for turn in finished.rounds:
        assert medians[turn.budget][turn.round] == nearest_rank(list(turn.latency_ns / 1e6), 50)
