from __future__ import annotations

import json

import pytest

from edge_tprune.analysis.comparison import (
    describe_marks,
    describe_merged,
    list_doubts,
    list_unresolved,
    make_columns,
    merge_unpruned,
    metric_column,
    name_columns,
    speedup_text,
)
from edge_tprune.analysis.contrast import EqualityMargin
from edge_tprune.analysis.documents import comparison_document
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.metrics import METRICS, MISSING
from edge_tprune.analysis.recorded import RowVerdict
from edge_tprune.statistics import Interval


def test_speedups_are_a_number_equal_or_not_resolved(profiles):
    def text(*ends):
        return speedup_text(profiles.row(speedup=ends[0], intervals={"speedup": Interval(*ends)}))

    assert text(1.42, 1.40, 1.44) == "1.42 ±0.02"
    assert text(1.005, 0.99, 1.015) == "equal"
    assert text(1.01, 0.97, 1.05) == "not resolved"
    assert text(0.93, 0.92, 0.94) == "0.93 ±0.01"
    assert text(1.42, None, None) == "1.42 ±?"
    assert text(1.42, 1.1, 1.5) == "1.42 (1.10 to 1.50)"
    assert speedup_text(profiles.row()) == MISSING
    wide = profiles.row(speedup=1.01, intervals={"speedup": Interval(1.01, 0.98, 1.04)})
    assert speedup_text(wide, EqualityMargin(percent=5)) == "equal"
    assert speedup_text(profiles.row(speedup=1.0, intervals={"speedup": Interval(1.0, 1.0, 1.0)}, unpruned=True)) == "1.00"


def test_what_is_not_resolved_is_named_with_what_it_takes(profiles):
    row = profiles.row(speedup=1.01, intervals={"speedup": Interval(1.01, 0.97, 1.05)})
    (text,) = list_unresolved([row, profiles.row(speedup=1.4, intervals={"speedup": Interval(1.4, 1.39, 1.41)})])
    assert text.startswith("speed-up of zero_tprune 0.65 (0.97 to 1.05×): about ")
    assert text.endswith("rounds would tell; 5 were measured")


def test_without_labels_agreement_stands_for_accuracy(profiles, tmp_path):
    info = profiles.info()
    for budget in info["budgets"]:
        for key in ("top1_percent", "top1_change_points", "top5_percent"):
            budget["accuracy"][key] = None
    names = [column.name for column in make_columns(load_rows(profiles.write(tmp_path / "run", info)))]
    assert "agreement_percent" in names
    assert "kl_nats" in names
    assert "top1_percent" not in names


def test_the_document_is_complete(profile_dir):
    rows = load_rows(profile_dir)
    document = json.loads(json.dumps(comparison_document(rows), allow_nan=False))
    assert document["format"] == "edge-tprune-comparison"
    assert document["version"] == 1
    assert document["metrics"]["p50_ms"] == {
        "label": "p50 latency",
        "unit": "ms",
        "better": "lower",
        "aggregation": "nearest-rank percentile of all inferences",
    }
    (group,) = document["groups"]
    assert group["conditions"]["host"] == "bench-1"
    row = group["rows"][3]
    assert row["budget"] == "0.65"
    assert row["schedule"][-1] == 37
    assert row["metrics"]["top5_change_points"] is None
    assert row["metrics"]["p95_ms"] == rows[3].value("p95_ms")
    assert set(row["intervals"]["speedup"]) == {"value", "low", "high", "confidence"}
    assert document["profiles"][0]["environment"]["cpu_model"] == "Example CPU @ 2.00GHz"
    assert document["differences"] == {}


def _row(profiles, name, ms, reach=0.2, **more):
    return profiles.row(name, profile=name, p50_ms=ms, intervals={"p50_ms": Interval(ms, ms - reach, ms + reach)}, **more)


def _best(rows, name="p50_ms"):
    return next(column for column in make_columns(rows) if column.name == name).best(rows)


def test_the_best_is_marked_with_what_cannot_be_told_from_it(profiles):
    rows = [_row(profiles, "a", 5.0), _row(profiles, "b", 5.1), _row(profiles, "c", 7.0)]
    assert _best(rows) == [True, True, False]
    assert _best(rows[:2]) == [False, False]  # a mark on everything says nothing
    assert _best([_row(profiles, "a", 5.0, 0.01), _row(profiles, "b", 5.1, 0.01), _row(profiles, "c", 7.0, 0.01)]) == [
        True, False, False,
    ]  # fmt: skip


