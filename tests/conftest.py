"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every machine and every run, so that what passed once passes in CI. To look for new ones:
# HYPOTHESIS_PROFILE=explore make test
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory with real weights and images, or a skip that says where it was looked for."""
    named = os.environ.get("EDGE_TPRUNE_TEST_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (path / "weights").is_dir():
        pytest.skip(f"no test weights and images at {path} (set EDGE_TPRUNE_TEST_DATA)")
    return path


@pytest.fixture(autouse=True)
def _one_thread_per_worker() -> None:
    """Tests run in parallel: more than one torch thread each only makes them fight."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def no_gpu() -> None:
    """For tests of what is said where there is no GPU."""
    from edge_tprune.errors import EdgeTPruneError
    from edge_tprune.runtime.cuda import open_cuda

    try:
        open_cuda()
    except EdgeTPruneError:
        return
    pytest.skip("this machine has a GPU")
