"""What a reduction costs: each method against the slice oracle with the same schedule, in one interleaved run.

    python -m tests.benchmarks.reduction            (make bench)

DeiT-Small with random weights (speed does not depend on them), ONNX Runtime, two threads. Rounds in random order, one engine alive at a time;
each round times every graph once, methods next to their oracle, and speed-ups are paired by round (geometric mean, 95 % bootstrap interval). Time over the
oracle's of 1.00 means that the reduction itself is free. PyTorch with fused attention runs in the same rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_tprune.build.export import FORMS, SharedWeights, export, save
from edge_tprune.cli.common import out, parse_list, parse_pairs, progress_bar
from edge_tprune.cli.views import table
from edge_tprune.models.loading import load_model
from edge_tprune.reduction import plan, registry
from edge_tprune.reduction.host import PrunedViT, network_shape
from edge_tprune.runtime.engine import open_engine
from edge_tprune.statistics import Interval, paired_speedup

Run = Callable[[], object]
Opener = Callable[[], "contextmanager[Run]"]


def time_turn(run: Run, seconds: float, fewest: int) -> float:
    """Median latency in ms of one turn, after a warm-up of half its length."""
    begin, warmed = time.perf_counter(), 0
    while warmed < fewest // 2 or time.perf_counter() - begin < seconds / 2:
        run()
        warmed += 1
    gc.disable()
    latencies: list[float] = []
    begin = time.perf_counter()
    while len(latencies) < fewest or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        latencies.append((time.perf_counter() - start) * 1e3)
    gc.enable()
    return statistics.median(latencies)


def measure(
    openers: dict[str, Opener], oracles: Mapping[str, str], rounds: int, seconds: float, fewest: int, title: str
) -> dict[str, dict[int, float]]:
    """Per contestant the median latency (ms) of each round.

    Contestants that share an oracle (`oracles`: contestant -> oracle) are timed directly after one another: a shared machine changes its pace within
    a round.
    """
    order = random.Random(0)
    groups: dict[str, list[str]] = {}
    for name in openers:
        groups.setdefault(oracles.get(name, name), []).append(name)
    medians: dict[str, dict[int, float]] = {name: {} for name in openers}
    with progress_bar(title) as advance:
        for number in range(rounds):
            turns = [
                name for group in order.sample(list(groups.values()), len(groups)) for name in order.sample(group, len(group))
            ]
            for position, name in enumerate(turns):
                advance(f"{title}: {name}", number * len(openers) + position, rounds * len(openers))
                with openers[name]() as run:
                    medians[name][number] = time_turn(run, seconds, fewest)
    return medians


def graph_opener(file: Path, image: np.ndarray, threads: int) -> Opener:
    """Opens an ONNX Runtime engine for one turn."""

    @contextmanager
    def opened() -> Iterator[Run]:
        with open_engine(file, "onnxruntime", threads=threads) as engine:
            yield lambda: engine.run(image)

    return opened


def torch_opener(model: torch.nn.Module, image: np.ndarray, threads: int) -> Opener:
    """Runs the unpruned timm model itself, which uses PyTorch's fused attention."""

    @contextmanager
    def opened() -> Iterator[Run]:
        torch.set_num_threads(threads)
        tensor = torch.from_numpy(image)
        with torch.inference_mode():
            yield lambda: model(tensor)

    return opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument(
        "--methods",
        default="zero_tprune bat evit ppt ats dpc_knn mctf@4,7,10 tome diffrate gtp mctf pitome vote_mix pomt random",
        help="with spaces; mctf@4,7,10 removes tokens at other blocks, zero_tprune:merge=false has another option",
    )
    parser.add_argument("--budget", type=float, default=0.65)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.6, help="length of one turn")
    parser.add_argument("--json", type=Path, help="also write every round's medians here")
    options = parser.parse_args()

    loaded = load_model(options.model, "random")
    shape = tuple(loaded.preprocessing["input_size"])
    methods = options.methods.split()
    schedules: dict[str, tuple[int, ...]] = {}
    for method in methods:
        name, blocks, _ = chosen(method)
        schedules[method] = plan(loaded.model, name, budget=options.budget, blocks=blocks).tokens
    everything: dict[str, object] = {}
    console = out()
    for batch in map(int, options.batches.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            image = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
            with (Path(folder) / "weights.bin").open("wb") as stream:
                weights = SharedWeights(stream, "weights.bin")

                def opener(
                    method: str,
                    schedule: tuple[int, ...],
                    batch: int = batch,
                    image: np.ndarray = image,
                    weights: SharedWeights = weights,
                    folder: str = folder,
                ) -> Opener:
                    name, _, given = chosen(method)
                    pruned = PrunedViT(loaded.model, registry.method(name), schedule, given)
                    model = export(pruned, FORMS["onnxruntime"], batch, shape)
                    weights.externalise(model)
                    weights.stream.flush()
                    file = Path(folder) / f"{method}-{'-'.join(map(str, schedule))}.onnx"
                    save(model, file)
                    return graph_opener(file, image, options.threads)

                full = network_shape(loaded.model).full_schedule()
                openers = {"unpruned": opener("none", full), "PyTorch": torch_opener(loaded.model, image, options.threads)}
                oracles: dict[tuple[int, ...], str] = {}
                for method, schedule in schedules.items():
                    openers[method] = opener(method, schedule)
                    if schedule not in oracles:
                        oracles[schedule] = f"slice like {method}"
                        openers[oracles[schedule]] = opener("slice", schedule)
            held_to = {method: oracles[schedule] for method, schedule in schedules.items()}
            medians = measure(openers, held_to, options.rounds, options.seconds, 10 if batch == 1 else 5, f"batch {batch}")
        everything[f"batch {batch}"] = medians
        result = table(
            f"{options.model}, budget {options.budget:g}, batch {batch}, {options.threads} threads, {options.rounds} rounds"
        )
        result.add_column("method")
        for heading in ("median ms", "oracle ms", "speed-up", "oracle's speed-up", "time over the oracle"):
            result.add_column(heading, justify="right")
        for method, schedule in schedules.items():
            oracle = oracles[schedule]
            result.add_row(
                method,
                f"{statistics.median(medians[method].values()):.2f}",
                f"{statistics.median(medians[oracle].values()):.2f}",
                text(paired_speedup(medians["unpruned"], medians[method]), 2),
                text(paired_speedup(medians["unpruned"], medians[oracle]), 2),
                text(paired_speedup(medians[method], medians[oracle]), 3),
            )
        console.print(result)
        base = statistics.median(medians["unpruned"].values())
        faster = paired_speedup(medians["PyTorch"], medians["unpruned"])
        console.print(
            f"unpruned: {base:.2f} ms in ONNX Runtime, {statistics.median(medians['PyTorch'].values()):.2f} ms in PyTorch with fused attention: "
            f"the graph is {text(faster, 2)} times as fast"
        )
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


def chosen(method: str) -> tuple[str, list[int] | None, dict[str, Any]]:
    """A method's name, the blocks where it removes tokens (None: its own) and its options, from "mctf@4,7,10" or "zero_tprune:merge=false,votes=2"."""
    place, _, choice = method.partition(":")
    name, _, places = place.partition("@")
    blocks = parse_list(places, int, method) if places else None
    return name, blocks, registry.parse_options(registry.method(name), parse_pairs(choice.split(",") if choice else [], method))


def text(interval: Interval | None, digits: int) -> str:
    """1.42 (1.40 to 1.44)."""
    assert interval is not None
    if interval.low is None or interval.high is None:
        return f"{interval.value:.{digits}f}"
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


if __name__ == "__main__":
    main()
