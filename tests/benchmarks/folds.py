"""What the exact rewriting of a graph's layers gains: a network without it, with `edge_tprune.export.folds` and `edge_tprune.export.rows`, part by part.

    python -m tests.benchmarks.folds --batch 8 --rounds 30
    python -m tests.benchmarks.folds --model deit_tiny_patch16_224 --budget 0.65

ONNX Runtime, random weights. In every round each way takes its turn directly before or after the network as it is, each turn in a new session: where in
memory a session's weights come to lie changes its pace by up to 4 %, for as long as it lives. Ratios are paired by round: geometric means without the
fifth of the rounds at either end, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnx

from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.export.folds import fold, split_products, store_parts
from edge_tprune.export.rows import write_rows
from edge_tprune.models.loading import load_model
from edge_tprune.reduction.host import network_shape
from tests.benchmarks.reduction import Graphs, graph_opener, measure, open_graphs, paired_ratio, positive, text


def keep(model: onnx.ModelProto, values: object = None) -> None:
    """No rewriting."""


def split(model: onnx.ModelProto) -> None:
    """A product each, with all biases."""
    store_parts(model)
    split_products(model)


WAYS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "as it is": (keep, keep),
    "one product each": (split, keep),
    "and tokens as rows": (split, write_rows),
    "and fewer biases": (fold, write_rows),
}


def write(graphs: Graphs, way: str, budget: float) -> Path:
    """The graph of a network in one of the `WAYS`: unpruned, or pruned by `zero_tprune`."""
    folds, rows = WAYS[way]
    with mock.patch("edge_tprune.export.graph.fold", folds), mock.patch("edge_tprune.export.graph.write_rows", rows):
        if budget == 1:
            return graphs.write("none", network_shape(graphs.loaded.model).full_schedule(), {})
        return graphs.write("zero_tprune", graphs.schedule("zero_tprune", budget, exact_savings=True), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=60)
    parser.add_argument("--seconds", type=float, default=0.2, help="least length of one turn")
    options = parser.parse_args()
    loaded = load_model(options.model, "random")
    image = np.random.default_rng(0).normal(size=(options.batch, *loaded.preprocessing.input_size)).astype(np.float32)
    title = (
        f"{options.model}, budget {options.budget:g}, batch {options.batch}, {options.threads} threads, {options.rounds} rounds"
    )
    with open_graphs(loaded, options.batch) as graphs:
        first, *others = ((way, graph_opener(write(graphs, way, options.budget), image, options.threads)) for way in WAYS)
        pairs = {way: (opener, first[1]) for way, opener in others}
        found = measure({}, pairs, options.rounds, options.seconds, 5 if options.batch == 1 else 3, title)
    rows = []
    for way, own in found.methods.items():
        before = found.oracles[way]
        medians = [f"{statistics.median(times.values()):.2f}" for times in (before, own)]
        rows.append([way, *medians, text(paired_ratio(before, own))])
    print_table(
        Table([Heading("layers"), *(Heading(label, right=True) for label in ("as it is, ms", "ms", "speed-up"))], rows, title)
    )


if __name__ == "__main__":
    main()
