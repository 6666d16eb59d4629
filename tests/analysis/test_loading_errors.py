"""What is no profile, or a damaged one, is refused in one line or left out and said."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edge_tprune.analysis.choice import choose
from edge_tprune.analysis.loading import find_profiles, load_rows
from edge_tprune.analysis.wording import list_caveats
from edge_tprune.errors import UserError


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


def test_a_directory_that_cannot_be_listed_is_refused(profiles, tmp_path, monkeypatch):
    profiles.write(tmp_path / "good")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\): what it holds would be left out"):
        find_profiles(tmp_path)


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


def test_profiles_are_found_at_any_depth(profiles, tmp_path):
    path = profiles.write(tmp_path / "orin" / "15W" / "deit" / "zero_tprune" / "run")
    (path / "nested").mkdir()
    (path / "nested" / "run.json").write_text("{}")  # belongs to the profile, whatever it is
    assert find_profiles(tmp_path) == [path]
