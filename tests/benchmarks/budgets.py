"""What several open budgets cost: memory of one and of all in ONNX Runtime, shared and not, and the time of an inference either way.

    python -m tests.benchmarks.budgets BUNDLE

Memory is the proportional set size (PSS) that loading and running added, each figure from a fresh process: pages of the weight file that
sessions share count once.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.predictor import Predictor
from edge_tprune.runtime.engine import open_engine, runtime_version


def pss_mb() -> float:
    found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def measure(path: Path, count: int, shared: bool) -> None:
    bundle = Bundle.open(path, verify=False)
    image = bundle.golden().images[0]
    names = [budget.name for budget in bundle.budgets][:count]
    runtime_version("onnxruntime")
    before = pss_mb()
    files = {name: bundle.path / bundle.budget(name).artifact("onnxruntime", "fp32").file for name in names}
    model = Predictor(bundle, {n: open_engine(f, "onnxruntime", threads=1, shared=shared) for n, f in files.items()}, names[0])
    for name in names:
        model.budget = name
        for _ in range(2):
            model.run(image)
    added = pss_mb() - before
    model.budget = names[0]
    times = []
    for _ in range(30):
        begin = time.process_time()
        model.run(image)
        times.append(1e3 * (time.process_time() - begin))
    print(f"{len(names)} {'shared' if shared else 'each alone':10} {added:6.1f} MB  {median(times):6.1f} ms of CPU", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int)
    parser.add_argument("--shared", action="store_true")
    options = parser.parse_args()
    if options.count is not None:
        measure(options.bundle, options.count, options.shared)
        return
    for count in (1, 5):
        for shared in ([], ["--shared"]):
            command = [sys.executable, "-m", "tests.benchmarks.budgets", str(options.bundle), "--count", str(count), *shared]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
