from __future__ import annotations

import json

import numpy as np
import pytest

from edge_tprune.analysis.changes import find_changes
from edge_tprune.analysis.contrast import EqualityMargin
from edge_tprune.analysis.documents import changes_document
from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.recorded import RowVerdict
from edge_tprune.analysis.wording import abbreviate_change, describe_change, list_regressions, list_undecided
from edge_tprune.errors import UserError
from edge_tprune.statistics import Interval

_NO_METRICS = ("per_image", "unfit", "failed_check", "verdict", "top1_percent")


def _around(value, percent=1.0):
    return Interval(value, value * (1 - percent / 100), value * (1 + percent / 100))


def _row(profiles, budget="0.65", started="2025-11-21T00:00:00+00:00", **values):
    conditions = values.pop("conditions", {"host": "a", "eval data hash": "d", "power sensor": "VDD_IN"})
    intervals = {name: _around(value) for name, value in values.items() if name not in _NO_METRICS}
    return profiles.row(budget, profile=started, started_utc=started, conditions=conditions, intervals=intervals, **values)


def _verdicts(changes):
    return {change.metric.name: change.verdict for budget in changes.budgets for change in budget.changes}


def test_what_is_beyond_the_noise_and_the_margin_counts(profiles):
    old = _row(profiles, p50_ms=10.0, p95_ms=12.0, mean_power_w=8.0, energy_mj_per_image=80.0)
    new = _row(profiles, p50_ms=11.0, p95_ms=12.1, mean_power_w=8.2, energy_mj_per_image=70.0)
    changes = find_changes([old], [new])
    assert _verdicts(changes) == {
        "p50_ms": "worse", "p95_ms": "equal", "mean_power_w": "not resolved", "energy_mj_per_image": "better",
    }  # fmt: skip
    (regression,) = list_regressions(changes)
    assert regression.startswith("zero_tprune 0.65: p50 latency 11.00 ms instead of 10.00 ms (+10.0 %, 95 % interval +8.")
    assert [change.metric.name for _, change in changes.undecided] == ["mean_power_w"]
    assert all("rounds would tell; 5 were measured" in text for text in list_undecided(changes))
    assert _verdicts(find_changes([old], [new], EqualityMargin(15)))["p50_ms"] == "equal"


def test_a_change_within_a_wide_interval_is_not_resolved_however_large(profiles):
    noisy = {"intervals": {"p50_ms": _around(10, 30)}}
    changes = find_changes([profiles.row(p50_ms=10.0, **noisy)], [profiles.row(p50_ms=12.0, **noisy)])
    assert _verdicts(changes) == {"p50_ms": "not resolved"}
    assert list_regressions(changes) == []
    assert len(changes.undecided) == 1


def test_equal_is_an_interval_inside_the_margin(profiles):
    precise = {"intervals": {"p50_ms": _around(10, 0.5)}}
    changes = find_changes([profiles.row(p50_ms=10.0, **precise)], [profiles.row(p50_ms=10.05, **precise)])
    assert _verdicts(changes) == {"p50_ms": "equal"}
    assert changes.undecided == []


def test_what_is_perhaps_better_and_surely_no_worse_passes_a_gate(profiles):
    old, new = _row(profiles, p50_ms=10.0), _row(profiles, p50_ms=9.8)
    changes = find_changes([old], [new])
    ((_, change),) = changes.select("not resolved")
    assert change.no_worse
    assert changes.undecided == []


def test_one_round_cannot_tell(profiles):
    once = {"intervals": {"p50_ms": Interval(10, None, None)}}
    for now in (10.0, 15.0):
        changes = find_changes([profiles.row(p50_ms=10.0, **once)], [profiles.row(p50_ms=now, **once)])
        assert _verdicts(changes) == {"p50_ms": "not resolved"}
        assert len(changes.undecided) == 1


def test_memory_is_measured_once_so_the_margin_alone_decides(profiles):
    changes = find_changes([profiles.row(peak_memory_mb=100.0)], [profiles.row(peak_memory_mb=102.0)])
    assert _verdicts(changes) == {"peak_memory_mb": "equal"}
    changes = find_changes([profiles.row(peak_memory_mb=100.0)], [profiles.row(peak_memory_mb=120.0)])
    assert _verdicts(changes) == {"peak_memory_mb": "worse"}


