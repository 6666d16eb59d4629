"""A run is read back whole or cut short, and damage is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_tprune.errors import UserError
from edge_tprune.record.document import RUN
from edge_tprune.record.lines import SAMPLES
from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.summarize import summarize

from .tiny_run import info, write_run


def test_cut_anywhere_in_the_last_line_keeps_every_line_before(tmp_path: Path) -> None:
    path = write_run(tmp_path, rounds=3, end=None)
    whole = (path / SAMPLES).read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(last, len(whole) + 1):
        (path / SAMPLES).write_bytes(whole[:length])
        run = read_run(path)
        complete = length >= len(whole) - 1  # only the line's end is missing
        assert [turn.round for turn in run.turns] == ([0, 1, 2] if complete else [0, 1])
        assert any("cut short" in warning for warning in run.warnings) == (not complete and length > last)
        assert any("was cut off: " in warning for warning in run.warnings)


def test_a_log_of_another_run_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    first, rest = (path / SAMPLES).read_text().split("\n", 1)
    own = json.loads((path / RUN).read_text())["run_id"]
    for run_id in (own, "another"):
        (path / SAMPLES).write_text(json.dumps(json.loads(first) | {"run_id": run_id}) + "\n" + rest)
        if run_id == own:
            assert len(read_run(path).turns) == 3
    with pytest.raises(UserError, match=r"line 1 of samples\.jsonl is damaged: it is of run another"):
        read_run(path)


@pytest.mark.parametrize("damage", [b"{", b"\0\0\0\0", b"[]", b'{"kind":"round"}', b'"text"', b"\xff\xff", b'{"t_ns":1}'])
def test_damage_in_the_last_line_is_told_and_elsewhere_refused(tmp_path: Path, damage: bytes) -> None:
    path = write_run(tmp_path)
    whole = (path / SAMPLES).read_bytes()
    (path / SAMPLES).write_bytes(whole + damage + b"\n")
    run = read_run(path)
    assert len(run.turns) == 3
    assert any("cut short" in warning for warning in run.warnings)
    lines = whole.splitlines(keepends=True)
    (path / SAMPLES).write_bytes(b"".join([lines[0], damage + b"\n", *lines[1:]]))
    with pytest.raises(UserError, match=r"line 2 of samples\.jsonl is damaged"):
        read_run(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3, newer than the 2"),
        ({"format": "something"}, "is not a profile"),
        ({"version": "1"}, "version is"),
        ({"budgets": []}, "budgets is a list of 0"),
        ({"plan": {}}, "plan has no entry 'seed'"),
    ],
)
def test_refuses_other_formats(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_run(tmp_path)
    (path / RUN).write_text(json.dumps(info(**change)))
    with pytest.raises(UserError, match=message) as error:
        read_run(path)
    assert str(path) in str(error.value)


def test_refuses_what_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Make one with: edge-tprune profile"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="is not a profile"):
        read_run(tmp_path / "absent")
    path = write_run(tmp_path)
    with pytest.raises(UserError, match=f"Profiles in it: {path}"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="is not a profile"):
        read_run(path / RUN)
    for text in ("", "{", "[]", "\0"):
        (path / RUN).write_text(text)
        with pytest.raises(UserError):
            read_run(path)
    (path / RUN).write_text(json.dumps(info()))
    (path / SAMPLES).unlink()
    with pytest.raises(UserError, match="Copy the profile again"):
        read_run(path)


def test_a_real_profile_survives_the_round_trip(finished: Run) -> None:
    again = read_run(str(finished.path))
    assert again.document == finished.document
    assert again.end == "complete"
    assert again.warnings == ()
    assert [turn.budget for turn in again.turns] == [turn.budget for turn in finished.turns]


def test_a_profile_of_version_1_stays_readable() -> None:
    run = read_run(Path(__file__).parent / "kept" / "version-1")
    assert (run.document.version, run.end, run.sessions) == (1, "complete", 1)
    summary = json.loads((run.path / "summary.json").read_text())
    again = summarize(run).budgets
    for name, budget in summary["budgets"].items():
        assert msgspec.to_builtins(again[name].latency_ms) == pytest.approx(budget["latency_ms"])
        assert again[name].rounds == budget["rounds"]
        assert again[name].energy.status == "no_sensor"
    assert len(run.readings) > len(run.turns)
    assert run.readings[0].values["memory_available_bytes"] > 0
