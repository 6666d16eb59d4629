"""What a comparison needs of a profile: whole, in parts and sessions, cut anywhere, damaged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.analysis.loading import load_rows
from edge_tprune.analysis.samples import read_samples
from edge_tprune.errors import UserError
from edge_tprune.record.log import LogWriter
from edge_tprune.telemetry.state import PowerMode


def _version_2(profiles, rounds=3):
    """Lines of version 2: turns in parts, two sessions, accuracy judged on the device, states, notes."""
    info = profiles.info(rounds=rounds)
    info["version"] = 2
    lines, found = profiles.lines(info, inferences=30), []
    for line in lines:
        if line["kind"] != "round":
            found.append(line)
            continue
        line["t_ns"] = 1_000_000 * (line["round"] * 10 + line["position"])
        line["warmup_steady"] = line["position"] != 2
        for part, kind in ((slice(0, 10), "part"), (slice(10, 20), "part"), (slice(20, 30), "round")):
            cut = {key: line[key][part] for key in ("start_ns", "latency_ns")}
            found.append({**line, **cut, "kind": kind, **({"end_ns": line["t_ns"] + 999} if kind == "round" else {})})
    begin = [index for index, line in enumerate(found) if line["kind"] == "part"]
    accuracy = {**info["budgets"][1]["accuracy"], "top1_percent": 77.0}
    resume = {"kind": "resume", "t_ns": 7, "utc": "2025-11-22T00:00:00+00:00"}
    found[begin[5] : begin[5] + 2] = [resume]  # the third turn was cut off after its first part, which does not count
    found.insert(1, {"kind": "state", "t_ns": 1, "which": "begin", "values": {"power_mode": {"id": 0, "name": "15W"}}})
    found.insert(2, {"kind": "accuracy", "t_ns": 1, "budget": "0.9", "accuracy": accuracy})
    found.insert(3, {"kind": "note", "t_ns": 1, "text": "a window was open"})
    found.insert(4, {"kind": "unheard of", "t_ns": 1})
    return info, found


def test_a_period_of_almost_nothing_is_refused(profiles, tmp_path):
    info = profiles.info()
    metric = {"name": "total_power_mw", "unit": "mW"}
    info["plan"]["sources"] = [{"name": "rails", "period_s": 5e-324, "metrics": [metric]}]
    path = profiles.write(tmp_path / "run", info)
    with pytest.raises(UserError, match="period_s is 5e-324: expected float >= 1e-06"):
        read_samples(path)


def test_a_whole_profile(profile_dir):
    read = read_samples(profile_dir)
    assert read.count == 30


def test_parts_sessions_and_what_was_judged_on_the_device(profiles, tmp_path):
    info, lines = _version_2(profiles)
    path = profiles.write(tmp_path / "run", info, lines, summary=profiles.summary(info))
    read = read_samples(path)
    assert read.count == 14  # of 15: the one that the resumption cut off was not measured again here
    assert all(turn.latency_ns.size == 30 for turns in read.turns.values() for turn in turns)
    assert read.unsteady == 2
    assert [b.accuracy.top1_percent for b in read.document.budgets if b.accuracy][1] == 77.0
    assert read.state is not None
    assert read.state.power_mode == PowerMode(0, "15W")
    assert read.notes == ("a window was open",)


@settings(max_examples=25)
@given(st.integers(0, 100_000))
def test_a_file_cut_anywhere(profiles, tmp_path_factory, cut):
    info, lines = _version_2(profiles)
    path = profiles.write(tmp_path_factory.mktemp("cut") / "run", info, lines, summary=profiles.summary(info))
    file = path / "samples.jsonl"
    whole = file.read_bytes()
    kept = whole[: 500 + cut % (len(whole) - 500)]
    file.write_bytes(kept)
    read = read_samples(path)
    begun = [json.loads(line) for line in kept.splitlines() if _is_whole(line)]
    complete = {(line["round"], line["budget"]) for line in begun if line["kind"] == "round"}
    found = {(turn.round, name) for name, turns in read.turns.items() for turn in turns if turn.complete}
    assert found == complete
    assert sum(not turn.complete for turns in read.turns.values() for turn in turns) <= 1


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _damaged(lines):
    lines[20] = "{damaged"


def _foreign_budget(lines):
    lines[20] = lines[20].replace('"budget": "', '"budget": "x')


def _no_number(lines):
    lines[20] = lines[20].replace('"latency_ns": [', '"latency_ns": [null, ')


def _empty_turn(lines):
    entry = json.loads(lines[20])
    lines[20] = json.dumps({**entry, "latency_ns": [], "start_ns": []})


@pytest.mark.parametrize("harm", [_damaged, _foreign_budget, _no_number, _empty_turn])
def test_a_damaged_line_is_named(harm, profiles, tmp_path):
    path = profiles.write(tmp_path / "run", summary=profiles.summary(profiles.info()))
    file = path / "samples.jsonl"
    lines = file.read_text().splitlines()
    harm(lines)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"line 21 of samples\.jsonl is damaged"):
        read_samples(path)


def test_lines_written_by_another_program_are_read_all_the_same(profiles, tmp_path):
    path = profiles.write(tmp_path / "run", summary=profiles.summary(profiles.info()))
    file = path / "samples.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(dict(sorted(line.items()))) + "\n" for line in lines))  # "kind" is not the first key
    assert read_samples(path).count == 30


def test_a_missing_summary_is_derived_again_and_a_damaged_one_is_said(profiles, tmp_path):
    path = profiles.write(tmp_path / "run")
    assert read_samples(path).summary.budgets["0.65"].inferences == 240
    for damage in ("{", '{"format": "edge-tprune-summary", "version": 2, "budgets": {"0.65": {"rounds": NaN}}}'):
        (path / "summary.json").write_text(damage)
        read = read_samples(path)
        assert read.summary.budgets["0.65"].inferences == 240
        (warning,) = [text for text in read.warnings if "summary.json" in text]
        assert "derived again" in warning


def test_a_summary_of_earlier_sessions_is_not_taken_for_one_of_all_turns(profiles, tmp_path):
    """Interrupted with a summary, resumed and killed: the summary is of the first session alone."""
    info = profiles.info()
    lines = profiles.lines(info)
    path = profiles.write(tmp_path / "run", info, lines, summary=profiles.summary(info))
    whole = read_samples(path).summary
    resumed = [{"kind": "resume", "t_ns": 10**15, "utc": "2025-11-22T00:00:00+00:00"}]
    ended = [{"kind": "end", "t_ns": 10**15, "reason": "complete"}]
    profiles.write(tmp_path / "ended", info, [*lines, *ended], summary=profiles.summary(info))
    profiles.write(tmp_path / "killed", info, [*lines, *ended, *resumed], summary=profiles.summary(info))
    assert read_samples(tmp_path / "ended").summary != read_samples(tmp_path / "killed").summary
    assert whole is not None


def test_a_run_that_is_going_on_is_not_said_to_have_ended(profiles, tmp_path):
    info = profiles.info()
    lines = profiles.lines(info)
    path = profiles.write(tmp_path / "run", info, [line for line in lines if line["kind"] != "round"])
    log = LogWriter(path / "samples.jsonl")
    try:
        with pytest.raises(UserError, match="the run is still going on"):
            load_rows(path)
        profiles.write(tmp_path / "other", info, lines[:-3])
        assert not any("going on" in warning for warning in read_samples(tmp_path / "other").warnings)
    finally:
        log.close()
    with pytest.raises(UserError, match="the run ended before its first round"):
        load_rows(path)