def test_accuracy_is_paired_by_image(profiles):
    rng = np.random.default_rng(0)
    right = rng.random(1000) < 0.75
    worse, jittered = right.copy(), right.copy()
    worse[np.flatnonzero(right)[:20]] = False  # twenty images lost and none won: far beyond chance
    for flips in (np.flatnonzero(right)[:20], np.flatnonzero(~right)[:20]):  # as many won as lost
        jittered[flips] = ~jittered[flips]

    def row(bits):
        return _row(profiles, top1_percent=100 * float(bits.mean()), per_image={"top1_percent": bits})

    assert _verdicts(find_changes([row(right)], [row(worse)])) == {"top1_percent": "worse"}
    assert _verdicts(find_changes([row(worse)], [row(right)])) == {"top1_percent": "better"}
    assert _verdicts(find_changes([row(right)], [row(jittered)])) == {"top1_percent": "not resolved"}
    assert _verdicts(find_changes([row(right)], [row(jittered)], EqualityMargin(points=2))) == {"top1_percent": "equal"}
    assert _verdicts(find_changes([row(right)], [row(right.copy())])) == {"top1_percent": "equal"}
    assert set(_verdicts(find_changes([row(right)], [row(right[:500])]))) == {"top1_percent"}, "a part of them, under one hash"


def test_accuracy_on_other_images_and_power_from_another_sensor_are_not_compared(profiles):
    old = _row(profiles, p50_ms=10.0, top1_percent=80.0, mean_power_w=8.0)
    new = _row(
        profiles, p50_ms=10.0, top1_percent=70.0, mean_power_w=16.0,
        conditions={"host": "a", "eval data hash": "e", "power sensor": "VDD_GPU"},
    )  # fmt: skip
    changes = find_changes([old], [new])
    assert set(_verdicts(changes)) == {"p50_ms"}
    assert any("other images" in remark for remark in changes.remarks)
    assert any("other sensors (VDD_IN, VDD_GPU)" in remark for remark in changes.remarks)


def test_another_machine_is_not_another_time(profiles):
    old, new = _row(profiles, p50_ms=10.0), _row(profiles, p50_ms=20.0, conditions={"host": "b"})
    with pytest.raises(UserError, match=r"not two points in time.*host \(a, b\).*--force"):
        find_changes([old], [new])
    forced = find_changes([old], [new], force=True)
    assert "forced: they differ in host" in forced.remarks
    assert _verdicts(forced) == {"p50_ms": "worse"}


def test_new_software_is_what_is_judged_and_named(profiles):
    old = _row(profiles, p50_ms=10.0, conditions={"host": "a", "runtime": "onnxruntime 1.23"})
    new = _row(profiles, p50_ms=10.0, conditions={"host": "a", "runtime": "onnxruntime 1.24"})
    changes = find_changes([old], [new])
    assert list_regressions(changes) == []
    assert changes.differences == {"runtime": ("onnxruntime 1.23", "onnxruntime 1.24")}


def test_an_invalid_or_missing_new_measurement_is_no_pass(profiles):
    old = [_row(profiles, "0.65", p50_ms=10.0), _row(profiles, "0.5", p50_ms=8.0)]
    invalid = RowVerdict("invalid", ("throttled",))
    new = [_row(profiles, "0.65", p50_ms=10.0, unfit="its run is invalid: throttled", verdict=invalid)]
    changes = find_changes(old, new)
    assert list_regressions(changes) == []
    assert list_undecided(changes) == [
        "zero_tprune 0.65 cannot be judged: now: its run is invalid: throttled",
        "zero_tprune 0.5 was not measured again",
    ]
    assert changes_document(changes)["regression"] is None
    assert find_changes(new, new[:1]).budgets[0].changes == ()


def test_wrong_outputs_are_a_regression(profiles):
    wrong = _row(profiles, p50_ms=9.0, unfit="its outputs failed the check", failed_check=True)
    changes = find_changes([_row(profiles, p50_ms=10.0)], [wrong])
    assert list_regressions(changes) == ["zero_tprune 0.65: now: its outputs failed the check"]


@pytest.mark.parametrize(
    ("error", "regressions", "undecided"),
    [
        (None, ["zero_tprune 0.65: now: its outputs failed the check on that machine"], []),
        ("no threads", [], ["zero_tprune 0.65 cannot be judged: now: it could not be run there: no threads"]),
    ],
)
def test_wrong_outputs_count_although_their_run_is_invalid_and_no_outputs_are_no_wrong_ones(
    profiles, tmp_path, error, regressions, undecided
):
    info = profiles.info()
    old = load_rows(profiles.write(tmp_path / "old", info, summary=profiles.summary(info)))
    lines = [line for line in profiles.lines(info) if (line["kind"], line.get("budget")) != ("round", "0.65")]
    next(line for line in lines if (line["kind"], line.get("budget")) == ("check", "0.65")).update(golden_ok=False, error=error)
    summary = profiles.summary(info)
    summary["budgets"]["0.65"]["verdict"] = {"status": "invalid", "reasons": [{"code": "x", "text": "0.65 was not timed"}]}
    changes = find_changes(list(old), list(load_rows(profiles.write(tmp_path / "new", info, lines, summary))))
    assert [budget.new.budget for budget in changes.budgets if budget.broken] == (["0.65"] if regressions else [])
    assert list_regressions(changes) == regressions
    assert [text for text in list_undecided(changes) if text.startswith("zero_tprune 0.65")] == undecided