def test_a_mark_is_on_the_row_not_on_its_text(profiles):
    """Two rows of "equal", of which one is the fastest: the text alone would mark both."""

    def row(name, value, ms, unpruned=False):
        intervals = {"speedup": Interval(value, value - 0.001, value + 0.001), "p50_ms": Interval(ms, ms, ms)}
        return profiles.row(name, profile=name, speedup=value, p50_ms=ms, intervals=intervals, unpruned=unpruned)

    rows = [row("1.0", 1.0, 10.0, True), row("0.9", 1.004, 9.96), row("0.8", 1.012, 9.88)]
    assert _best(rows, "speedup") == [False, False, True]


def test_what_must_not_be_used_is_never_best(profiles):
    rows = [_row(profiles, "a", 5.0, unfit="broken"), _row(profiles, "b", 6.0), _row(profiles, "c", 7.0)]
    assert _best(rows) == [False, True, False]


def test_unpruned_rows_of_two_methods_are_one(profiles):
    def row(method, budget, ms, started, unpruned=False):
        intervals = {"p50_ms": Interval(ms, ms - 0.1, ms + 0.1)}
        return profiles.row(
            budget, method=method, profile=f"run-{method}", p50_ms=ms, unpruned=unpruned, intervals=intervals,
            started_utc=f"2025-11-{started}T00:00:00+00:00",
        )  # fmt: skip

    rows = [
        row("evit", "1.0", 10.0, 21, True),
        row("evit", "0.5", 6.0, 21),
        row("tome", "1.0", 10.05, 22, True),
        row("tome", "0.5", 7.0, 22),
    ]
    table = merge_unpruned(rows)
    assert [(each.method, each.budget) for each in table.rows] == [("evit", "0.5"), ("tome", "1.0"), ("tome", "0.5")]
    assert merge_unpruned(rows, rows[0]).rows[0] is rows[0]
    method = name_columns(table)[0]
    assert [method.text(each) for each in table.rows] == ["evit", "unpruned", "tome"]
    text = describe_merged(table)
    assert text == "The unpruned model was measured in 2 runs; shown is that of run-tome. p50 latency: 10.05 ms, 10.00 ms."
    apart = [*rows[:2], row("tome", "1.0", 12.0, 22, True), rows[3]]
    assert "compare speed-ups, not latencies" in describe_merged(merge_unpruned(apart))
    again = [rows[0], row("evit", "1.0", 10.0, 23, True)]
    assert len(merge_unpruned(again).rows) == 2, "two runs of one method stay two"
    assert describe_merged(merge_unpruned(rows[:2])) == ""


def test_methods_and_repeated_runs_are_told_apart(profiles, tmp_path):
    profiles.write(tmp_path / "a")
    profiles.write(tmp_path / "b", profiles.info("evit"))
    assert [column.name for column in make_columns(load_rows(tmp_path))][:2] == ["method", "budget"]


def test_a_doubt_about_all_is_said_once(profiles):
    doubt = RowVerdict("suspect", ("swap in use changed",))
    rows = [profiles.row("a", verdict=doubt), profiles.row("b", verdict=doubt)]
    assert list_doubts(rows) == ["Suspect: swap in use changed."]
    assert list_doubts([rows[0], profiles.row("b")]) == ["Suspect (zero_tprune a): swap in use changed."]


def test_the_marks_are_explained():
    assert "within 2 %" in describe_marks()
    assert "within 5 %" in describe_marks(EqualityMargin(percent=5))


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_every_metric_has_a_text_for_a_missing_value(profiles, metric):
    assert metric_column(metric).text(profiles.row()) == MISSING


def test_profiles_whose_directories_are_called_alike_are_told_apart(profiles, tmp_path):
    for board in ("a/orin", "b/orin", "b/xavier"):
        profiles.write(tmp_path / board / "deit")
    profiles.write(tmp_path / "other")
    rows = load_rows([tmp_path / "a/orin/deit", tmp_path / "b/orin/deit", tmp_path / "b/xavier/deit", tmp_path / "other"])
    names = ["a/orin/deit", "b/orin/deit", "xavier/deit", "other"]
    assert list(dict.fromkeys(row.profile.name for row in rows)) == names
    document = comparison_document(rows)
    assert [profile["name"] for profile in document["profiles"]] == names
    assert {row["profile"] for group in document["groups"] for row in group["rows"]} == set(names)
