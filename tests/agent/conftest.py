from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edge_tprune.agent.profile import profile
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.settings import RunRequest

from .tiny_bundle import SIZES, write_bundle

MakeBundle = Callable[[Mapping[str, tuple[int, int]]], Path]


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the budgets of `SIZES`; tests must not change it."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", SIZES)


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Writes a bundle that the test may change."""
    return lambda sizes: write_bundle(tmp_path / "bundle", sizes)


@pytest.fixture(scope="session")
def finished(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real, complete profile of `bundle`; tests must not change it."""
    out = tmp_path_factory.mktemp("profiles")
    request = RunRequest(threads=1, rounds=5, seconds_per_round=0.05, warmup_seconds=0.01, baseline_seconds=0.1, seed=3)
    return read_run(profile(bundle, out, request))
