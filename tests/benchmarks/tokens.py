"""How the cost of one removal grows with the number of tokens: each method beside the slice oracle, in one interleaved run.

    python -m tests.benchmarks.tokens --out out/tokens

A ViT-S/14 of two blocks with random weights, whose first block leaves four fifths of the tokens, in ONNX Runtime. The cost is a method's time less that of the
same network with `slice`, which only cuts: both are timed directly one after the other, in rounds in random order; the median of the differences.
To the costs at all sizes `fixed + per_token n + per_pair n^2` is fitted, n being the tokens before the removal, with no term below 0
(non-negative least squares of relative errors). What a term is of the cost at the largest size says what grows. `of a network` is the cost beside
the time of the same network with twelve blocks and no removal, at 1370 tokens. Memory is how much the resident set grows at its peak in PyTorch, less
that of the network without a removal, and `map` the attention map that a method reads, of one image.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from edge_tprune.agent.probe import _PeakMemory
from edge_tprune.cli.progress import show_progress
from edge_tprune.files import write_json
from edge_tprune.models.loading import LoadedModel, ModelOptions, load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT, network_shape
from tests.benchmarks.reduction import graph_opener, measure, open_graphs, positive
from tests.benchmarks.tables import write_table

MODEL, DEPTH = "vit_small_patch14_dinov2", 12
TERMS = ("fixed", "per_token", "per_pair")


def open_network(size: int, depth: int) -> LoadedModel:
    """The network for images of `size` pixels."""
    return load_model(MODEL, options=ModelOptions("random", img_size=(size, size), model_kwargs={"depth": depth}))


def time_costs(size: int, methods: list[str], threads: int, rounds: int, seconds: float) -> tuple[int, dict[str, float], float]:
    """(tokens, ms over the slice oracle by method, ms of the network with twelve blocks and no removal)."""
    loaded = open_network(size, 2)
    tokens = network_shape(loaded.model).tokens
    left = (round(0.8 * tokens),) * 2
    pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    with open_graphs(loaded, 1) as graphs:
        oracle = graph_opener(graphs.write("slice", left, {}), pixels, threads)
        pairs = {name: (graph_opener(graphs.write(name, left, {}), pixels, threads), oracle) for name in methods}
        whole = open_network(size, DEPTH)
        with open_graphs(whole, 1) as others:
            unpruned = others.write("none", (tokens,) * DEPTH, {})
            alone = {"unpruned": graph_opener(unpruned, pixels, threads)}
            found = measure(alone, pairs, rounds, seconds, 3, f"{tokens} tokens, {threads} threads")
    costs = {
        name: statistics.median(own - beside for own, beside in zip(times.values(), found.oracles[name].values()))
        for name, times in found.methods.items()
    }
    return tokens, costs, statistics.median(found.alone["unpruned"].values())


def fit_growth(costs: Mapping[int, float]) -> dict[str, float]:
    """Milliseconds of each of `TERMS`, from tokens -> milliseconds."""
    tokens = np.array(list(costs), dtype=float)
    times = np.maximum(list(costs.values()), 1e-3)
    terms = np.stack([np.ones_like(tokens), tokens, tokens**2], 1)
    found, _ = nnls(terms / times[:, None], np.ones(len(times)))
    return dict(zip(TERMS, map(float, found)))


def grown_mb(size: int, methods: list[str]) -> dict[str, float]:
    """How much more the resident set grows with each method than without a removal, in MB, in PyTorch."""
    model = open_network(size, 2).model
    tokens = network_shape(model).tokens
    images = torch.randn(1, 3, size, size)

    def peak(method: str, left: int) -> float:
        network = PrunedViT(model, registry.method(method), (left, left), {})
        with torch.inference_mode():
            network(images)
            gc.collect()
            memory = _PeakMemory()
            network(images)
            return (memory.grown_bytes() or 0) / 1e6

    whole = peak("none", tokens)
    return {name: max(0.0, peak(name, round(0.8 * tokens)) - whole) for name in methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=positive, nargs="+", default=[196, 266, 336, 518], help="pixels, multiples of 14")
    names = [name for name in sorted(registry.methods()) if name not in ("none", "slice")]
    parser.add_argument("--methods", default=" ".join(names), help="with spaces")
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--seconds", type=float, default=0.1, help="least length of one turn")
    parser.add_argument("--out", type=Path, default=Path("out/tokens"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = options.methods.split()
    with show_progress("memory"):
        memory = grown_mb(max(options.sizes), methods)
    document: dict[str, Any] = {
        "model": MODEL,
        "made_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": [],
    }
    for threads in options.threads:
        costs: dict[str, dict[int, float]] = {name: {} for name in methods}
        for size in sorted(options.sizes):
            tokens, found, unpruned = time_costs(size, methods, threads, options.rounds, options.seconds)
            for name, cost in found.items():
                costs[name][tokens] = cost
        for name in methods:
            reads = 4e-6 * 6 * tokens**2 if registry.ATTENTION in registry.method(name).needs else None
            document["rows"].append(
                {
                    "method": name,
                    "threads": threads,
                    "cost_ms": costs[name],
                    "growth_ms": fit_growth(costs[name]),
                    "of_network": costs[name][tokens] / unpruned,
                    "memory_mb": memory[name],
                    "map_mb": reads,
                }
            )
    write_json(options.out / "tokens.json", document)
    write(options.out / "tokens.md", document["rows"])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """The table."""
    sizes = list(rows[0]["cost_ms"])
    most = int(sizes[-1])
    headings = ["method", "threads", *(f"{tokens} tokens (ms)" for tokens in sizes), f"of a network at {most} (%)"]
    headings += ["fixed (ms)", "per token (µs)", "per pair (ns)", "memory (MB)", "map (MB)"]
    lines = []
    for row in rows:
        fixed, token, pair = (row["growth_ms"][term] for term in TERMS)
        cells = [f"`{row['method']}`", str(row["threads"]), *(f"{cost:.2f}" for cost in row["cost_ms"].values())]
        cells += [f"{100 * row['of_network']:.1f}", f"{fixed:.2f}", f"{1e3 * token:.2f}", f"{1e6 * pair:.2f}"]
        cells += [f"{row['memory_mb']:.0f}", "–" if row["map_mb"] is None else f"{row['map_mb']:.0f}"]
        lines.append(cells)
    write_table(file, headings, lines, f"{MODEL} with random weights: one removal, beyond the slice oracle's", text=("method",))


if __name__ == "__main__":
    main()
