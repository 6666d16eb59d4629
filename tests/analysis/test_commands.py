"""`compare` and `select` on the command line: what they write, and with which exit code they end."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from edge_tprune.cli import main


@pytest.fixture(scope="module")
def two(profiles, tmp_path_factory):
    """An older profile, and a newer one in which budget 0.65 became slower."""
    root = tmp_path_factory.mktemp("two")
    slower = {"1.0": 10.0, "0.9": 9.2, "0.8": 8.3, "0.65": 9.1, "0.5": 5.6}
    later = profiles.info()
    later["started_utc"] = "2025-11-28T09:30:00+00:00"
    old = profiles.write(root / "old", summary=profiles.summary(profiles.info()))
    return str(old), str(profiles.write(root / "new", later, summary=profiles.summary(later), latencies=slower, seed=3))


def test_two_profiles_are_two_points_in_time(two, capsys):
    old, new = two
    assert main(["compare", old, new]) == 0
    text = capsys.readouterr().out
    assert "From old (2025-11-21) to new (2025-11-28)" in text
    assert "worse: zero_tprune 0.65: p50 latency" in text
    assert text.isascii()


def test_fail_on_regression(two, capsys):
    old, new = two
    assert main(["compare", old, new, "--fail-on-regression"]) == 1
    assert capsys.readouterr().err.startswith("edge-tprune: regression: zero_tprune 0.65: p50 latency")
    capsys.readouterr()
    assert (
        main(["compare", new, old, "--fail-on-regression"]) == 3
    )  # nothing is known to be worse, and not everything to be no worse
    text = capsys.readouterr().err
    assert text.startswith(
        "edge-tprune: cannot tell whether this is a regression: zero_tprune 1.0: p50 latency 10.35 ms instead of"
    )
    assert "rounds would tell; 6 were measured" in text
    assert text.count("instead of") == 3, "not every one of many in one line"
    assert "more. Measure more, or widen --equal-within" in text
    assert main(["compare", new, "--against", old, "--fail-on-regression", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["changes"]["regression"] is True
    assert main(["compare", old, new, "--fail-on-regression", "--equal-within", "60%"]) == 3
    assert "p95 latency" in capsys.readouterr().err, "whose interval has no upper end after six rounds"


def test_one_profile_is_no_two_points_in_time(two, capsys):
    assert main(["compare", two[0], "--fail-on-regression"]) == 2
    assert "two points in time are two profiles" in capsys.readouterr().err
    assert main(["compare", two[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] is None


def test_export(two, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    assert main(["compare", *two, "--export", str(file)]) == 0
    assert len(file.read_text().splitlines()) == 11
    assert str(file) in capsys.readouterr().err.replace("\n", "")
    assert main(["compare", *two, "--export", str(tmp_path / "rows.txt")]) == 2


def test_select_takes_power_and_energy(two, capsys):
    assert main(["select", two[0], "--max-mean-power-w", "9.5", "--max-energy-mj", "80", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"]["budget"] == "0.8"
    assert {entry["constraint"]: entry["sure"] for entry in document["constraints"]} == {
        "max_mean_power_w": True, "max_energy_mj": True,
    }  # fmt: skip
    assert main(["select", two[0], "--minimize", "energy"]) == 0
    assert "lowest in energy per image" in capsys.readouterr().out
    assert main(["select", two[0], "--max-mean-power-w", "1"]) == 1
    assert "nearest to --max-mean-power-w 1 W is budget 0.5" in capsys.readouterr().err


def test_select_across_boards(profiles, tmp_path, capsys):
    for name, scale in (("nano", 1.0), ("agx", 4.0)):
        info = profiles.info()
        info["environment"]["board_model"] = name
        profiles.write(tmp_path / name, info, summary=profiles.summary(info, scale))
    question = ["select", str(tmp_path), "--max-mean-power-w", "9", "--json"]
    assert main(question) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["environment"] for entry in document["candidates"]] == ["nano"]
    assert document["chosen"]["budget"] == "0.65"
    assert document["without"][0]["chosen"] is None
    assert main([*question[:-1], "--max-p50-ms", "0.1"]) == 1
    assert "agx: no budget fits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-p95-ms", "-3"], "--max-p95-ms -3 is out of range: give a number above 0"),
        (["--min-fps", "0"], "out of range"),
        (["--equal-within", " "], "not a margin such as 2%"),
    ],
)
def test_bounds_that_nothing_can_mean_are_a_mistake(two, capsys, words, message):
    assert main(["select", two[0], *words]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["compare", "NEW", "--against", "SOME"], 0),
        (["compare", "SOME", "--markdown"], 0),
        (["select", "SOME", "--max-p50-ms", "0.0001"], 1),
    ],
)
def test_profiles_that_are_left_out_are_named(two, profiles, tmp_path, capsys, words, code):
    shutil.copytree(two[0], tmp_path / "good")
    info = profiles.info()
    info["version"] = 99
    profiles.write(tmp_path / "future", info)
    places = {"NEW": two[1], "SOME": str(tmp_path)}
    assert main([places.get(word, word) for word in words]) == code
    assert re.search(r"^warning: left out: .*future.* newer than", capsys.readouterr().err, re.MULTILINE)


def test_the_answer_has_one_form(two, capsys):
    assert main(["compare", two[0], "--json", "--markdown"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, "give one" in captured.err) == ("", True)
