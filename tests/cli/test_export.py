from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

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
