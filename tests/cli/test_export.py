from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome
from tests.small import built, loaded  # noqa: F401

Run = Callable[..., Outcome]


def test_the_path_that_is_printed_cannot_steer_a_terminal(built: Path, command: Run, tmp_path: Path) -> None:  # noqa: F811
    outcome = command("export", built, "--budget", "0.6", "--out", tmp_path / "a\x1b[31m")
    assert outcome.code == 0
    assert "\x1b" not in outcome.out + outcome.err


def test_writes_a_package_and_says_how_to_use_it(
    built: Path,  # noqa: F811
    command: Run,
    tmp_path: Path,
) -> None:
    done = command("export", built, "--budget", "0.6", "--format", "python", "--out", tmp_path / "out")
    assert (done.code, done.out) == (0, f"{tmp_path / 'out'}\n"), done.err
    assert "How to use it:" in done.err
    done = command(
        "export", built, "--budget", "0.6", "--fold-preprocessing", "--frame-size", "64x48", "--out", tmp_path / "f", "--json"
    )
    document = json.loads(done.out)
    assert (document["input"]["dtype"], document["input"]["shape"]) == ("uint8", [1, 48, 64, 3])
    assert document["golden_difference"] < 0.1
    assert {file.name for file in (tmp_path / "f").iterdir()} == set(document["files"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0.6", "--frame-size", "64x48"], "give --fold-preprocessing too"),
        (["--budget", "0.6", "--bgr"], "give --fold-preprocessing too"),
        (["--budget", "0.6", "--fold-preprocessing", "--frame-size", "64"], "no width and height such as 640x480"),
        (["--budget", "0.6", "--fold-preprocessing", "--frame-size", "64x4"], "out of range"),
        (["--budget", "0.6", "--max-p95-ms", "5"], "give --profile too"),
        (["--budget", "0.6", "--profile", "none"], "leave --budget and --precision out"),
        (["--budget", "0.4"], "no budget '0.4'"),
        ([], "has 3 budgets: name one of"),
        (["--budget", "0.6", "--format", "tflite"], "unknown format 'tflite'"),
    ],
)
def test_mistakes_are_one_clear_line(
    built: Path,  # noqa: F811
    command: Run,
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    done = command("export", built, "--out", tmp_path / "out", *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_profile_of_tensorrt_exports_its_graph(
    journey: tuple[Path, Path],
    built: Path,  # noqa: F811
    command: Run,
    tmp_path: Path,
) -> None:
    profile = tmp_path / "profile"
    shutil.copytree(journey[1], profile)
    run = json.loads((profile / "run.json").read_text())
    manifest = json.loads((built / "manifest.json").read_text())
    run["bundle"]["fingerprint"] = manifest["fingerprint"]
    run["plan"]["runtime"] = "tensorrt"
    (profile / "run.json").write_text(json.dumps(run).replace('"0.5"', '"0.6"'))
    for file in ("samples.jsonl", "summary.json"):
        (profile / file).write_text((profile / file).read_text().replace('"0.5"', '"0.6"'))
    done = command("export", built, "--profile", profile, "--minimize", "macs", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["opset"] == 18


def test_a_profile_chooses_the_budget(journey: tuple[Path, Path], built: Path, command: Run, tmp_path: Path) -> None:  # noqa: F811
    bundle, profile = journey
    selected = json.loads(command("select", profile, "--minimize", "macs", "--json").out)
    done = command("export", bundle, "--profile", profile, "--minimize", "macs", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["budget"] == selected["chosen"]["budget"]
    done = command("export", bundle, "--profile", profile, "--max-p95-ms", "0.0001", "--out", tmp_path / "none")
    assert done.code == 1
    done = command("export", bundle, "--profile", profile, "--runtime", "tensorrt", "--out", tmp_path / "none")
    assert (done.code, "measured onnxruntime. Leave --runtime out" in done.err) == (2, True)
    done = command("export", built, "--profile", profile, "--out", tmp_path / "none")
    assert (done.code, "is of another build than bundle" in done.err) == (2, True)
    assert not (tmp_path / "none").exists()


def copied(journey: tuple[Path, Path], folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """The journey's profile with another document."""
    profile = Path(shutil.copytree(journey[1], folder / "profile"))
    document = json.loads((profile / file).read_text())
    change(document)
    (profile / file).write_text(json.dumps(document))
    return profile


def test_a_budget_that_ran_otherwise_than_its_graph_says_is_refused(
    journey: tuple[Path, Path], command: Run, tmp_path: Path
) -> None:
    fallback = {"precision": "fp16", "failure": "its logits are off by 3", "fault": "block 3 of 12", "now": "block 3 in fp32"}

    def fall_back(run: dict[str, Any]) -> None:
        for budget in run["budgets"]:
            budget["fallback"] = fallback

    profile = copied(journey, tmp_path, "run.json", fall_back)
    done = command("export", journey[0], "--profile", profile, "--minimize", "macs", "--out", tmp_path / "out")
    assert done.code == 2
    assert "It runs with block 3 in fp32 instead, which no graph of the bundle does. Build" in done.err
    assert not (tmp_path / "out").exists()


def test_a_choice_that_a_suspect_run_led_to_comes_with_a_warning(
    journey: tuple[Path, Path], command: Run, tmp_path: Path
) -> None:
    reason = {"code": "throttled", "text": "the board was throttled", "status": "suspect"}
    verdict = {"status": "suspect", "reasons": [reason]}
    profile = copied(journey, tmp_path, "summary.json", lambda summary: summary.update(verdict=verdict))
    done = command("export", journey[0], "--profile", profile, "--minimize", "macs", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "warning: the measurement of budget 0.5 is suspect: the board was throttled" in done.err
