from __future__ import annotations

import json

import pytest

from edge_tprune.analysis.loading import find_profiles, load_rows
from edge_tprune.statistics import Interval


def test_a_row_per_budget_in_bundle_order(profile_dir):
    rows = load_rows(profile_dir)
    assert [row.budget for row in rows] == ["1.0", "0.9", "0.8", "0.65", "0.5"]
    assert len(rows) == 5
    assert rows.warnings == ()
    row = rows[3]
    assert (row.model, row.method, row.rounds, row.inferences) == ("deit_tiny_patch16_224", "zero_tprune", 6, 240)
    assert row.tokens_text == "197→112→64→37"
    assert row.value("final_tokens") == 37
    assert row.value("macs_g") == pytest.approx(0.819)
    assert row.value("macs_share_percent") == pytest.approx(65)
    assert row.value("peak_memory_mb") == pytest.approx(114)
    assert row.value("p50_ms") < row.value("p95_ms") <= row.value("p99_ms")
    assert row.profile.name == profile_dir.name


def test_speedup_is_against_the_unpruned_budget_paired_by_round(profile_dir):
    rows = load_rows(profile_dir)
    assert [row.unpruned for row in rows] == [True, False, False, False, False]
    assert rows[0].intervals["speedup"] == Interval(1.0, 1.0, 1.0)
    speedup = rows[3].intervals["speedup"]
    assert speedup.value == pytest.approx(10.0 / 7.0, rel=0.02)
    assert speedup.excludes(1)
    assert rows[3].value("speedup") == speedup.value


def test_without_an_unpruned_budget_there_is_no_speedup(profiles, tmp_path):
    info = profiles.info()
    info["budgets"] = info["budgets"][1:]
    rows = load_rows(profiles.write(tmp_path / "run", info))
    assert all(row.value("speedup") is None and "speedup" not in row.intervals for row in rows)


def test_accuracy_of_the_bundle(profile_dir):
    rows = load_rows(profile_dir)
    assert rows[3].intervals["top1_change_points"] == Interval(-0.8, -1.3, -0.3)
    assert rows[3].intervals["top1_drop_points"] == Interval(0.8, 0.3, 1.3)
    assert rows[0].value("top1_drop_points") == 0  # the reference itself
    assert rows[0].value("top1_percent") == 96.4
    assert rows[3].value("top5_change_points") is None


def test_missing_stays_missing(profiles, tmp_path):
    info = profiles.info()
    for budget in info["budgets"]:
        budget["accuracy"] = None
    known = profiles.info()["budgets"][1]["accuracy"]
    info["budgets"][1]["accuracy"] = known | dict.fromkeys(key for key in known if key.endswith(("percent", "points", "nats")))
    lines = profiles.lines(info)
    for line in lines:
        if line["kind"] == "check":
            line["peak_memory_bytes"] = None
    rows = load_rows(profiles.write(tmp_path / "run", info, lines))
    for row in rows:
        for name in (
            "top1_percent",
            "top1_change_points",
            "top1_drop_points",
            "agreement_percent",
            "kl_nats",
            "peak_memory_mb",
        ):
            assert row.value(name) is None, name
    assert {row.conditions["eval data"] for row in rows} == {"digits in clutter, test split, 1000 images"}


def test_a_budget_that_failed_its_check_is_unfit(profiles, tmp_path):
    info = profiles.info()
    lines = [line for line in profiles.lines(info) if not (line["kind"] == "round" and line["budget"] == "0.8")]
    next(line for line in lines if line.get("budget") == "0.8").update(golden_ok=False, golden_max_abs_diff=0.5)
    rows = load_rows(profiles.write(tmp_path / "run", info, lines))
    assert [row.unfit is not None for row in rows] == [False, False, True, False, False]
    assert rows[2].value("p50_ms") is None
    assert rows[2].value("speedup") is None
    assert any("0.8" in warning for warning in rows.warnings)


def test_one_round_gives_a_speedup_without_ends(profiles, tmp_path):
    rows = load_rows(profiles.write(tmp_path / "run", profiles.info(rounds=1)))
    assert rows[3].value("speedup") > 1
    assert rows[3].intervals["speedup"].low is None


def test_an_interrupted_run_is_used_and_said(profiles, tmp_path):
    info = profiles.info()
    lines = profiles.lines(info)
    path = profiles.write(tmp_path / "run", info, lines[: 1 + 5 + 7])  # start, checks, one round and two turns
    with (path / "samples.jsonl").open("a") as stream:
        stream.write('{"kind": "round", "t_ns": 5, "la')
    rows = load_rows(path)
    assert [row.rounds for row in rows] == [2, 2, 1, 1, 1]
    assert len(rows.warnings) == 2


def test_restless_warm_up_is_said(profiles, tmp_path):
    info = profiles.info()
    lines = profiles.lines(info)
    for line in lines:
        if line["kind"] == "round":
            line["warmup_steady"] = line["budget"] != "0.5"
    rows = load_rows(profiles.write(tmp_path / "run", info, lines))
    assert "6 of 30 turns" in rows.warnings[0]


def test_text_from_files_cannot_steer_a_terminal(profiles, tmp_path):
    info = profiles.info()
    info["environment"]["hostname"] = "\x1b[2Jboard\r\nx"
    rows = load_rows(profiles.write(tmp_path / "run", info))
    assert rows[0].conditions["host"] == "�[2Jboard��x"


def test_the_reader_does_not_need_the_summary(profile_dir):
    assert not (profile_dir / "summary.json").exists()
    assert json.loads((profile_dir / "run.json").read_text())["version"] == 1


def test_the_interval_of_a_percentile_is_around_the_value_that_is_shown(profile_dir):
    for row in load_rows(profile_dir):
        for metric in ("p50_ms", "p95_ms", "p99_ms", "mean_ms", "throughput_images_per_s"):
            interval = row.intervals[metric]
            assert interval.value == row.value(metric)
            assert interval.low is None or interval.low <= interval.value
            assert interval.high is None or interval.value <= interval.high


def test_profiles_behind_links_are_found_and_circles_end(profiles, tmp_path):
    profiles.write(tmp_path / "elsewhere" / "a", profiles.info())
    profiles.write(tmp_path / "mix" / "b", profiles.info())
    (tmp_path / "mix" / "linked").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "mix" / "circle").symlink_to(tmp_path / "mix")
    (tmp_path / "mix" / "again").symlink_to(tmp_path / "elsewhere")
    assert sorted(path.resolve().name for path in find_profiles(tmp_path / "mix")) == ["a", "b"]
