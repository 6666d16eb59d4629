"""What measuring costs: CPU time of the sampler, and how much slower an engine runs while it samples.

    python -m tests.benchmarks.observer

The sampler reads the files of a simulated board, every source at its usual rate. Blocks with it running and with it stopped
(SIGSTOP) alternate, in a random order for each pair; the ratio of their median latencies is paired and has a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

from edge_tprune.agent.loads import Timed, time_load, warm_up
from edge_tprune.agent.observer import Observer
from edge_tprune.record.lines import SAMPLES, SENSORS
from edge_tprune.record.log import clock_ns
from edge_tprune.runtime.engine import default_threads, open_engine
from edge_tprune.statistics import paired_speedup
from tests.agent.tiny_bundle import IMAGE, write_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a block")
    parser.add_argument("--board", default="orin-nano")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory), options.board, options.pairs, options.seconds)


def measure(directory: Path, board: str, pairs: int, seconds: float) -> None:
    """Runs in `directory` and prints what it found."""
    bundle = write_bundle(directory / "bundle", {"1.0": (20, 512)})
    tree = directory / "board"
    subprocess.run(
        [sys.executable, "-m", "edge_tprune.simulator", board, str(tree), "--seconds", "1"],
        check=True,
        capture_output=True,
    )
    (directory / SAMPLES).write_text("")
    images = [np.random.default_rng(0).standard_normal(IMAGE).astype(np.float32)]
    medians: dict[bool, dict[int, float]] = {True: {}, False: {}}
    used_s = elapsed_s = 0.0
    order = random.Random(0)
    with open_engine(bundle / "onnx/1.0.onnx", "onnxruntime", threads=default_threads()) as engine, Observer(tree) as observer:
        observer.begin(directory, 0)
        sampler = psutil.Process(observer._process.pid)
        warm_up(engine.run, images, 1.0)
        for pair in range(pairs):
            for sampling in order.sample([True, False], 2):
                sampler.send_signal(signal.SIGCONT if sampling else signal.SIGSTOP)
                warm_up(engine.run, images, 0.1)
                latency: list[int] = []

                def keep(_: int, part: Timed, latency: list[int] = latency) -> None:
                    latency += part.latency_ns

                before_s, begin_ns = sum(sampler.cpu_times()[:2]), clock_ns()
                _, _, rest = time_load(engine.run, images, seconds, None, keep)
                if sampling:
                    used_s += sum(sampler.cpu_times()[:2]) - before_s
                    elapsed_s += (clock_ns() - begin_ns) / 1e9
                medians[sampling][pair] = statistics.median(latency + rest.latency_ns) / 1e6
        sampler.send_signal(signal.SIGCONT)
    slower = paired_speedup(medians[True], medians[False])
    assert slower is not None
    assert slower.low is not None
    assert slower.high is not None
    readings = sum(json.loads(line)["kind"] == "sensors" for line in (directory / SENSORS).read_text().splitlines())
    metrics = sum(len(source.metrics) for source in observer.sources)
    print(f"{len(observer.sources)} sources, {metrics} metrics, {readings} readings, in {pairs} pairs of {seconds:g} s blocks")
    print(f"sampler: {100 * used_s / elapsed_s:.2f} % of one core")
    change = [100 * (value - 1) for value in (slower.value, slower.low, slower.high)]
    print(f"latency while sampling: {change[0]:+.2f} % ({change[1]:+.2f} to {change[2]:+.2f})")


if __name__ == "__main__":
    main()
