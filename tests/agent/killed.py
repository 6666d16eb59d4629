"""Runs that are killed at random moments and resumed. More of them: python -m tests.agent.killed --kills 50"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edge_tprune.agent.profile import resume
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.record.lines import SAMPLES
from edge_tprune.record.reader import Run, read_run
from edge_tprune.record.summarize import summarize

KILLS = 4  #: in the test suite
_ROUNDS = 60

MEASURE = """
import sys
from pathlib import Path
from edge_tprune.agent.profile import profile, resume
from edge_tprune.agent.session import Interrupted
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.record.settings import RunRequest
bundle, out = Bundle.open(sys.argv[1]), Path(sys.argv[2])
request = RunRequest(threads=1, rounds=int(sys.argv[3]), seconds_per_round=0.01, warmup_seconds=0.0, baseline_seconds=0.05)
runs = list(out.glob("[0-9]*"))
try:
    resume(bundle, runs[0]) if runs else profile(bundle, out, request, budgets=["small"])
except Interrupted as interrupted:
    print(interrupted)
    sys.exit(130)
"""


def start(bundle_path: Path, out: Path, rounds: int = 10_000) -> subprocess.Popen[str]:
    """Measures into `out`, or goes on with the run that is there."""
    command = [sys.executable, "-c", MEASURE, str(bundle_path), str(out), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_turns(child: subprocess.Popen[str], out: Path, count: int) -> Path:
    """The profile in `out`, once it holds so many turns."""
    while child.poll() is None:
        for file in out.glob(f"[0-9]*/{SAMPLES}"):
            if file.read_bytes().count(b'"kind":"round"') >= count:
                return file.parent
        time.sleep(0.005)
    raise AssertionError(f"ended with {child.returncode} before it measured")


def kill_and_resume(bundle_path: Path, out: Path, moments: random.Random, kills: int) -> list[Run]:
    """Kills a run again and again, reads it after each, and resumes it; one that ended before it was killed makes place for another.

    Returns:
        Every run, complete.
    """
    finished: list[Run] = []
    done: list[tuple[int, str]] = []
    for _ in range(kills):
        place = out / str(len(finished))
        child = start(bundle_path, place, _ROUNDS)
        _wait_for_any(child, place, len(done) + moments.randrange(3))
        time.sleep(moments.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
        for path in place.glob("[0-9]*"):
            run = read_run(path)
            turns = [(turn.round, turn.budget) for turn in run.turns if turn.complete]
            assert turns[: len(done)] == done, "a turn was lost"
            assert len(set(turns)) == len(turns), "a turn was measured twice"
            summarize(run)
            done = turns
            if run.end == "complete":
                finished.append(run)
                done = []
    for path in (out / str(len(finished))).glob("[0-9]*"):
        resume(Bundle.open(bundle_path), path)
        finished.append(read_run(path))
    for run in finished:
        assert run.end == "complete"
        assert [(turn.round, turn.budget) for turn in run.turns] == [
            (number, name) for number, names in enumerate(run.document.settings.order) for name in names
        ]
        assert list(run.readings), "the sampler wrote nothing"
    return finished


def _wait_for_any(child: subprocess.Popen[str], out: Path, count: int) -> None:
    """Until so many turns are there, or the run has ended by itself."""
    while (
        child.poll() is None
        and sum(file.read_bytes().count(b'"kind":"round"') for file in out.glob(f"[0-9]*/{SAMPLES}")) < count
    ):
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from .tiny_bundle import SIZES, write_bundle

    with tempfile.TemporaryDirectory() as directory:
        bundle = write_bundle(Path(directory) / "bundle", SIZES)
        runs = kill_and_resume(bundle, Path(directory) / "out", random.Random(options.seed), options.kills)
    sessions, turns = sum(run.sessions for run in runs), sum(len(run.turns) for run in runs)
    print(f"killed {options.kills} times, readable each time; {len(runs)} runs of {sessions} sessions, all {turns} turns there")


if __name__ == "__main__":
    main()
