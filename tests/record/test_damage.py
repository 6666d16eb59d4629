"""Damaged profiles: every failure is one line that names the line and the value, and nothing wrong is read as right."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_tprune.errors import UserError
from edge_tprune.record import log
from edge_tprune.record.document import RUN
from edge_tprune.record.lines import SAMPLES, SENSORS
from edge_tprune.record.reader import Run, read_costs, read_run
from edge_tprune.record.summarize import summarize
from edge_tprune.record.summary import SUMMARY, read_summary

from .tiny_run import info, write_run
from .virtual_run import Settings, write_profile


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile with sensors, of one budget; tests copy it."""
    path, _ = write_profile(tmp_path_factory.mktemp("whole"), Settings(rounds=3, seconds=1.0, warmup_s=0.9, baseline_s=2.0))
    return path


def read_all(path: Path) -> Run:
    """Everything that reading a profile can meet."""
    run = read_run(path)
    summarize(run)
    list(run.readings)
    read_costs(path)
    return run


def refusal(path: Path) -> str:
    """What reading says, which must be one short line of printable text."""
    with pytest.raises(UserError) as refused:
        read_all(path)
    text = str(refused.value)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text.replace(str(path), "")) < 400
    return text


def change_line(path: Path, number: int, change: Callable[[dict[str, Any]], object], file: str = SAMPLES) -> None:
    lines = (path / file).read_text().splitlines()
    entry = json.loads(lines[number - 1])
    change(entry)
    lines[number - 1] = json.dumps(entry)
    (path / file).write_text("\n".join(lines) + "\n")


