from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.source import NoReading

from .tree import refuse, write


@given(st.binary(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_is_a_finite_number_or_a_reason(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, {"hwmon1/curr1_input": data})
    file = tmp_path / "hwmon1/curr1_input"
    number = sysfs.number_or_none(file)
    if number is not None:
        assert math.isfinite(number)
        assert number == sysfs.read_number(file) == float(data.strip(b"\0 \t\r\n"))
        return
    with pytest.raises(NoReading, match="curr1_input"):
        sysfs.read_number(file)


@pytest.mark.parametrize(
    ("text", "number"), [("12\n", 12), (" -400\n", -400), ("1.5", 1.5), ("7\0", 7), ("+3", 3), ("0\n", 0), ("1e3", 1000)]
)
def test_numbers(tmp_path: Path, text: str, number: float) -> None:
    write(tmp_path, {"a/b": text})
    assert sysfs.read_number(tmp_path / "a/b") == number
    assert sysfs.read_number(str(tmp_path / "a/b"), wait=True) == number


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a/b is empty"),
        (" \n\0", "a/b is empty"),
        ("nan", "no number in a/b: 'nan'"),
        ("inf", "no number in a/b: 'inf'"),
        ("12 34", "no number in a/b: '12 34'"),
        ("x" * 100, f"no number in a/b: '{'x' * 40}'"),
        (b"\xff\xfe", "a/b is not text"),
    ],
)
def test_a_gap_has_its_reason(tmp_path: Path, text: str | bytes, reason: str) -> None:
    write(tmp_path, {"a/b": text})
    with pytest.raises(NoReading) as raised:
        sysfs.read_number(tmp_path / "a/b")
    assert str(raised.value) == reason


def test_refusals_are_named(tmp_path: Path) -> None:
    (tmp_path / "a/directory").mkdir(parents=True)
    refuse(tmp_path, "a/broken")
    os.mkfifo(tmp_path / "a/gated")
    writer = os.open(tmp_path / "a/gated", os.O_RDWR | os.O_NONBLOCK)
    expected = {
        "absent": "a/absent is gone",
        "directory": "EISDIR from a/directory",
        "broken": "EIO from a/broken",
        "gated": "EAGAIN from a/gated",  # what a power-gated thermal zone answers
        "broken/below": "broken/below is gone",
    }
    for name, reason in expected.items():
        with pytest.raises(NoReading) as raised:
            sysfs.read_text(tmp_path / "a" / name)
        assert str(raised.value) == reason
        assert sysfs.text_or_none(tmp_path / "a" / name) is None
    os.close(writer)


def test_a_pipe_whose_writer_does_not_come_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree for --sysroot may hold anything."""
    monkeypatch.setattr(sysfs, "_WAIT_S", 0.05)
    os.mkfifo(tmp_path / "curr1_input")
    with pytest.raises(NoReading, match=r"no answer from .*/curr1_input within 0\.05 s"):
        sysfs.read_number(tmp_path / "curr1_input", wait=True)
    writer = os.open(tmp_path / "curr1_input", os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, b"12")  # and never the end
    with pytest.raises(NoReading, match="no answer"):
        sysfs.read_number(tmp_path / "curr1_input", wait=True)
    os.close(writer)


def test_a_pipe_answers_when_its_writer_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "curr1_input")
    thread = threading.Thread(target=(tmp_path / "curr1_input").write_text, args=("12\n",))
    thread.start()
    assert sysfs.read_number(tmp_path / "curr1_input", wait=True) == 12
    thread.join()


def test_directories_are_in_counting_order(tmp_path: Path) -> None:
    for name in ("hwmon10", "hwmon2", "hwmon1"):
        (tmp_path / name).mkdir()
    (tmp_path / "hwmon3").touch()
    assert [path.name for path in sysfs.directories(tmp_path, "hwmon*")] == ["hwmon1", "hwmon2", "hwmon10"]
    assert list(sysfs.directories(tmp_path / "nothing", "*")) == []


def test_what_a_user_may_not_see_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert not sysfs.is_there(tmp_path / "loop" / "x")
    assert not sysfs.is_there(tmp_path / "file" / "x")
    assert not sysfs.is_there(tmp_path / ("x" * 300))
    assert sysfs.is_there(tmp_path / "file")
