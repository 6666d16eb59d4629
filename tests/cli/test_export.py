from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome
from tests.small import built, loaded  # noqa: F401

Run = Callable[..., Outcome]


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
