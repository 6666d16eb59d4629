"""Energy measured in real time on simulated boards, against what they really dissipated.

    python -m tests.benchmarks.real_time --boards orin-nano,agx-orin,thor --out out/real-time

The boards' power follows the CPU load of this machine, whoever causes it; their files are read by the sampler as a board's would be,
and the simulator's own account gives the truth of each timed window.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from edge_tprune.agent.profile import profile
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from edge_tprune.record.summarize import summarize
from edge_tprune.simulator.truth import true_energy_mj
from tests.agent.tiny_bundle import write_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", default="orin-nano,agx-orin,thor,xavier-nx,nano")
    parser.add_argument("--bundle", type=Path, help="a tiny one is made by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the profiles here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = options.bundle or write_bundle(directory / "bundle", {"1.0": (20, 512), "0.5": (10, 512)})
        print("board       budget  true mJ  measured mJ (95 %)          error   inside")
        for board in options.boards.split(","):
            compare(board, Bundle.open(bundle), directory / board, options.out or directory / "out", options.rounds)


def compare(board: str, bundle: Bundle, tree: Path, out: Path, rounds: int) -> None:
    """One run, and a line per budget."""
    command = [sys.executable, "-m", "edge_tprune.simulator", board, str(tree)]
    simulator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert simulator.stdout is not None
    simulator.stdout.readline()  # it is there
    try:
        run = read_run(profile(bundle, out, RunRequest(rounds=rounds), root=tree))
    finally:
        simulator.terminate()
        simulator.wait(60)
    energy: dict[str, float] = defaultdict(float)
    images: dict[str, int] = defaultdict(int)
    for turn in run.turns:
        energy[turn.budget] += true_energy_mj(tree, turn.t_ns, turn.end_ns)
        images[turn.budget] += len(turn.latency_ns) * bundle.batch
    for name, budget in summarize(run).budgets.items():
        truth, found = energy[name] / images[name], budget.energy.gross_mj_per_image
        if found is None:
            print(f"{board:11} {name:7} {truth:7.3f}  {budget.energy.status}: {budget.energy.reason}")
            continue
        text = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
        inside = not found.excludes(truth)
        print(f"{board:11} {name:7} {truth:7.3f}  {text:26} {100 * (found.value / truth - 1):+6.2f} % {inside!s:>7}")


if __name__ == "__main__":
    main()
