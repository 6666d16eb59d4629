"""How well the latency model predicts schedules that it never saw.

    python -m tests.benchmarks.latency              (make bench)

Random weights (speed does not depend on them), ONNX Runtime. The probes of `build --probe` and schedules drawn at random are timed in the same rounds,
in random order, one engine alive at a time; what a round did to all graphs is taken out (`analysis.latency.round_effects`). The model is made of the probes
alone and predicts the others. Its errors are ratios within one run: a machine that is faster or slower as a whole does not count.
Latencies of a graph are taken as `edge-tprune latency` takes them (`medians` of its turns), and once more as the `least` of its turns: on a
shared machine neighbours only ever add time, and what they add is not the model's error.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.analysis.latency import round_effects
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.export.graph import FORMS, SharedWeights, export, save
from edge_tprune.models.loading import load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT, network_shape
from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency_fit import Measured, fit_cost
from edge_tprune.schedule.probes import Probe, design_probes
from tests.benchmarks.reduction import graph_opener, time_turn

UNSEEN = "unseen-"  #: how the names of graphs begin that the model never sees


def draw_schedules(shape: NetworkShape, methods: dict[str, Any], count: int, rng: random.Random, lowest: int) -> list[Probe]:
    """Schedules of one to five stages at random blocks, each of which keeps 55 to 97 per cent; the methods take turns."""
    found: list[Probe] = []
    while len(found) < count:
        name = list(methods)[len(found) % len(methods)]
        chosen = set(rng.sample(range(1, shape.blocks), rng.randint(1, 5)))
        tokens, after = shape.tokens, []
        for block in range(1, shape.blocks + 1):
            if block in chosen:
                tokens = max(round(tokens * rng.uniform(0.55, 0.97)), methods[name](tokens), lowest)
            after.append(tokens)
        schedule = tuple(after) if shape.read_tokens is None else (*after[:-1], shape.read_tokens)
        if all(schedule != other.tokens for other in found):
            found.append(Probe(f"{UNSEEN}{len(found) + 1}", name, schedule))
    return found


def measure(
    files: list[Path], image: np.ndarray, threads: int, rounds: int, seconds: float, order: random.Random
) -> list[dict[int, float]]:
    """Median latency in ms per graph and round."""
    found: list[dict[int, float]] = [{} for _ in files]
    with show_progress("measuring") as advance:
        for number in range(rounds):
            for done, place in enumerate(order.sample(range(len(files)), len(files))):
                advance(f"round {number + 1}", number * len(files) + done, rounds * len(files))
                with graph_opener(files[place], image, threads)() as run:
                    found[place][number] = time_turn(run, seconds, fewest=4)
    return found


def least(by_round: Sequence[Mapping[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The least of all turns of each graph, and how far the least of every other turn is from it: its noise."""
    turns = [list(rounds.values()) for rounds in by_round]
    halves = np.array([[min(values[::2]), min(values[1::2] or values)] for values in turns])
    return halves.min(axis=1), np.abs(halves[:, 0] - halves[:, 1]) / 2


def judge(run: Mapping[str, Any], shape: NetworkShape) -> list[list[str]]:
    """The rows of one batch size and number of threads: the model of the probes against the other graphs, by every estimate of a graph's latency."""
    by_round = [{int(number): ms for number, ms in graph["ms_by_round"].items()} for graph in run["graphs"]]
    estimates = {"medians": round_effects(by_round), "least": least(by_round)}
    return [
        [str(run["batch"]), str(run["threads"]), name, *errors_of(run["graphs"], *found, shape)]
        for name, found in estimates.items()
    ]


def errors_of(graphs: Sequence[Mapping[str, Any]], values: np.ndarray, errors: np.ndarray, shape: NetworkShape) -> list[str]:
    """Cells about the model of the probes, given the latency and its standard error of every graph, in ms."""
    measured = [
        Measured(graph["method"], tuple(graph["tokens"]), float(value), float(error))
        for graph, value, error in zip(graphs, values, errors)
    ]
    unseen = [one for one, graph in zip(measured, graphs) if graph["name"].startswith(UNSEEN)]
    probes = [one for one, graph in zip(measured, graphs) if not graph["name"].startswith(UNSEEN)]
    model = fit_cost(shape, "p50_ms", probes)
    off, held = [], 0
    for one in unseen:
        known = model.predict(shape, one.method, one.schedule)
        assert known is not None, one
        off.append(abs(known.value / one.cost - 1))
        held += not known.excludes(one.cost)
    noise = np.median([one.noise / one.cost for one in measured])
    shares = [np.median(off), max(off), held / len(off), model.reach, noise]
    return [str(len(probes)), str(len(unseen)), f"{measured[0].cost:.2f}", *(f"{100 * share:.2f}" for share in shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--methods", default="zero_tprune evit", help="with spaces")
    parser.add_argument("--schedules", type=int, default=20, help="that the model never sees")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.1, help="least length of one turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write everything measured here")
    parser.add_argument("--read", type=Path, help="measure nothing: judge what --json wrote")
    options = parser.parse_args()
    kept = json.loads(options.read.read_text()) if options.read else {"model": options.model, "runs": run_all(options)}
    if options.json:
        options.json.write_text(json.dumps(kept) + "\n")
    shape = network_shape(load_model(kept["model"], "random").model)
    labels = (
        "batch", "threads", "of turns", "probes", "unseen", "unpruned (ms)", "median error (%)", "worst (%)", "interval holds (%)",
        "interval ± (%)", "noise (%)",
    )  # fmt: skip
    rows = [row for run in kept["runs"] for row in judge(run, shape)]
    print_table(Table([Heading(label, right=True) for label in labels], rows, kept["model"]))


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Exports and times everything: one entry per batch size and number of threads."""
    loaded = load_model(options.model, "random")
    shape, rng = network_shape(loaded.model), random.Random(options.seed)
    methods = {
        name: partial(registry.method(name).fewest, prefix_tokens=shape.prefix_tokens) for name in options.methods.split()
    }
    probes = design_probes(shape, methods)
    lowest = min(min(probe.tokens[:-1]) for probe in probes)
    graphs = [*probes, *draw_schedules(shape, methods, options.schedules, rng, lowest)]
    found = []
    for batch in options.batches:
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "weights.bin").open("wb") as stream:
            weights, files = SharedWeights(stream, "weights.bin"), []
            with show_progress("exporting") as advance:
                for done, graph in enumerate(graphs):
                    advance(graph.name, done, len(graphs))
                    module = PrunedViT(loaded.model, registry.method(graph.method), graph.tokens, {})
                    model = export(module, FORMS["onnxruntime"], batch, loaded.preprocessing.input_size)
                    weights.externalise(model)
                    files.append(Path(folder) / f"{graph.name}.onnx")
                    save(model, files[-1])
            stream.flush()
            image = np.random.default_rng(0).standard_normal((batch, *loaded.preprocessing.input_size), np.float32)
            for threads in options.threads:
                by_round = measure(files, image, threads, options.rounds, options.seconds, rng)
                described = [
                    {"name": g.name, "method": g.method, "tokens": g.tokens, "ms_by_round": r} for g, r in zip(graphs, by_round)
                ]
                found.append({"batch": batch, "threads": threads, "graphs": described})
    return found


if __name__ == "__main__":
    main()
