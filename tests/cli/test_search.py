"""`search`, and `build` from what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_tprune.schedule.latency import KIND as LATENCY_KIND
from edge_tprune.schedule.latency import Latency, NetworkRecord
from tests.analysis.conftest import Profiles
from tests.cli.conftest import Outcome
from tests.schedule.test_latency import SHAPE, fitted

Command = Callable[..., Outcome]


def test_what_is_found_builds(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = [
        "search",
        "reference",
        "--method",
        "evit",
        "--budgets",
        "0.6",
        "--images",
        "20",
        "--trials",
        "3",
        "--seed",
        "3",
    ]
    done = command(*arguments, "--stages", "2-3", "--out", file)
    assert done.code == 0, done.err
    assert "kl of the defaults" in done.out
    assert f"edge-tprune build reference --schedule {file}" in done.err
    document = json.loads(command(*arguments, "--stages", "2-3", "--out", file, "--json").out)
    assert document == json.loads(file.read_text())
    assert document["found"]["data"] == "digits-in-clutter train", "not the canvases that accuracy is judged on"
    built = command("build", "reference", "--schedule", file, "--out", tmp_path / "bundle", "--json")
    assert built.code == 0, built.err
    manifest = json.loads(built.out)
    assert manifest["method"]["name"] == "evit"
    assert [b["name"] for b in manifest["budgets"]] == ["1.0", "exact", "0.6"]
    assert manifest["budgets"][2]["schedule"] == document["budgets"]["0.6"]["tokens"]
    wrong = command("build", "reference", "--schedule", file, "--method", "tome", "--out", tmp_path / "other")
    assert wrong.code == 2
    assert "is for method evit, not tome: leave --method out" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "deit_tiny_patch16_224", "--weights", "random"], "no images to search on: give --data"),
        (["search", "reference", "--stages", "few"], "'few' is neither a number nor a range"),
        (["search", "reference", "--budgets", "1.0"], "budget 1 is out of range"),
        (["search", "reference", "--score", "f1"], "no score 'f1'"),
        (["search", "reference", "--score", ""], "the argument after --score is empty"),
        (["search", "reference", "--stages", ""], "the argument after --stages is empty"),
        (["search", "reference", "--storage", "nosuchdb://x"], "--storage nosuchdb://x: the database cannot be used"),
        (
            ["search", "reference", "--storage", "postgresql://me:secret@127.0.0.1:1/x"],
            "--storage postgresql://me:***@127.0.0.1:1/x: the d",
        ),
        (["search", "reference", "--workers", "0"], "greater than or equal to 1"),
        (["search", "reference", "--method", "evti"], "Did you mean evit"),
        (["build", "reference", "--schedule", "absent.json"], "absent.json cannot be read"),
        (["build", "reference", "--schedule", "a.json", "--schedule", "b.json"], "2 schedule files are given"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], says: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(*arguments)
    assert outcome.code == 2
    assert says in outcome.err.replace("\n", " ")
    assert "secret" not in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_latency_model_is_for_several_methods(command: Command, tmp_path: Path) -> None:
    """--method would be ignored."""
    network = NetworkRecord(name="reference", weights_sha256="0" * 64, tokens=197, blocks=12)
    latency = Latency(
        run_id="r", network=network, runtime="onnxruntime", precision=None, batch=1, threads=1, power_mode=None, machine="m",
        status="valid", costs={"p50_ms": fitted(SHAPE, ["evit"])},
    )  # fmt: skip
    Profiles.write(tmp_path / "run", {**Profiles.info(), "run_id": "r"})
    LATENCY_KIND.write(tmp_path / "run", latency)
    outcome = command("search", "reference", "--latency", tmp_path / "run", "--max-ms", "8", "--method", "bat")
    assert outcome.code == 2
    assert "--latency compares --methods: give --methods bat instead of --method" in outcome.err.replace("\n", " ")
