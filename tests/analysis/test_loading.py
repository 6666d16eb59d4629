from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.analysis.choice import Choice, choose
from edge_tprune.analysis.comparison import name_columns
from edge_tprune.analysis.loading import find_profiles, load_rows, profile_rows
from edge_tprune.analysis.samples import Samples
from edge_tprune.analysis.table import find_differences, group_rows
from edge_tprune.analysis.wording import list_caveats
from edge_tprune.errors import UserError
from edge_tprune.record.document import RunDocument
from edge_tprune.record.lines import Check
from edge_tprune.record.summary import MeterSummary, Summary
from edge_tprune.record.turn import Turn
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


def test_a_directory_of_profiles_newest_first_each_once(profiles, tmp_path):
    old, new = profiles.info(), profiles.info(method="evit")
    new["started_utc"] = "2025-12-01T00:00:00+00:00"
    first, second = profiles.write(tmp_path / "z-old", old), profiles.write(tmp_path / "boards" / "a-new", new)
    profiles.write(tmp_path / ".half.tmp" / "x", old)
    assert find_profiles(tmp_path) == [second, first]
    rows = load_rows([tmp_path, first])
    assert [row.method for row in rows] == ["evit"] * 5 + ["zero_tprune"] * 5


def test_a_pipe_and_endless_brackets_beside_profiles(profiles, tmp_path):
    profiles.write(tmp_path / "good")
    for name in ("pipe", "deep"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    (tmp_path / "deep" / "run.json").write_text("[" * 200_000)
    assert [path.name for path in find_profiles(tmp_path)][:1] == ["good"]
    assert len(load_rows(tmp_path).left_out) == 2


def test_unreadable_profiles_in_a_directory_are_left_out_and_said(profiles, tmp_path):
    profiles.write(tmp_path / "good")
    newer = profiles.info()
    newer["version"] = 99
    profiles.write(tmp_path / "newer", newer)
    rows = load_rows(tmp_path)
    assert len(rows) == 5
    assert len(rows.warnings) == 1
    assert "left out" in rows.warnings[0]
    assert "newer" in rows.warnings[0]
    assert rows.left_out == rows.warnings
    assert rows.warnings[0] in list_caveats(choose(rows))
    with pytest.raises(UserError, match="newer than"):
        load_rows(tmp_path / "newer")


def _empty(profiles, path):
    path.mkdir()


def _foreign(profiles, path):
    path.mkdir()
    (path / "run.json").write_text('{"format": "something-else"}')


def _not_json(profiles, path):
    path.mkdir()
    (path / "run.json").write_text("{")


def _a_file(profiles, path):
    path.write_text("")


def _absent(profiles, path):
    pass


def _newer(profiles, path):
    info = profiles.info()
    info["version"] = 99
    profiles.write(path, info)


def _no_samples_file(profiles, path):
    (profiles.write(path) / "samples.jsonl").unlink()


def _half_written(profiles, path):
    info = profiles.info()
    profiles.write(path, info, profiles.lines(info)[:3])


def _senseless(profiles, path):
    info = profiles.info()
    info["budgets"][2]["accuracy"]["top1_change_points"]["value"] = "a lot"
    profiles.write(path, info)


def _more_than_all(profiles, path):
    info = profiles.info()
    info["budgets"][0]["accuracy"]["top1_percent"] = 964.0
    profiles.write(path, info)


def _more_bits_than_images(profiles, path):
    info = profiles.info()
    info["budgets"][0]["accuracy"] |= {"images": 10**13, "per_image": {"agrees": "////"}}
    profiles.write(path, info)


def _bits_of_other_images(profiles, path):
    info = profiles.info()
    info["budgets"][0]["accuracy"] |= {"images": 25, "per_image": {"top1_right": "////"}}
    profiles.write(path, info)


def _zero_latency(profiles, path):
    info = profiles.info()
    lines = profiles.lines(info)
    lines[-2]["latency_ns"] = [0] * len(lines[-2]["latency_ns"])
    profiles.write(path, info, lines)


def _endless_memory(profiles, path):
    info = profiles.info()
    lines = profiles.lines(info)
    next(line for line in lines if line["kind"] == "check")["peak_memory_bytes"] = int("9" * 400)
    profiles.write(path, info, lines)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_empty, "neither a profile nor a directory of profiles"),
        (_foreign, "not a profile"),
        (_not_json, "not readable JSON"),
        (_a_file, "is a file"),
        (_absent, "does not exist"),
        (_newer, "newer than"),
        (_no_samples_file, "samples.jsonl cannot be read"),
        (_half_written, "holds no measurement"),
        (_more_than_all, "top1_percent is 964.0: expected float <= 100.0"),
        (_more_bits_than_images, "there is not one bit for each of 10000000000000 images"),
        (_bits_of_other_images, "there is not one bit for each of 25 images"),
        (_senseless, 'top1_change_points.value is "a lot"'),
        (_endless_memory, r"line 2 of samples.jsonl is damaged: peak_memory_bytes is a number of more than 60 digits"),
        (_zero_latency, r"line 36 of samples.jsonl is damaged: latency_ns\[0\] is 0"),
    ],
)
def test_what_is_no_profile_is_refused_in_one_line(make, says, profiles, tmp_path):
    path = tmp_path / "run"
    make(profiles, path)
    with pytest.raises(UserError, match=says) as caught:
        load_rows(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_path_at_all():
    with pytest.raises(UserError, match="no profile given"):
        load_rows([])


def _change(info, key, value):
    section = {"hostname": "environment", "cpu_model": "environment", "l4t_release": "environment", "threads": "plan"}
    section |= {"isolation": "plan", "batch": "bundle", "board_model": "environment", "cpu_governor": "environment"}
    if key == "runtime version":
        info["environment"]["versions"]["onnxruntime"] = value
    elif key == "weights":
        info["bundle"]["model"]["weights_sha256"] = value
    elif key == "model":
        info["bundle"]["model"]["name"] = value
    elif key == "precision":
        for budget in info["budgets"]:
            budget["artifact"]["precision"] = value
    elif key in ("name", "images", "sha256"):
        for budget in info["budgets"]:
            budget["accuracy"]["data"][key] = value
    else:
        info[section[key]][key] = value


CHANGES = {
    "hostname": ("other", "host"),
    "cpu_model": ("Other CPU", "CPU"),
    "board_model": ("Jetson", "board"),
    "l4t_release": ("36.4.0", "L4T"),
    "cpu_governor": ("powersave", "CPU governor"),
    "threads": (4, "threads"),
    "isolation": ("none", "isolation"),
    "batch": (8, "batch"),
    "runtime version": ("1.24.0", "runtime"),
    "weights": ("c" * 64, "weights"),
    "model": ("deit_small_patch16_224", "model"),
    "name": ("other images", "eval data"),
    "sha256": ("e" * 64, "eval data hash"),
    "images": (500, "eval data"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_different_environments_are_grouped_apart_and_the_difference_named(key, profiles, tmp_path):
    value, label = CHANGES[key]
    info = profiles.info()
    profiles.write(tmp_path / "a", info)
    changed = profiles.copy(info)
    _change(changed, key, value)
    profiles.write(tmp_path / "b", changed)
    rows = load_rows([tmp_path / "a", tmp_path / "b"])
    assert [len(members.rows) for members in rows.groups] == [5, 5]
    found = find_differences(rows)
    assert list(found) == [label]
    assert len(found[label]) == 2


def test_precisions_are_compared_as_budgets_are(profiles, tmp_path):
    info = profiles.info()
    profiles.write(tmp_path / "a", info)
    changed = profiles.copy(info)
    _change(changed, "precision", "int8")
    profiles.write(tmp_path / "b", changed)
    rows = load_rows([tmp_path / "a", tmp_path / "b"])
    (group,) = rows.groups
    assert find_differences(rows) == {}
    assert find_differences(rows, ignore=()) == {"precision": ("fp32", "int8")}
    assert "precision" not in group.conditions
    assert load_rows(tmp_path / "b").groups[0].conditions["precision"] == "int8", "what all rows share is said"
    names = [row.name for row in rows]
    assert len(set(names)) == 10
    assert sum(name.endswith("@int8") for name in names) == 5
    columns = {column.name: [column.text(row) for row in rows] for column in name_columns(rows.rows)}
    assert set(columns["precision"]) == {"fp32", "int8"}
    assert isinstance(choose(rows, {"max_p50_ms": 1e6}), Choice)


def test_other_methods_in_the_same_environment_are_comparable(profiles, tmp_path):
    profiles.write(tmp_path / "a", profiles.info("evit"))
    profiles.write(tmp_path / "b", profiles.info("zero_tprune"))
    rows = load_rows(tmp_path)
    assert len(rows.groups) == 1
    assert find_differences(rows) == {}


def test_a_budget_that_was_not_evaluated_stays_with_its_run(profiles, tmp_path):
    info = profiles.info()
    info["budgets"][2]["accuracy"] = None
    assert len(load_rows(profiles.write(tmp_path / "run", info)).groups) == 1


def test_text_from_files_cannot_steer_a_terminal(profiles, tmp_path):
    info = profiles.info()
    info["environment"]["hostname"] = "\x1b[2Jboard\r\nx"
    rows = load_rows(profiles.write(tmp_path / "run", info))
    assert rows[0].conditions["host"] == "�[2Jboard��x"


def test_the_reader_does_not_need_the_summary(profile_dir):
    assert not (profile_dir / "summary.json").exists()
    assert json.loads((profile_dir / "run.json").read_text())["version"] == 1


ENVIRONMENTS = st.fixed_dictionaries(
    {
        "board": st.sampled_from([None, "Jetson Orin Nano", "Jetson Xavier NX"]),
        "power mode": st.sampled_from([None, {"id": 0, "name": "15W"}, {"id": 0, "name": "7W"}, {"id": 2, "name": "15W"}]),
        "clocks": st.sampled_from([None, {"gpu": True, "cpu": [True]}, {"gpu": False, "cpu": [True]}]),
        "runtime": st.sampled_from(["1.23.0", "1.24.0"]),
        "precision": st.sampled_from(["fp32", "fp16"]),
        "batch": st.sampled_from([1, 8]),
        "fps": st.sampled_from([None, 30, 60]),
        "tool": st.sampled_from(["0.1.0", "0.2.0"]),
        "sensor": st.sampled_from([None, "VDD_IN", "VDD_GPU_SOC"]),
        "zero copy": st.sampled_from([None, True, False]),
        "data": st.sampled_from(["d" * 64, "e" * 64]),
    }
)


def _turn(number, budget):
    return Turn(
        round=number, position=0, budget=budget, t_ns=number, load_ms=1.0, warmup_inferences=1, warmup_steady=True,
        start_ns=np.array([0]), latency_ns=np.array([10**7]), end_ns=10**7,
    )  # fmt: skip


def _samples_in(profiles, environment):
    """A run in that environment, as it would have been read."""
    info = profiles.info(batch=environment["batch"])
    info["environment"].update(board_model=environment["board"], power_mode=environment["power mode"])
    info["environment"]["clock_locks"] = environment["clocks"]
    info["environment"]["versions"]["onnxruntime"] = environment["runtime"]
    info["tool_version"] = environment["tool"]
    if environment["fps"] is not None:
        info["plan"].update(mode="fixed_rate", fps=environment["fps"])
    for budget in info["budgets"]:
        budget["artifact"]["precision"] = environment["precision"]
        budget["accuracy"]["data"]["sha256"] = environment["data"]
    engine = None if environment["zero copy"] is None else {"zero_copy": environment["zero copy"]}
    sensor = environment["sensor"]
    meter = None if sensor is None else MeterSummary(metric="total_power_mw", source="rails", made_of=sensor)
    turns = {budget["name"]: (_turn(0, budget["name"]), _turn(1, budget["name"])) for budget in info["budgets"]}
    checked = Check(budget="1.0", golden_ok=True, golden_max_abs_diff=0.0, load_ms=1.0, peak_memory_bytes=None, engine=engine)
    checks = {"1.0": checked}
    document = msgspec.convert(info, RunDocument)
    return Samples(Path("run"), document, checks, turns, summary=Summary(meter=meter, budgets={}))


def _fixed(environment):
    """All but the precision, which rows may differ in."""
    return json.dumps({key: value for key, value in environment.items() if key != "precision"}, sort_keys=True)


@settings(max_examples=60)
@given(st.lists(ENVIRONMENTS, min_size=2, max_size=4))
def test_rows_of_different_environments_are_never_in_one_group(profiles, environments):
    of = {}
    for environment in environments:
        for row in profile_rows(_samples_in(profiles, environment)):
            of[id(row)] = (row, environment)
    rows = [row for row, _ in of.values()]
    groups = group_rows(rows)
    for each in groups:
        assert len({_fixed(of[id(row)][1]) for row in each.rows}) == 1
    assert len(groups) == len({_fixed(environment) for environment in environments})
    assert (len(groups) > 1) == bool(find_differences(rows))


def test_profiles_are_found_at_any_depth(profiles, tmp_path):
    path = profiles.write(tmp_path / "orin" / "15W" / "deit" / "zero_tprune" / "run")
    (path / "nested").mkdir()
    (path / "nested" / "run.json").write_text("{}")  # belongs to the profile, whatever it is
    assert find_profiles(tmp_path) == [path]


def test_the_interval_of_a_percentile_is_around_the_value_that_is_shown(profile_dir):
    for row in load_rows(profile_dir):
        for metric in ("p50_ms", "p95_ms", "p99_ms", "mean_ms", "throughput_images_per_s"):
            interval = row.intervals[metric]
            assert interval.value == row.value(metric)
            assert interval.low is None or interval.low <= interval.value
            assert interval.high is None or interval.value <= interval.high
