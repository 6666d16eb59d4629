"""What a reduction costs: each method against the slice oracle with the same schedule, in one interleaved run.

    python -m tests.benchmarks.reduction            (make bench)

DeiT-Small with random weights (speed does not depend on them), ONNX Runtime. Rounds in random order, one engine alive at a time; each round times
every method directly before or after its oracle, the unpruned graph, the unpruned graph with exact savings, the graph that PyTorch exports of timm's
model, and PyTorch with fused attention. Methods and oracles have the same exact savings: by default those of `edge-tprune build`. Ratios are paired by
round: geometric means without the fifth of five or more rounds at either end, in which a neighbour on a shared machine struck one of the two, with 95 %
intervals. Time over the oracle's of 1.00 means that the reduction itself is free. With two threads it looks dearer than with one: the network's large
products spread over both, the small operations of a reduction run on one.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.stats import mstats

from edge_tprune.cli.parsing import parse_list, parse_pairs
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_line, print_note, print_table
from edge_tprune.export.exporter import quiet_exporter
from edge_tprune.export.graph import FORMS, INPUT, SharedWeights, export, save
from edge_tprune.files import write_json, write_text
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.host import PrunedViT, network_shape
from edge_tprune.runtime.engine import open_engine
from edge_tprune.statistics import Interval
from edge_tprune.telemetry.environment import read_environment

Run = Callable[[], object]
Opener = Callable[[], AbstractContextManager[Run]]

TRIMMED = 0.2  #: share of the rounds left out at either end


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


@dataclass(frozen=True)
class Latencies:
    """Median latencies (ms) by round of one batch size and number of threads."""

    alone: dict[str, dict[int, float]]  #: of the unpruned contestants
    methods: dict[str, dict[int, float]]
    oracles: dict[str, dict[int, float]]  #: by method: its oracle's, beside it


def measure(
    alone: Mapping[str, Opener],
    methods: Mapping[str, tuple[Opener, Opener]],
    rounds: int,
    seconds: float,
    fewest: int,
    title: str,
) -> Latencies:
    """Times all contestants in every round; methods, given with their oracles, directly before or after these: a shared machine changes its pace."""
    order = random.Random(0)
    found = Latencies({n: {} for n in alone}, {n: {} for n in methods}, {n: {} for n in methods})
    with show_progress(title) as advance:
        for number in range(rounds):
            names = order.sample([*alone, *methods], len(alone) + len(methods))
            for position, name in enumerate(names):
                advance(f"{title}: {name}", number * len(names) + position, rounds * len(names))
                if name in alone:
                    turns = [(alone[name], found.alone[name])]
                else:
                    turns = [(methods[name][0], found.methods[name]), (methods[name][1], found.oracles[name])]
                for opener, medians in order.sample(turns, len(turns)):
                    with opener() as run:
                        medians[number] = time_turn(run, seconds, fewest)
    return found


def paired_ratio(slower: Mapping[int, float], faster: Mapping[int, float]) -> Interval:
    """How many times as long `slower` takes, paired by round: the trimmed geometric mean, with Tukey and McLaughlin's interval."""
    logs = np.log([slower[number] / faster[number] for number in sorted(slower)])
    value = float(np.exp(stats.trim_mean(logs, TRIMMED)))
    if len(logs) == 1:
        return Interval(value, None, None)
    low, high = np.exp(mstats.trimmed_mean_ci(logs, (TRIMMED, TRIMMED)))
    return Interval(value, float(low), float(high))


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


