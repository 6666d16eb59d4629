"""The tests themselves: every file is collected, and the tests' folders are the rooms."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "edge_tprune"


def test_every_test_file_is_collected() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "board or not board", str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent, timeout=240)
    collected = {line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith("tests/")}
    written = {file.relative_to(TESTS.parent).as_posix() for file in TESTS.rglob("test_*.py")}
    assert collected == written, done.stdout[-2000:] + done.stderr[-2000:]


def test_tests_mirror_the_rooms() -> None:
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms - {folder.name for folder in TESTS.iterdir() if folder.is_dir()} == set()


BENCHMARKS = sorted(file.stem for file in (TESTS / "benchmarks").glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_can_be_started(name: str) -> None:
    """They are too long to be run here, but what they import must be there."""
    importlib.import_module(f"tests.benchmarks.{name}")
