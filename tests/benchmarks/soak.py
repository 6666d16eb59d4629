"""Whether measuring for a long time takes more and more memory: profiles a tiny bundle on a simulated board and fits lines.

    python -m tests.benchmarks.soak --minutes 30

Prints the slope of the resident memory of the measuring process and of its sampler, in MB per hour, each with the standard error of
the fit, over the last two thirds of the time (the first fills caches). Exit code 1 where a slope is beyond the limit and its error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from edge_tprune.record.document import RUN
from edge_tprune.record.lines import SAMPLES
from edge_tprune.record.reader import read_run
from tests.agent.tiny_bundle import write_bundle

LIMIT_MB_PER_HOUR = 1.0  #: 24 MB a day
_EVERY_S = 2.0

MEASURE = """
import sys
from pathlib import Path
from edge_tprune.agent.profile import profile
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.record.settings import RunRequest
request = RunRequest(threads=1, rounds=int(sys.argv[4]), seconds_per_round=1.5, warmup_seconds=0.1, baseline_seconds=1.0)
profile(Bundle.open(sys.argv[1]), Path(sys.argv[2]), request, root=Path(sys.argv[3]))
"""


def slope(times_s: list[float], megabytes: list[float]) -> tuple[float, float]:
    """(MB per hour, standard error) of a straight line through the last two thirds."""
    first = len(times_s) // 3
    hours, values = np.array(times_s[first:]) / 3600, np.array(megabytes[first:])
    (rise, _), covariance = np.polyfit(hours, values, 1, cov=True)
    return float(rise), float(np.sqrt(covariance[0, 0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--board", default="orin-nano")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return soak(Path(directory), options.board, options.minutes)


def soak(directory: Path, board: str, minutes: float) -> int:
    """Runs in `directory` and prints what it found."""
    bundle = write_bundle(directory / "bundle", {"1.0": (2, 512), "0.5": (1, 256)})
    tree = directory / "board"
    simulator = subprocess.Popen(
        [sys.executable, "-m", "edge_tprune.simulator", board, str(tree)], stdout=subprocess.PIPE, text=True
    )
    assert simulator.stdout is not None
    simulator.stdout.readline()  # it is there
    rounds = max(3, round(minutes * 60 / 2 / 1.75))
    command = [sys.executable, "-c", MEASURE, str(bundle), str(directory / "out"), str(tree), str(rounds)]
    measuring = subprocess.Popen(command)
    memory: dict[str, tuple[list[float], list[float]]] = {"measuring process": ([], []), "sampler": ([], [])}
    begin = time.monotonic()
    try:
        process = psutil.Process(measuring.pid)
        while measuring.poll() is None:
            time.sleep(_EVERY_S)
            now_s = time.monotonic() - begin
            if not list((directory / "out").glob(f"[0-9]*/{RUN}")):
                continue
            try:
                watched = {"measuring process": process}
                for child in process.children():
                    if "edge_tprune.agent.sampler" in child.cmdline():
                        watched["sampler"] = child
                for name, one in watched.items():
                    memory[name][0].append(now_s)
                    memory[name][1].append(one.memory_info().rss / 1e6)
            except psutil.Error:
                break  # it has just ended
    finally:
        simulator.terminate()
        measuring.wait()
    (path,) = (file.parent for file in (directory / "out").glob(f"[0-9]*/{RUN}"))
    run = read_run(path, keep=False)
    size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    observer = json.loads((path / "summary.json").read_text())["observer"]
    print(
        f"{(time.monotonic() - begin) / 60:.1f} minutes, {len(run.turns)} turns, {size:.0f} MB of record ({SAMPLES} and others)"
    )
    print(f"the run is {run.end}; the sampler took {observer['cpu_percent']:.2f} % of one core")
    failed = measuring.returncode != 0
    for name, (times_s, megabytes) in memory.items():
        # The end is left out: the summary is made then, in memory of its own.
        rise, error = slope(times_s[:-5], megabytes[:-5])
        print(f"{name}: {rise:+.2f} ± {error:.2f} MB per hour, {megabytes[len(megabytes) // 3]:.1f} MB resident")
        failed |= rise - 2 * error > LIMIT_MB_PER_HOUR
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