@dataclass
class Graphs:
    """ONNX Runtime's graphs of one network and batch size, in one folder, with shared weights."""

    loaded: LoadedModel
    batch: int
    folder: Path
    weights: SharedWeights
    oracles: dict[tuple[int, ...], Path] = field(default_factory=dict)  #: by schedule

    def write(self, method: str, schedule: tuple[int, ...], given: Mapping[str, Any]) -> Path:
        """The graph of a method's name, schedule and options."""
        return self.save(PrunedViT(self.loaded.model, registry.method(method), schedule, given), method)

    def save(self, pruned: PrunedViT, method: str) -> Path:
        """The graph of a pruned network; the method is for its name."""
        model = export(pruned, FORMS["onnxruntime"], self.batch, self.loaded.preprocessing.input_size)
        self.weights.externalise(model)
        file = self.folder / f"{sum(1 for _ in self.folder.iterdir())}-{method}.onnx"
        save(model, file)
        return file

    def export_plainly(self) -> Path:
        """The unpruned graph as `torch.onnx.export` writes timm's model, by its defaults."""
        file = self.folder / "plain.onnx"
        with torch.no_grad(), warnings.catch_warnings(), quiet_exporter():
            warnings.simplefilter("ignore")
            images = torch.zeros(self.batch, *self.loaded.preprocessing.input_size)
            torch.onnx.export(self.loaded.model, (images,), file, dynamo=True, input_names=[INPUT], verbose=False)
        return file

    def beside_oracle(self, method: str, budget: float, exact_savings: bool) -> tuple[Path, Path]:
        """The graphs of a method as `chosen` reads it, and of the slice oracle with its schedule."""
        name, _, given = chosen(method)
        schedule = self.schedule(method, budget, exact_savings)
        if schedule not in self.oracles:
            self.oracles[schedule] = self.write("slice", schedule, {})
        return self.write(name, schedule, given), self.oracles[schedule]

    def schedule(self, method: str, budget: float, exact_savings: bool) -> tuple[int, ...]:
        """Tokens after each block."""
        name, blocks, _ = chosen(method)
        return solve_schedule(self.loaded.model, name, budget=budget, blocks=blocks, exact_savings=exact_savings).tokens


