"""What the exact rewriting of a graph's layers gains: a network without it, with the parts of `edge_tprune.export.folds`, and with `edge_tprune.export.rows`.

    python -m tests.benchmarks.folds --batch 8 --rounds 30
    python -m tests.benchmarks.folds --model deit_tiny_patch16_224 --budget 0.65

ONNX Runtime, random weights. The graphs take turns in a random order, one inference at a time, in sessions that do not spin; ratios are paired by round:
geometric means without the fifth of the rounds at either end, with 95 % intervals. With one thread what is timed is the CPU time of that thread,
which other programs on a shared machine disturb less than the clock on the wall; with more threads it is the wall's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime

from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.export.folds import fold, split_products, store_parts
from edge_tprune.export.rows import write_rows
from edge_tprune.models.loading import load_model
from edge_tprune.reduction.host import network_shape
from tests.benchmarks.reduction import Graphs, open_graphs, paired_ratio, positive, text


def keep(model: onnx.ModelProto, values: object = None) -> None:
    """No rewriting."""


def split(model: onnx.ModelProto) -> None:
    """A product each, with all biases."""
    store_parts(model)
    split_products(model)


WAYS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "as it is": (keep, keep),
    "one product each": (split, keep),
    "and fewer biases": (fold, keep),
    "and tokens as rows": (fold, write_rows),
}


def write(graphs: Graphs, way: str, budget: float) -> Path:
    """The graph of a network in one of the `WAYS`: unpruned, or pruned by `zero_tprune`."""
    folds, rows = WAYS[way]
    with mock.patch("edge_tprune.export.graph.fold", folds), mock.patch("edge_tprune.export.graph.write_rows", rows):
        if budget == 1:
            return graphs.write("none", network_shape(graphs.loaded.model).full_schedule(), {})
        return graphs.write("zero_tprune", graphs.schedule("zero_tprune", budget, exact_savings=True), {})


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session whose idle threads do not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=60)
    options = parser.parse_args()
    loaded = load_model(options.model, "random")
    image = np.random.default_rng(0).normal(size=(options.batch, *loaded.preprocessing.input_size)).astype(np.float32)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    order, took = random.Random(0), defaultdict[str, dict[int, float]](dict)
    with open_graphs(loaded, options.batch) as graphs, show_progress(options.model) as advance:
        sessions = {way: open_session(write(graphs, way, options.budget), options.threads) for way in WAYS}
        for number in range(-2, options.rounds):  # two to warm up
            advance(options.model, max(number, 0), options.rounds)
            for way in order.sample(list(sessions), len(sessions)):
                begin = clock()
                sessions[way].run(None, {"image": image})
                if number >= 0:
                    took[way][number] = (clock() - begin) * 1e3
    rows = [
        [way, f"{statistics.median(took[way].values()):.2f}", text(paired_ratio(took["as it is"], took[way]))] for way in WAYS
    ]
    title = (
        f"{options.model}, budget {options.budget:g}, batch {options.batch}, {options.threads} threads, {options.rounds} rounds"
    )
    print_table(Table([Heading("layers"), Heading("median ms", right=True), Heading("speed-up", right=True)], rows, title))


if __name__ == "__main__":
    main()
