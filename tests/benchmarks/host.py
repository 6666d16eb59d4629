"""The host's own speed: how long a build takes and where, and what `eval` costs beside a bare ONNX Runtime session.

    python -m tests.benchmarks.host --model deit_small_patch16_224 --images 64 --data photos --rounds 5

builds five budgets with random weights (seconds of the wall and of the CPU, per step), then answers the same images with every budget in
three ways, round by round so that all see the same machine:

    decode   images read and prepared, with all threads: what `eval` cannot be faster than
    bare     one session after the other with all threads, on images that lie ready
    eval     `edge_tprune.bundle.evaluate.judge`, from image files to records

and prints images per second (one image through all budgets), with eval over bare.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import judge
from edge_tprune.export.builder import build
from edge_tprune.export.settings import decide
from edge_tprune.models.data import Dataset, open_images
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.runtime.engine import default_threads, open_engine
from edge_tprune.statistics import student_interval

BUDGETS = (1.0, 0.9, 0.8, 0.65, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--method", default="zero_tprune")
    parser.add_argument("--bundle", type=Path, help="evaluate this one and build none")
    parser.add_argument("--data", type=Path, help="image files; without them nothing is evaluated")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        given: Path | None = options.bundle
        bundle = Bundle.open(given) if given else time_build(options.model, options.method, Path(folder) / "bundle")
        if options.data is not None:
            compare(bundle, open_images(options.data).first(options.images), options.threads, options.rounds)


def time_build(model: str, method: str, out: Path) -> Bundle:
    """Builds five budgets and prints what each step took."""
    steps: list[tuple[str, float, float]] = []

    def begin(what: str) -> None:
        steps.append((what, time.perf_counter(), time.process_time()))

    begin("load the model")
    loaded: LoadedModel = load_model(model, "random")
    begin("decide")
    settings = decide(loaded, method, budgets=BUDGETS)
    bundle = build(loaded, settings, out, progress=lambda what, done, of: begin(what)).bundle
    begin("end")
    print(f"{model}, {method}, {len(BUDGETS)} budgets: seconds of the wall (of the CPU)")
    for (what, wall, cpu), (_, next_wall, next_cpu) in pairwise(steps):
        print(f"  {what:20} {next_wall - wall:6.2f} ({next_cpu - cpu:6.2f})")
    print(f"  {'in all':20} {steps[-1][1] - steps[0][1]:6.2f} ({steps[-1][2] - steps[0][2]:6.2f})")
    return bundle


def compare(bundle: Bundle, images: Dataset, threads: int, rounds: int) -> None:
    """Prints images per second, decoding alone, through bare sessions, and through `judge`."""
    preprocessing = bundle.manifest.preprocessing
    ready = [prepared(images, index, preprocessing)[None] for index in range(len(images) - len(images) % bundle.batch)]
    batches = [np.concatenate(ready[start : start + bundle.batch]) for start in range(0, len(ready), bundle.batch)]
    ways: dict[str, Callable[[], None]] = {
        "decode": lambda: decode(images, preprocessing, threads),
        "bare": lambda: run_bare(bundle, batches, threads),
        "eval": lambda: judge_all(bundle, images, threads),
    }
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, work in ways.items():
            begin = time.perf_counter()
            work()
            if number:  # the first round fills caches
                rates[name].append(len(images) / (time.perf_counter() - begin))
    print(f"{bundle.name}, {len(bundle.budgets)} budgets, {len(images)} images, {threads} threads: images per second")
    for name, values in rates.items():
        print(f"  {name:8} {median(values):8.2f} ({min(values):.2f} to {max(values):.2f})")
    ratio = student_interval(np.log(np.array(rates["eval"]) / np.array(rates["bare"])))
    low, high = (float("nan") if end is None else float(np.exp(end)) for end in (ratio.low, ratio.high))
    print(f"  eval over bare: {np.exp(ratio.value):.3f} ({low:.3f} to {high:.3f})")


def prepared(images: Dataset, index: int, preprocessing: Preprocessing) -> np.ndarray:
    """One image as a graph takes it, (3, H, W)."""
    return preprocessing(images[index][0])


def decode(images: Dataset, preprocessing: Preprocessing, threads: int) -> None:
    """Reads and prepares all images."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda index: prepared(images, index, preprocessing), range(len(images))):
            pass


def run_bare(bundle: Bundle, batches: Sequence[np.ndarray], threads: int) -> None:
    """All budgets, one session after the other."""
    for budget in bundle.budgets:
        with open_engine(bundle.path / budget.artifact("onnxruntime").file, "onnxruntime", threads=threads) as engine:
            for batch in batches:
                engine.run(batch)


def judge_all(bundle: Bundle, images: Dataset, threads: int) -> None:
    """As `eval` does."""
    judge(bundle, images, threads=threads, interval=student_interval)


if __name__ == "__main__":
    main()
