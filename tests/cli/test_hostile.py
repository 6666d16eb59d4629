"""No name in a bundle, a profile or on a command line steers the terminal or is read as markup, whatever the command."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.conftest import Profiles
from tests.cli.conftest import Outcome

Command = Callable[..., Outcome]
TITLE = "\x1b]0;stolen\x07"  # sets a terminal's title
MARKUP = "[/nope][link=https://evil.example]x[/link][bold red]"
EVIL = f"{TITLE}\x1b[2J{MARKUP}\u202e\r"


def check(outcome: Outcome, *codes: int) -> None:
    """Nothing that steers a terminal came out beyond rich's own colours; and no traceback."""
    assert outcome.code in codes, outcome.err
    for text in (outcome.out, outcome.err):
        left = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", left), repr(left)
        assert "]8;" not in text, "a link"
        assert "Traceback" not in text


@pytest.fixture(scope="module")
def profiles_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with hostile names in every place that a profile has for one."""
    root = tmp_path_factory.mktemp("hostile")
    for place, started in (("[/nope]", "2025-11-21T09:30:00+00:00"), ("[bold]", "2025-11-28T09:30:00+00:00")):
        info = Profiles.info()
        info["started_utc"] = started
        info["bundle"]["name"] = info["bundle"]["model"]["name"] = info["bundle"]["method"]["name"] = EVIL
        info["environment"] |= {"hostname": EVIL, "cpu_model": EVIL, "os": EVIL, "versions": {"onnxruntime": EVIL, EVIL: EVIL}}
        for budget in info["budgets"]:
            budget["accuracy"]["data"]["name"] = EVIL
        latencies = {"1.0": 10.0, "0.9": 9.2, "0.8": 8.3, "0.65": 7.0, "0.5": 5.6}
        lines = Profiles.lines(info, latencies)
        lines.insert(-1, {"kind": "note", "t_ns": 98, "text": EVIL})
        failed = next(line for line in lines if line["kind"] == "check" and line["budget"] == "0.5")
        failed |= {"golden_ok": False, "error": EVIL}
        summary = Profiles.summary(info)
        summary["verdict"] = {"status": "suspect", "reasons": [{"code": "x", "text": EVIL}]}
        Profiles.write(root / place, info, lines, summary)
    return root


@pytest.fixture(scope="module")
def bundle(journey: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that runs, with hostile names where its manifest takes any."""
    copy = tmp_path_factory.mktemp("hostile") / "[/nope]"
    shutil.copytree(journey[0], copy)
    document: dict[str, Any] = json.loads((copy / "manifest.json").read_text())
    document["model"]["name"] = EVIL
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "100")
    return bool(request.param)


@pytest.mark.parametrize(
    "words",
    [
        ["compare"],
        ["compare", "--markdown"],
        ["compare", "--json"],
        ["select", "--force"],
        ["select"],
        ["select", "--max-p95-ms", "0.001"],
        ["select", "--json"],
        ["report", "--out", "OUT/[/nope].html", "--picture", "OUT/p.svg"],
    ],
    ids=" ".join,
)
def test_commands_that_read_profiles(
    command: Command, profiles_dir: Path, tmp_path: Path, terminal: bool, words: list[str]
) -> None:
    outcome = command(words[0], profiles_dir, *(word.replace("OUT", str(tmp_path)) for word in words[1:]))
    check(outcome, 0, 1)


def test_two_points_in_time(command: Command, profiles_dir: Path, terminal: bool) -> None:
    outcome = command("compare", profiles_dir / "[/nope]", profiles_dir / "[bold]", "--fail-on-regression")
    check(outcome, 1, 3)
    assert "[/nope]" in outcome.out


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "BUNDLE", "--data", "reference", "--limit", "10"],
        ["profile", "BUNDLE", "--out", "OUT", "--rounds", "1", "--seconds", "0", "--warmup", "0", "--baseline", "0"],
        ["explain", "reference:1", "--budgets", "0.8", "--out", "OUT/[/nope].png"],
        ["engines", "BUNDLE", "--runtime", EVIL],
        ["deploy", "BUNDLE", "-oProxyCommand=x"],
        ["methods", EVIL],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_read_bundles(command: Command, bundle: Path, tmp_path: Path, words: list[str]) -> None:
    named = {"BUNDLE": str(bundle)}
    outcome = command(*(named.get(word, word.replace("OUT", str(tmp_path))) for word in words))
    check(outcome, 0, 2)


@pytest.mark.parametrize(
    "name", ["build", "eval", "search", "explain", "compare", "select", "report", "profile", "engines", "deploy"]
)
def test_a_hostile_argument_is_named_harmlessly(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    check(command(name, EVIL), 2)
    check(command(name, f"--{EVIL}"), 2)
