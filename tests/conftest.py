"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings


def _keep_to_one_core() -> None:
    """Gives each of as many workers as there are cores a core of its own, for its child processes too.

    Else every worker, and every process it starts, computes in as many threads as there are cores: they spin while they wait for each
    other, and a build that takes five seconds takes two minutes.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if not worker.startswith("gw") or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if workers >= len(cores):
        os.sched_setaffinity(0, {cores[(int(worker.removeprefix("gw")) + os.getppid()) % len(cores)]})


_keep_to_one_core()

# The same examples on every machine and every run, so that what passed once passes in CI. To look for new ones:
# HYPOTHESIS_PROFILE=explore make test
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


COLLECTED = pytest.StashKey[set[Path]]()  #: files of all tests that were found, those of other marks included


def pytest_itemcollected(item: pytest.Item) -> None:
    """Notes the file."""
    item.config.stash.setdefault(COLLECTED, set()).add(item.path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory with real weights and images, or a skip that says where it was looked for."""
    named = os.environ.get("EDGE_TPRUNE_TEST_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (path / "weights").is_dir():
        pytest.skip(f"no test weights and images at {path} (set EDGE_TPRUNE_TEST_DATA)")
    return path


_PROCESS_LIMIT_S = 240.0


@pytest.fixture(scope="session", autouse=True)
def _limit_waits() -> Iterator[None]:
    """A process that a test waits for without a limit has four minutes; then it is killed and the test fails.

    A test that is stopped by pytest-timeout would otherwise wait once more in `Popen.__exit__`, for ever.
    """
    wait, communicate = subprocess.Popen.wait, subprocess.Popen.communicate

    def limited_wait(self: subprocess.Popen[Any], timeout: float | None = None) -> int:
        try:
            return wait(self, timeout=_PROCESS_LIMIT_S if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            if timeout is None:
                self.kill()
            raise

    def limited_communicate(self: subprocess.Popen[Any], input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        try:
            return communicate(self, input=input, timeout=_PROCESS_LIMIT_S if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            if timeout is None:
                self.kill()
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", limited_wait)
        patch.setattr(subprocess.Popen, "communicate", limited_communicate)
        yield


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


@pytest.fixture(scope="session")
def journey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, profile) after build, eval and profile. Made once for all workers, of which each has a copy; tests that change it take one of their own."""
    from tests.mutations import make_journey

    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole-journey"
    with FileLock(made.with_suffix(".lock")):
        if not (made / "done").exists():
            made.mkdir()
            make_journey(made)
            (made / "done").touch()
    mine = Path(shutil.copytree(made, tmp_path_factory.mktemp("journey") / "whole"))
    (profile,) = (mine / "profiles").iterdir()
    return mine / "bundle", profile
