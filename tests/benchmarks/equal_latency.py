"""What `fit` finds against every method at its own schedule, at the same measured latency.

    python -m tests.benchmarks.equal_latency --model deit_tiny_patch16_224 --weights w.safetensors --photos photos --data imagenet-sample

The limits are the latencies of one method (`--anchor`) at its own schedules for `--budgets`: measured turn by turn with the unpruned network, and given to
`edge-tprune fit` as `--min-speedup`, so that the pace of the machine does not count; once in float32, and once with the precisions of `--fit-precision`.
Then every method gets the budget at which its own schedule takes as long as the network that fit found in float32: its graphs at budgets around the anchor's
are timed, each directly before or after that network, the budget is interpolated, and its graph is built and timed in the same way; methods are in float32. KL
from the unpruned network is of the exported graphs in ONNX Runtime on the images of `--data`, which the search never saw; differences from fit's answer are
paired by image, times by turn. 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.errors import EdgeTPruneError
from edge_tprune.export.settings import decide
from edge_tprune.files import write_json
from edge_tprune.models.data import Dataset, open_dataset
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import network_shape
from edge_tprune.runtime.engine import default_threads, open_engine
from edge_tprune.statistics import Interval, mean_interval, paired_difference
from edge_tprune.telemetry.environment import read_environment
from tests.benchmarks.judge import is_resolved, show_interval
from tests.benchmarks.reduction import Graphs, Opener, chosen, graph_opener, measure, open_graphs, paired_ratio, positive
from tests.benchmarks.tables import write_table

LADDER = (0.82, 0.91, 1.0, 1.12)  #: shares of the anchor's budget, at which graphs are timed to find the budget of a latency
#: what fit is called in the table: in float32, and choosing among the precisions of `--fit-precision`
FLOAT, ANY = "fit", "fit --precision"
Row = dict[str, Any]


class Bench:
    """Graphs of one network, timed and judged."""

    def __init__(self, loaded: LoadedModel, graphs: Graphs, threads: int) -> None:
        self.loaded, self.graphs, self.threads = loaded, graphs, threads
        self.pixels = np.random.default_rng(0).normal(size=(1, *loaded.preprocessing.input_size)).astype(np.float32)
        self.unpruned = graphs.write("none", network_shape(loaded.model).full_schedule(), {})

    def opener(self, file: Path) -> Opener:
        """An engine for one turn."""
        return graph_opener(file, self.pixels, self.threads)

    def write(self, method: str, budget: float) -> tuple[Path, tuple[int, ...]] | None:
        """The graph of a method as `chosen` reads it at a budget, and its tokens; None where it cannot be so small."""
        name, blocks, options = chosen(method)
        try:
            settings = decide(self.loaded, name, budgets=[budget], blocks=blocks, options=options)
        except EdgeTPruneError:
            return None
        found = next(each for each in settings.budgets if each.schedule.requested == budget)
        return self.graphs.save(found.module, name), found.schedule.tokens

    def speedup(self, file: Path, rounds: int, seconds: float) -> Interval:
        """Of a graph over the unpruned network, turn by turn."""
        times = measure({}, {"anchor": (self.opener(self.unpruned), self.opener(file))}, 2 * rounds, seconds, 5, "anchor")
        return paired_ratio(times.methods["anchor"], times.oracles["anchor"])

    def ladders(
        self, methods: Sequence[str], budget: float, beside: Path, rounds: int, seconds: float
    ) -> dict[str, list[tuple[float, float]]]:
        """For each method (budget, latency as a share of that of the graph `beside`), budgets rising."""
        files: dict[tuple[str, float], Path] = {}
        with show_progress("graphs") as advance:
            for number, method in enumerate(methods):
                advance(method, number, len(methods))
                for share in LADDER:
                    if (found := self.write(method, share * budget)) is not None:
                        files[method, share * budget] = found[0]
        pairs = {f"{method} {at}": (self.opener(file), self.opener(beside)) for (method, at), file in files.items()}
        times = measure({}, pairs, rounds, seconds, 5, "finding budgets")
        result: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
        for method, at in files:
            name = f"{method} {at}"
            result[method].append((at, paired_ratio(times.methods[name], times.oracles[name]).value))
        return result

    def divergences(self, files: Mapping[str, Path], dataset: Dataset) -> dict[str, NDArray[np.float64]]:
        """KL (N,) in nats from the unpruned network on every image."""
        transform = self.loaded.transform()
        with ThreadPoolExecutor(self.threads) as pool:
            images = list(pool.map(lambda n: np.asarray(transform(dataset[n][0]))[None], range(len(dataset))))

        def answers(file: Path) -> torch.Tensor:
            with open_engine(file, "onnxruntime", threads=self.threads) as engine:
                logits = np.concatenate([engine.run(image) for image in images])
            return torch.from_numpy(logits).double().log_softmax(-1)

        expected = answers(self.unpruned)
        found = {}
        with show_progress("images") as advance:
            for number, (name, file) in enumerate(files.items()):
                advance(name, number, len(files))
                found[name] = (expected.exp() * (expected - answers(file))).sum(-1).clamp_min(0).numpy()
        return found


def budget_of_equal(points: Sequence[tuple[float, float]]) -> float | None:
    """The budget whose latency is that of the other graph, on the line through the logarithms of the points of `Bench.ladders`; None far outside them."""
    if len(points) < 2:
        return None
    budgets, shares = (np.log(values) for values in zip(*points))
    slope, intercept = np.polyfit(shares, budgets, 1)
    found = float(np.exp(intercept))
    return found if slope > 0 and points[0][0] / 1.1 <= found <= points[-1][0] * 1.1 else None


@dataclass(frozen=True)
class Fitted:
    """What `edge-tprune fit` answered."""

    file: Path  #: the graph
    precision: str
    method: str
    tokens: tuple[int, ...]


def run_fit(options: argparse.Namespace, speedup: float) -> dict[str, Fitted]:
    """The answers of `edge-tprune fit` to a speed-up, by name."""
    out = options.out / "fit"
    command = [sys.executable, "-m", "edge_tprune", "fit", options.model, "--data", options.photos, "--out", str(out)]
    command += ["--weights", options.weights] if options.weights else []
    command += ["--methods", options.fit_methods, "--images", str(options.images), "--trials", str(options.trials)]
    command += ["--threads", str(options.threads), "--rounds", str(options.fit_rounds), "--json", "--force"]

    def fit(precision: str) -> Fitted:
        asked = [*command, "--min-speedup", f"{speedup:.4f}", "--precision", precision]
        done = subprocess.run(asked, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise SystemExit(f"fit at a speed-up of {speedup:.2f} ended with {done.returncode}")
        answer = json.loads(done.stdout)
        bundle, chosen = Bundle.open(Path(answer["bundle"])), answer["answer"]["chosen"]
        budget = bundle.budget(chosen["budget"].partition("@")[0])
        method = budget.method or bundle.manifest.method
        file = bundle.path / budget.artifact("onnxruntime", chosen["precision"]).file
        return Fitted(file, chosen["precision"], method.name, tuple(budget.schedule))

    found = {FLOAT: fit("fp32")}
    if options.fit_precision != "fp32":
        found[ANY] = fit(options.fit_precision)
    return found


def compare(
    bench: Bench, fitted: Mapping[str, Fitted], anchor: float, dataset: Dataset, options: argparse.Namespace
) -> list[Row]:
    """A row for each network that fit found, and one for each method at the latency of the one in float32."""
    beside, answer = fitted[FLOAT].file, list(fitted)[-1]
    ladders = bench.ladders(options.methods.split(), anchor, beside, max(3, options.rounds // 2), options.seconds)
    files = {name: each.file for name, each in fitted.items()}
    rows: dict[str, Row] = {
        name: {
            "network": name,
            "precision": each.precision,
            "method": each.method,
            "budget": None,
            "tokens": list(each.tokens),
            "answer": name == answer,
        }
        for name, each in fitted.items()
    }
    for method, points in ladders.items():
        budget = budget_of_equal(points)
        if budget is None or (found := bench.write(method, budget)) is None:
            rows[method] = {"network": method, "failed": "no budget near the anchor's takes as long", "measured": points}
            continue
        files[method], tokens = found
        rows[method] = {"network": method, "method": method, "budget": budget, "tokens": list(tokens)}
    openers = {name: (bench.opener(file), bench.opener(beside)) for name, file in files.items() if name != FLOAT}
    latencies = measure(
        {"unpruned": bench.opener(bench.unpruned), FLOAT: bench.opener(beside)},
        openers,
        options.rounds,
        options.seconds,
        5,
        "latency",
    )
    divergences = bench.divergences(files, dataset)
    macs = network_shape(bench.loaded.model)
    for name in files:
        mine = latencies.alone[FLOAT] if name == FLOAT else latencies.methods[name]
        rows[name]["median_ms"] = statistics.median(mine.values())
        rows[name]["macs_share"] = macs.share(rows[name]["tokens"])
        rows[name]["kl_nats"] = mean_interval(divergences[name]).to_json()
        if name != FLOAT:
            rows[name]["time_over_fit"] = paired_ratio(mine, latencies.oracles[name]).to_json()
        if name != answer:
            rows[name]["kl_over_fit"] = paired_difference(divergences[name], divergences[answer]).to_json()
    return list(rows.values())


HEADINGS = (
    "limit",
    "network",
    "blocks that remove",
    "MACs (%)",
    "ms",
    "time, of fit's in fp32",
    "KL (nats)",
    "KL less the answer's",
    "resolved",
)
TEXT = ("limit", "network", "blocks that remove", "resolved")


def cells(limit: str, row: Row, full: int) -> list[str]:
    """A row of the table."""
    if "failed" in row:
        return [limit, f"`{row['network']}`", row["failed"], *[""] * (len(HEADINGS) - 3)]
    before, blocks = full, []
    for number, after in enumerate(row["tokens"][:-1], 1):
        blocks += [number] if after < before else []
        before = after
    shown = [show_interval(row["time_over_fit"], 3, "") if "time_over_fit" in row else "", "", ""]
    if "kl_over_fit" in row:
        shown[1:] = [show_interval(row["kl_over_fit"], 4), "yes" if is_resolved(row["kl_over_fit"]) else "no"]
    name = f"`{row['network']}`" if "answer" not in row else f"`{row['network']}`: {row['method']}, {row['precision']}"
    numbers = [f"{100 * row['macs_share']:.1f}", f"{row['median_ms']:.2f}", shown[0], show_interval(row["kl_nats"], 4, "")]
    return [limit, name, ", ".join(map(str, blocks)), *numbers, *shown[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--photos", default="reference", help="for the search, without labels")
    parser.add_argument("--data", default="reference", help="images to judge on")
    parser.add_argument("--limit", type=int, help="judge on so many of them")
    parser.add_argument("--anchor", default="zero_tprune")
    parser.add_argument("--budgets", default="0.65,0.5", help="of the anchor, whose latencies are the limits")
    names = [m for m in sorted({**registry.methods(), **registry.baselines()}) if m not in ("none", "slice")]
    parser.add_argument("--methods", default=" ".join(names), help="with spaces; as for tests.benchmarks.methods")
    parser.add_argument("--fit-methods", default="zero_tprune,bat,mctf,diffrate,tome", help="that fit chooses among")
    parser.add_argument("--fit-precision", default="fp32,int8", help="that fit chooses among, after it was asked for float32")
    parser.add_argument("--images", type=int, default=200, help="of --photos, for the search")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--fit-rounds", type=positive, default=20)
    parser.add_argument("--rounds", type=positive, default=12)
    parser.add_argument("--seconds", type=float, default=0.1, help="least length of one turn")
    parser.add_argument("--threads", type=positive, default=default_threads())
    parser.add_argument("--out", type=Path, default=Path("out/equal-latency"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(options.model, options.weights)
    dataset = open_dataset(options.data, int(loaded.model.num_classes), options.limit)
    document: dict[str, Any] = {
        "model": loaded.name,
        "weights_sha256": loaded.weights_sha256,
        "data": {"name": dataset.name, "images": len(dataset), "sha256": dataset.fingerprint},
        "made_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threads": options.threads,
        "environment": asdict(read_environment()),
        "speedups": {},
        "rows": {},
    }
    full = network_shape(loaded.model).tokens
    title = f"{loaded.name}, {len(dataset)} images of {dataset.name}, ONNX Runtime, {options.threads} threads"
    lines: list[list[str]] = []
    with open_graphs(loaded, 1) as graphs:
        bench = Bench(loaded, graphs, options.threads)
        for budget in parse_list(options.budgets, float, "--budgets"):
            name = f"{options.anchor} at {budget:g}"
            if (anchor := bench.write(options.anchor, budget)) is None:
                raise SystemExit(f"{options.anchor} cannot reach {budget:g}")
            speedup = bench.speedup(anchor[0], options.rounds, options.seconds)
            print_note(f"{name}: {speedup.value:.3f} times as fast as the unpruned network")
            fitted = run_fit(options, speedup.value)
            rows = compare(bench, fitted, budget, dataset, options)
            rows.sort(key=lambda row: (row.get("kl_nats") or {"value": 1e9})["value"])
            document["speedups"][name], document["rows"][name] = speedup.to_json(), rows
            lines += [cells(name, row, full) for row in rows]
            # After every limit: what took a quarter of an hour is kept if the next one is interrupted.
            write_json(options.out / "equal_latency.json", document)
            write_table(options.out / "equal_latency.md", HEADINGS, lines, title, text=TEXT)


if __name__ == "__main__":
    main()