@contextmanager
def open_graphs(loaded: LoadedModel, batch: int) -> Iterator[Graphs]:
    """A folder for graphs, which goes in the end."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "weights.bin").open("wb") as stream:
        yield Graphs(loaded, batch, Path(folder), SharedWeights(stream, "weights.bin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument(
        "--methods",
        default="zero_tprune bat evit ppt ats dpc_knn mctf@4,7,10 tome diffrate gtp mctf pitome vote_mix pomt random",
        help="with spaces; mctf@4,7,10 removes tokens at other blocks, zero_tprune:merge=false has another option",
    )
    parser.add_argument("--budget", type=float, default=0.65)
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--seconds", type=float, default=0.1, help="least length of one turn")
    parser.add_argument(
        "--exact-savings",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let the last block compute only what the head reads, in methods and oracles",
    )
    parser.add_argument("--stages", action="store_true", help="time nothing in turn; say what each stage consists of")
    parser.add_argument("--out", type=Path, help="folder for every round's medians and the tables (with --stages: out/stages)")
    options = parser.parse_args()

    loaded = load_model(options.model, "random")
    methods = options.methods.split()
    if options.stages:
        from tests.benchmarks.stages import write_stages

        write_stages(loaded, methods, options.budget, options.batches, options.exact_savings, options.out or Path("out/stages"))
        return
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)  # better refused now than after all rounds
    shape = loaded.preprocessing.input_size
    runs: list[dict[str, Any]] = []
    schedules: dict[str, tuple[int, ...]] = {}
    for batch in options.batches:
        with open_graphs(loaded, batch) as graphs:
            whole = network_shape(loaded.model)
            unpruned = graphs.write("none", whole.full_schedule(), {})
            exact = graphs.write("none", whole.exact_schedule(), {})
            plain = graphs.export_plainly()
            schedules = {method: graphs.schedule(method, options.budget, options.exact_savings) for method in methods}
            pairs = {method: graphs.beside_oracle(method, options.budget, options.exact_savings) for method in methods}
            image = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
            for threads in options.threads:
                title = f"{options.model}, budget {options.budget:g}, batch {batch}, {threads} thread{'s'[: threads - 1]}"
                found = measure(
                    {
                        "unpruned": graph_opener(unpruned, image, threads),
                        "exact": graph_opener(exact, image, threads),
                        "plain": graph_opener(plain, image, threads),
                        "PyTorch": torch_opener(loaded.model, image, threads),
                    },
                    {
                        method: (graph_opener(ours, image, threads), graph_opener(oracle, image, threads))
                        for method, (ours, oracle) in pairs.items()
                    },
                    options.rounds,
                    options.seconds,
                    5 if batch == 1 else 3,
                    title,
                )
                runs.append({"batch": batch, "threads": threads, **asdict(found)})
                show(found, f"{title}, {options.rounds} rounds")
    if options.out:
        document = {
            "model": options.model,
            "budget": options.budget,
            "exact_savings": options.exact_savings,
            "rounds": options.rounds,
            "made_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": asdict(read_environment()),
            "schedules": schedules,
            "runs": runs,
        }
        write_json(options.out / "reduction.json", document)
        write_text(options.out / "reduction.md", describe(document))
        print_note(f"wrote {options.out}/reduction.json, reduction.md")


def show(found: Latencies, title: str) -> None:
    """The table of one batch size and number of threads."""
    labels = ("median ms", "oracle ms", "speed-up", "oracle's speed-up", "over PyTorch's export", "time over the oracle")
    rows = []
    unpruned, exact, plain, pytorch = (found.alone[name] for name in ("unpruned", "exact", "plain", "PyTorch"))
    for method, own in found.methods.items():
        oracle = found.oracles[method]
        milliseconds = [f"{statistics.median(times.values()):.2f}" for times in (own, oracle)]
        pairs = ((unpruned, own), (unpruned, oracle), (plain, own), (own, oracle))
        rows.append([method, *milliseconds, *(text(paired_ratio(*pair)) for pair in pairs)])
    print_table(Table([Heading("method"), *(Heading(label, right=True) for label in labels)], rows, title))
    print_line(
        f"exact savings alone: {statistics.median(exact.values()):.2f} ms, {text(paired_ratio(unpruned, exact))} times as fast"
    )
    print_line(
        f"as PyTorch exports it: {statistics.median(plain.values()):.2f} ms; the unpruned graph here is {text(paired_ratio(plain, unpruned))} times as fast"
    )
    print_line(
        f"unpruned: {statistics.median(unpruned.values()):.2f} ms in ONNX Runtime, {statistics.median(pytorch.values()):.2f} ms in PyTorch with "
        f"fused attention: the graph is {text(paired_ratio(pytorch, unpruned))} times as fast"
    )


KEPT = {
    "Time over the slice oracle's": ("methods", "oracles"),
    "How many times as fast as the unpruned graph": ("unpruned", "methods"),
    "How many times as fast as the graph that PyTorch exports of timm's model": ("plain", "methods"),
}  #: the tables of `describe`: what is divided by what


def describe(document: Mapping[str, Any]) -> str:
    """The tables of a kept run, in Markdown: a row for each method, a column for each batch size and number of threads."""
    runs = document["runs"]
    heads = [f"batch {run['batch']}, {run['threads']} thread{'s'[: run['threads'] - 1]}" for run in runs]
    parts = [f"{document['model']}, budget {document['budget']:g}, ONNX Runtime, {document['rounds']} rounds, 95 % intervals."]
    for title, (above, below) in KEPT.items():
        names = list(document["schedules"])
        rows = [[f"`{name}`", *(text(paired_ratio(*ratio(run, name, above, below))) for run in runs)] for name in names]
        if above in runs[0]["alone"]:
            exact = [text(paired_ratio(*ratio(run, "", above, "exact"))) for run in runs]
            rows.insert(0, ["exact savings alone", *exact])
        lines = [["method", *heads], ["---", *("---:" for _ in runs)], *rows]
        parts.append(f"{title}:\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def ratio(run: Mapping[str, Any], method: str, above: str, below: str) -> tuple[dict[int, float], dict[int, float]]:
    """The latencies by round that a table divides, of one kept run."""

    def find(name: str) -> dict[int, float]:
        times: Mapping[str, float] = run["alone"][name] if name in run["alone"] else run[name][method]
        return {int(number): milliseconds for number, milliseconds in times.items()}

    return find(above), find(below)


def chosen(method: str) -> tuple[str, list[int] | None, dict[str, Any]]:
    """A method's name, the blocks where it removes tokens (None: its own) and its options, from "mctf@4,7,10" or "zero_tprune:merge=false,votes=2"."""
    place, _, choice = method.partition(":")
    name, _, places = place.partition("@")
    blocks = parse_list(places, int, method) if places else None
    return (
        name,
        blocks,
        registry.parse_options(registry.any_method(name), parse_pairs(choice.split(",") if choice else [], method)),
    )


def positive(given: str) -> int:
    """A number from 1, for argparse."""
    number = int(given)
    if number < 1:
        raise ValueError(given)
    return number


def text(interval: Interval) -> str:
    """1.042 (1.040 to 1.044)."""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


if __name__ == "__main__":
    main()