def _set(*keys: str | int, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(entry: Any) -> None:
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("latency_ns", 3, to=float("nan")), r"latency_ns\[3\] is nan"),
        (_set("latency_ns", 3, to=float("inf")), r"latency_ns\[3\] is inf"),
        (_set("latency_ns", 3, to=None), r"latency_ns\[3\] is null"),
        (_set("latency_ns", 3, to=-5), r"latency_ns\[3\] is -5"),
        (_set("latency_ns", 3, to=0), r"latency_ns\[3\] is 0"),
        (_set("latency_ns", 3, to=10**400), r"latency_ns\[3\] is a number of more than 60 digits"),
        (_set("latency_ns", 3, to="1"), r"latency_ns\[3\] is \"1\""),
        (_set("latency_ns", 3, to=1.5), r"latency_ns\[3\] is 1\.5"),
        (_set("latency_ns", to={}), "latency_ns is an object"),
        (_set("latency_ns", to=[]), r"latency_ns is a list of 0: expected \d+ entries, as in start_ns"),
        (_set("start_ns", 0, to=-1), r"start_ns\[0\] is -1"),
        (_set("t_ns", to=10**30), "t_ns is 10+"),
        (_set("budget", to="b"), "budget is 'b': this run has no such budget"),
        (_set("budget", to=["a"]), "budget is a list of 1"),
        (_set("round", to=-1), "round is -1"),
        (_set("load_ms", to=-1.0), r"load_ms is -1\.0"),
        (_set("load_ms", to=float("nan")), "load_ms is nan"),
        (_set("stages_ns", to={"h2d": [1]}), r"stages_ns\.h2d is a list of 1"),
        (_set("missed", to="none"), 'missed is "none"'),
        (_set("end_ns", to=0), "end_ns is 0: expected more than t_ns"),
        (_set("kind", to=5), "kind is 5"),
    ],
)
def test_a_wrong_value_is_named(whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    number = next(index for index, line in enumerate(_lines(path), 1) if b'"round"' in line)
    change_line(path, number, change)
    with pytest.raises(UserError, match=rf"line {number} of samples\.jsonl is damaged: {says}"):
        read_all(path)
    refusal(path)


def _lines(path: Path, file: str = SAMPLES) -> list[bytes]:
    return (path / file).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (b"\0" * 300, "it holds 300 NUL bytes, as a power cut leaves them"),
        (b'{"kind":"note","t_ns":1,"text":"a' + b"\0" * 9, "it holds 9 NUL bytes"),
        (b"[" * 200_000, "not readable JSON|expected object"),
        (b'{"kind":"note","t_ns":1,"text":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "brackets|expected str"),
        (b'{"kind":"new","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "brackets"),
        (b"\xff\xfe", "not readable JSON"),
        (b"{'kind': 'note'}", "not readable JSON"),
        (b"Segmentation fault", "not readable JSON"),
        (b'{"t_ns":1}', "no entry 'kind'"),
        (b'{"kind":"note"}', "no entry 't_ns'"),
        (b'{"kind":"note","t_ns":1,"text":"\\ud800"}', "half a character|surrogate"),
    ],
)
def test_a_damaged_line_is_named_and_left_out_where_it_is_the_last(tmp_path: Path, damage: bytes, says: str) -> None:
    path = write_run(tmp_path)
    lines = _lines(path)
    (path / SAMPLES).write_bytes(b"".join([*lines[:2], damage + b"\n", *lines[2:]]))
    with pytest.raises(UserError, match=rf"line 3 of samples\.jsonl is damaged: .*({says})"):
        read_all(path)
    refusal(path)
    for last in (damage, damage + b"\n"):
        (path / SAMPLES).write_bytes(b"".join([*lines, last]))
        run = read_all(path)
        assert len(run.turns) == 3
        assert run.warnings == (f"the last line of {SAMPLES} was cut short and is left out",)


def test_blank_lines_and_windows_line_ends_are_no_damage(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    lines = [line.rstrip(b"\n") for line in _lines(path)]
    (path / SAMPLES).write_bytes(b"\r\n".join([*lines[:3], b"", b"  ", *lines[3:], b""]))
    assert len(read_all(path).turns) == 3


def test_a_log_appended_to_itself_is_refused(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    lines = _lines(path)
    (path / SAMPLES).write_bytes(b"".join(lines + lines))
    assert f"line {len(lines) + 1} of samples.jsonl is damaged: the run begins a second time here" in refusal(path)
    (path / SAMPLES).write_bytes(b"".join(lines + lines[1:]))
    assert "round 0 of budget 'a' was recorded before" in refusal(path)
    (path / SAMPLES).write_bytes(b"".join(lines))
    sensors = _lines(path, SENSORS)
    (path / SENSORS).write_bytes(b"".join(sensors + sensors))
    assert f"line {len(sensors) + 1} of sensors.jsonl is damaged: a sampler begins a second time here" in refusal(path)


def test_rounds_copied_several_times_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, rounds=1)
    lines = _lines(path)
    (path / SAMPLES).write_bytes(b"".join([*lines[:2], *[lines[1]] * 5, *lines[2:]]))
    assert "line 3 of samples.jsonl is damaged: round 0 of budget 'a' was recorded before" in refusal(path)


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "is nan"), (float("-inf"), "is -inf"), ("12", 'is "12"')])
def test_a_reading_that_is_no_number_is_named(whole: Path, tmp_path: Path, value: Any, says: str) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    number = next(index for index, line in enumerate(_lines(path, SENSORS), 1) if b'"vdd_in_power_mw"' in line)
    change_line(path, number, _set("values", "vdd_in_power_mw", to=value), SENSORS)
    assert f"line {number} of sensors.jsonl is damaged: values.vdd_in_power_mw {says}" in refusal(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("plan", "rounds", to=0), r"plan\.rounds is 0"),
        (_set("plan", "rounds", to=10**400), r"plan\.rounds is a number of more than 60 digits"),
        (_set("plan", "fps", to=-30), r"plan\.fps is -30"),
        (_set("plan", "seconds_per_round", to=float("nan")), r"plan\.seconds_per_round is nan"),
        (_set("plan", "sources", 0, "period_s", to=0), r"plan\.sources\[0\]\.period_s is 0"),
        (_set("plan", "sources", 0, "metrics", 0, "aggregation", to="sum"), r"metrics\[0\]\.aggregation is \"sum\""),
        (_set("plan", "sources", 0, "metrics", 0, "interval_s", to=-1), r"metrics\[0\]\.interval_s is -1"),
        (_set("plan", "sources", 0, "metrics", 0, "interval_s", to=1e308), r"metrics\[0\]\.interval_s is 1e\+308"),
        (_set("budgets", 0, "macs", to=-1), r"budgets\[0\]\.macs is -1"),
        (_set("budgets", 0, "macs_share", to=1e308), r"budgets\[0\]\.macs_share is 1e\+308"),
        (_set("budgets", 0, "schedule", to=[0]), r"budgets\[0\]\.schedule\[0\] is 0"),
        (_set("budgets", 0, "artifact", to=None), r"budgets\[0\]\.artifact is null"),
        (_set("bundle", "batch", to=0), r"bundle\.batch is 0"),
        (_set("environment", to=[]), "environment is a list of 0"),
    ],
)
def test_a_wrong_setting_is_named(whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    entry = json.loads((path / RUN).read_text())
    change(entry)
    (path / RUN).write_text(json.dumps(entry))
    with pytest.raises(UserError, match=rf"run\.json: .*{says}"):
        read_all(path)
    refusal(path)


def test_a_budget_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    entry = info(version=2)
    entry["budgets"][1]["name"] = "a"
    (path / RUN).write_text(json.dumps(entry))
    assert "run.json has budget 'a' twice" in refusal(path)


@pytest.mark.parametrize("file", [RUN, SAMPLES, SENSORS, SUMMARY])
def test_special_files_are_refused(whole: Path, tmp_path: Path, file: str) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    summarize_into(path)
    read: Callable[[Path], object] = read_summary if file == SUMMARY else read_all
    for make, what in ((os.mkfifo, "named pipe"), (os.mkdir, "directory")):
        (path / file).unlink()
        make(path / file)
        with pytest.raises(UserError, match=what):
            read(path)
        (path / file).rmdir() if what == "directory" else (path / file).unlink()
        (path / file).symlink_to("/dev/zero")
        with pytest.raises(UserError, match="device"):
            read(path)


def summarize_into(path: Path) -> None:
    (path / SUMMARY).write_text("{}")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path)
    monkeypatch.setattr(log, "LINE_BYTES", 500)
    (path / SAMPLES).write_bytes(b" " * 501 + (path / SAMPLES).read_bytes())
    assert "line 1 of samples.jsonl has more than" in refusal(path)


NOISE = (b"\0", b"\xff", b'"', b"{", b"}", b"[", b"]", b"-", b"9" * 40, b"null", b"NaN", b"\n", b",", b"e", b".", b":", b" ")


def test_random_damage_is_one_line_or_harmless(whole: Path, tmp_path: Path) -> None:
    """Bytes are changed, cut, doubled or replaced anywhere: reading gives a run or one line, never another error."""
    chance = random.Random(0)
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    files = {name: (path / name).read_bytes() for name in (RUN, SAMPLES, SENSORS)}
    refusals: list[str] = []
    for _ in range(1600):
        name = chance.choice(list(files))
        data = files[name]
        begin = chance.randrange(len(data))
        end = min(len(data), begin + chance.choice([0, 1, 1, 5, 200]))
        new = chance.choice([chance.choice(NOISE), data[begin:end] * 2, b"", bytes(chance.choices(range(256), k=3))])
        (path / name).write_bytes(data[:begin] + new + data[end:])
        try:
            read_all(path)
        except UserError as error:
            refusals.append(str(error).replace(str(path), ""))
        (path / name).write_bytes(data)
    assert len(refusals) > 400
    for text in refusals:
        assert text.isprintable()
        assert len(text) < 400