def test_precisions_are_compared_each_with_its_own_and_one_alone_with_one_alone(profiles):
    def row(precision, p50_ms):
        return _row(profiles, p50_ms=p50_ms, conditions={"host": "a", "precision": precision})

    changes = find_changes([row("fp32", 10.0), row("int8", 5.0)], [row("int8", 7.0), row("fp32", 10.0)])
    assert [(budget.old.precision, budget.new.precision) for budget in changes.budgets] == [("int8", "int8"), ("fp32", "fp32")]
    (regression,) = list_regressions(changes)
    assert regression.startswith("zero_tprune 0.65@int8: p50 latency 7.00 ms instead of 5.00 ms")
    (alone,) = find_changes([row("fp32", 10.0)], [row("int8", 7.0)]).budgets
    assert (alone.old.precision, alone.new.precision) == ("fp32", "int8")


def test_of_several_runs_the_newest_counts(profiles):
    runs = [_row(profiles, started=f"2025-11-{day}T00:00:00+00:00", p50_ms=float(day)) for day in (21, 23, 22)]
    (budget,) = find_changes(runs, runs).budgets
    assert budget.old.value("p50_ms") == budget.new.value("p50_ms") == 23


def test_nothing_in_common(profiles):
    with pytest.raises(UserError, match="no budget of the same model and method in common"):
        find_changes([_row(profiles, "0.5", p50_ms=1.0)], [_row(profiles, "0.65", p50_ms=1.0)])


def test_equal_runs_are_hardly_ever_called_changed(profiles, tmp_path):
    """The noise of rounds that drift by 5 %, all budgets and metrics judged together: at most 5 in 100, here of 40 pairs."""
    found = []
    for seed in range(20):
        path = profiles.write(tmp_path / str(seed), seed=seed)
        found.append(list(load_rows(path)))
    alarms = sum(
        bool(find_changes(one, other, EqualityMargin(0, 0)).select("worse"))
        for one, other in zip(found, [*found[1:], found[0]])
    )
    alarms += sum(
        bool(find_changes(one, other, EqualityMargin(0, 0)).select("worse"))
        for one, other in zip(found, [*found[7:], *found[:7]])
    )
    assert alarms <= 4


def test_a_slower_budget_of_a_real_profile_is_found(profiles, tmp_path):
    old = load_rows(profiles.write(tmp_path / "old"))
    slower = {"1.0": 10.0, "0.9": 9.2, "0.8": 8.3, "0.65": 9.1, "0.5": 5.6}
    new = load_rows(profiles.write(tmp_path / "new", latencies=slower, seed=3))
    changes = find_changes(list(old), list(new))
    assert {(budget.new.budget, change.metric.name) for budget, change in changes.select("worse")} >= {
        ("0.65", "p50_ms"),
        ("0.65", "speedup"),
    }
    assert {budget.new.budget for budget, _ in changes.select("worse")} == {"0.65"}


def test_it_is_worded_and_documented(profiles):
    changes = find_changes([_row(profiles, p50_ms=10.0)], [_row(profiles, p50_ms=12.0)])
    ((_, change),) = changes.select("worse")
    assert describe_change(change).startswith("p50 latency 12.00 ms instead of 10.00 ms (+20.0 %, 95 % interval +18.")
    assert abbreviate_change(change).startswith("+20.0 % ±1.")
    document = json.loads(json.dumps(changes_document(changes), allow_nan=False))
    assert document["regression"] is True
    entry = document["budgets"][0]["changes"][0]
    assert entry["change"]["value"] == pytest.approx(1.2)
    assert (entry["verdict"], entry["rounds_measured"], entry["rounds_needed"]) == ("worse", 5, None)


def test_deadlines_that_are_missed_now_count(profiles):
    def row(missed, reach):
        interval = Interval(missed, max(0.0, missed - reach), missed + reach)
        return profiles.row(missed_deadlines_percent=missed, intervals={"missed_deadlines_percent": interval})

    changes = find_changes([row(0.0, 0.3)], [row(5.0, 1.0)])
    assert _verdicts(changes) == {"missed_deadlines_percent": "worse"}
    assert "missed deadlines 5.00% instead of 0.00% (+5.0 points" in list_regressions(changes)[0]
    assert _verdicts(find_changes([row(0.0, 0.1)], [row(0.5, 0.1)])) == {"missed_deadlines_percent": "equal"}
