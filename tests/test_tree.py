"""The tests themselves: every file is collected, and the tests' folders are the rooms."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.conftest import COLLECTED

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "edge_tprune"


def test_every_test_file_is_collected(pytestconfig: pytest.Config) -> None:
    if {Path(given).resolve() for given in pytestconfig.args} != {TESTS}:
        pytest.skip("only a run of all tests says what is collected")
    assert pytestconfig.stash[COLLECTED] == set(TESTS.rglob("test_*.py"))


def test_tests_mirror_the_rooms() -> None:
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms - {folder.name for folder in TESTS.iterdir() if folder.is_dir()} == set()


BENCHMARKS = sorted(file.stem for file in (TESTS / "benchmarks").glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_can_be_started(name: str) -> None:
    """They are too long to be run here, but what they import must be there."""
    importlib.import_module(f"tests.benchmarks.{name}")
