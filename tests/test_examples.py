"""The examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ARGUMENTS = {"read_profile": [str(ROOT / "tests" / "record" / "kept")]}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(example), *ARGUMENTS.get(example.stem, [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2 or example.stem == "own_method"


def test_a_profile_without_a_power_sensor_is_read() -> None:
    """The kept profiles are of a server that measures no power."""
    command = [sys.executable, "examples/read_profile.py", "profiles"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "p50 latency: 128.72 ms" in done.stdout
    assert "energy" not in done.stdout


def test_every_example_has_its_row() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 6
    for example in EXAMPLES:
        assert f"[{example.name}]" in text
