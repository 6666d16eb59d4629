"""How well the latency model predicts schedules that it never saw.

    python -m tests.benchmarks.latency              (make bench)

Random weights (speed does not depend on them), ONNX Runtime. The probes of `build --probe` and schedules drawn at random are timed in the same rounds,
in random order, one engine alive at a time; what a round did to all graphs is taken out (`analysis.latency.round_effects`). The model is made of the probes
alone and predicts the others. Its errors are ratios within one run: a machine that is faster or slower as a whole does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.analysis.latency import round_effects
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_line, print_table
from edge_tprune.export.graph import FORMS, SharedWeights, export, save
from edge_tprune.models.loading import load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT, network_shape
from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency_fit import Measured, fit_cost
from edge_tprune.schedule.probes import Probe, design_probes
from tests.benchmarks.reduction import Run, graph_opener, time_turn


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
            found.append(Probe(f"unseen-{len(found) + 1}", name, schedule))
    return found


def measure(
    files: list[Path], image: np.ndarray, threads: int, rounds: int, turn: Callable[[Run], float], order: random.Random
) -> list[dict[int, float]]:
    """Median latency in ms per graph and round."""
    found: list[dict[int, float]] = [{} for _ in files]
    with show_progress("measuring") as advance:
        for number in range(rounds):
            for done, place in enumerate(order.sample(range(len(files)), len(files))):
                advance(f"round {number + 1}", number * len(files) + done, rounds * len(files))
                with graph_opener(files[place], image, threads)() as run:
                    found[place][number] = turn(run)
    return found


def cpu_turn(run: Run, seconds: float, fewest: int) -> float:
    """Median CPU time in ms of one run, over a turn of so many seconds of it: what other programs take is not counted."""
    times: list[float] = []
    run()
    while len(times) < fewest or sum(times) < 1e3 * seconds:
        begin = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - begin))
    return statistics.median(times)


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
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the CPU time of one thread, not the time that passes: on a busy machine"
    )
    parser.add_argument("--json", type=Path, help="also write everything measured here")
    options = parser.parse_args()

    if options.cpu_time:
        options.threads = [1]
    turn = partial(cpu_turn if options.cpu_time else time_turn, seconds=options.seconds, fewest=4)
    loaded = load_model(options.model, "random")
    shape, rng = network_shape(loaded.model), random.Random(options.seed)
    methods = {
        name: partial(registry.method(name).fewest, prefix_tokens=shape.prefix_tokens) for name in options.methods.split()
    }
    probes = design_probes(shape, methods)
    lowest = min(min(probe.tokens[:-1]) for probe in probes)
    graphs = [*probes, *draw_schedules(shape, methods, options.schedules, rng, lowest)]
    rows, kept = [], []
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
                by_round = measure(files, image, threads, options.rounds, turn, rng)
                values, errors = round_effects(by_round)
                measured = [
                    Measured(graph.method, graph.tokens, float(value), float(error))
                    for graph, value, error in zip(graphs, values, errors)
                ]
                found = fit_cost(shape, "p50_ms", measured[: len(probes)])
                off, held, noise = [], 0, []
                for one in measured[len(probes) :]:
                    known = found.predict(shape, one.method, one.schedule)
                    assert known is not None, one
                    off.append(abs(known.value / one.cost - 1))
                    held += not known.excludes(one.cost)
                    noise.append(one.noise / one.cost)
                rows.append(
                    [
                        batch, threads, len(probes), len(off), f"{measured[0].cost:.2f}", f"{100 * np.median(off):.2f}",
                        f"{100 * max(off):.2f}", f"{100 * held / len(off):.0f}", f"{100 * found.reach:.2f}", f"{100 * np.median(noise):.2f}",
                    ]
                )  # fmt: skip
                kept.append(
                    {
                        "batch": batch,
                        "threads": threads,
                        "graphs": [
                            {"name": g.name, "method": g.method, "tokens": g.tokens, "ms_by_round": r}
                            for g, r in zip(graphs, by_round)
                        ],
                    }
                )
    labels = (
        "batch", "threads", "probes", "unseen", "unpruned (ms)", "median error (%)", "worst (%)", "interval holds (%)",
        "interval ± (%)", "noise of one (%)",
    )  # fmt: skip
    print_table(
        Table([Heading(label, right=True) for label in labels], [[str(cell) for cell in row] for row in rows], options.model)
    )
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "methods": options.methods, "runs": kept}))
        print_line(f"wrote {options.json}")


if __name__ == "__main__":
    main()
