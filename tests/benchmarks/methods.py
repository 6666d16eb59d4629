"""Every method at every budget on one model: accuracy on the same images, cost against the slice oracle, in one table.

    python -m tests.benchmarks.methods                                       (make eval-methods; the reference model)
    make eval-methods MODEL=deit_tiny_patch16_224 WEIGHTS=w.safetensors DATA=imagenet-sample

Each method becomes a bundle (built and evaluated as `edge-tprune build` and `eval` do: what runs is the exported graph in ONNX Runtime), so a run that was
interrupted goes on where it stopped. Changes of top-1 are paired by image. Then all graphs are timed as `tests.benchmarks.reduction` does, each beside the
slice oracle of its schedule. `cost` is the time over that oracle's: 1.00 means that the reduction itself is free. Intervals are 95 % ones. The baseline
`resize` may cost less than its oracle, which embeds all patches and cuts them in block 1.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.evaluate import evaluate
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.errors import EdgeTPruneError
from edge_tprune.export.builder import build
from edge_tprune.export.graph import FORMS, SharedWeights, export, save
from edge_tprune.export.settings import decide
from edge_tprune.files import write_json
from edge_tprune.models.data import Dataset, open_dataset
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.runtime.engine import default_threads
from edge_tprune.statistics import Interval
from edge_tprune.telemetry.environment import read_environment
from tests.benchmarks.reduction import Latencies, Opener, chosen, graph_opener, measure, paired_ratio, positive
from tests.benchmarks.tables import write_table

Row = dict[str, Any]


def accuracy_of(
    loaded: LoadedModel, method: str, budgets: list[float], dataset: Dataset, folder: Path, threads: int, exact_savings: bool
) -> tuple[list[Row], Bundle | None]:
    """The rows of a method without their latencies, and its bundle; a row that says why where a budget cannot be.

    The method is a name, or one with other blocks or options than its default (`chosen`).
    """
    name, blocks, options = chosen(method)
    possible, rows = [1.0], []
    for budget in budgets:
        try:
            decide(loaded, name, budgets=[budget], blocks=blocks, options=options, exact_savings=exact_savings)
            possible.append(budget)
        except EdgeTPruneError as error:
            rows.append({"method": method, "budget": budget, "failed": str(error)})
    with show_progress(method) as advance:
        try:
            settings = decide(loaded, name, budgets=possible, blocks=blocks, options=options, exact_savings=exact_savings)
            bundle = build(loaded, settings, folder / method, progress=advance).bundle
        except EdgeTPruneError as error:
            return [*rows, *({"method": method, "budget": b, "failed": str(error)} for b in possible[1:])], None
        stored = [b.accuracy for b in bundle.budgets]
        if not all(a and a.data.sha256 == dataset.fingerprint for a in stored):
            bundle, _ = evaluate(
                bundle, dataset, threads=threads, progress=lambda done, of: advance(f"{method}: images", done, of)
            )
    stages = {budget.name: len(budget.module.reducers) for budget in settings.budgets}
    for built in bundle.budgets:
        if built.requested in (1.0, None):
            continue  # the unpruned network, and what it is with exact savings
        assert built.accuracy is not None
        known = ("top1_percent", "top1_change_points", "agreement_percent", "kl_nats")
        rows.append(
            {
                "method": method,
                "budget": built.requested,
                "options": dict(bundle.manifest.method.options),
                "tokens_before": bundle.manifest.model.tokens,
                "tokens": list(built.schedule),
                "stages": stages[built.name],
                "macs_share": built.macs_share,
                **{key: value for key, value in msgspec.to_builtins(built.accuracy).items() if key in known},
            }
        )
    return rows, bundle


def time_all(
    loaded: LoadedModel, rows: list[Row], bundles: dict[str, Bundle], folder: Path, rounds: int, seconds: float, threads: int
) -> Latencies:
    """Latencies of every row's graph, called "method budget", beside its oracle's, and of the unpruned one."""
    shape = loaded.preprocessing.input_size
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    graphs: dict[str, tuple[Opener, Opener]] = {}
    oracles: dict[tuple[int, ...], Opener] = {}
    (folder / "oracles").mkdir(exist_ok=True)
    with (folder / "oracles" / "weights.bin").open("wb") as stream, show_progress("oracles") as advance:
        weights = SharedWeights(stream, "weights.bin")
        for number, row in enumerate(rows):
            advance("oracles", number, len(rows))
            schedule = tuple(row["tokens"])
            if schedule not in oracles:
                model = export(PrunedViT(loaded.model, registry.method("slice"), schedule, {}), FORMS["onnxruntime"], 1, shape)
                weights.externalise(model)
                file = folder / "oracles" / f"{len(oracles)}.onnx"
                save(model, file)
                oracles[schedule] = graph_opener(file, image, threads)
            bundle = bundles[row["method"]]
            budget = next(b for b in bundle.budgets if b.requested == row["budget"])
            ours = graph_opener(bundle.path / budget.artifact("onnxruntime").file, image, threads)
            graphs[name_of(row)] = ours, oracles[schedule]
    bundle = next(iter(bundles.values()))
    assert bundle.unpruned is not None
    unpruned = graph_opener(bundle.path / bundle.unpruned.artifact("onnxruntime").file, image, threads)
    return measure({"unpruned": unpruned}, graphs, rounds, seconds, 5, "latency")


def name_of(row: Row) -> str:
    """A row among the latencies."""
    return f"{row['method']} {row['budget']:g}"


def add_latencies(rows: list[Row], found: Latencies) -> None:
    """Latency, speed-up over the unpruned graph and cost over the oracle, into the rows."""
    for row in rows:
        mine, oracle = found.methods[name_of(row)], found.oracles[name_of(row)]
        row["median_ms"] = statistics.median(mine.values())
        row["speedup"] = paired_ratio(found.alone["unpruned"], mine).to_json()
        row["cost"] = paired_ratio(mine, oracle).to_json()


HEADINGS = (
    "budget",
    "method",
    "stages",
    "MACs (%)",
    "top-1 (%)",
    "change (points)",
    "KL (nats)",
    "agreement (%)",
    "ms",
    "speed-up",
    "cost",
)


def cells(row: Row) -> list[str]:
    """A row of the table."""
    if "failed" in row:
        return [f"{row['budget']:g}", row["method"], row["failed"]] + [""] * (len(HEADINGS) - 3)
    interval = {
        key: Interval.from_json(row.get(key))
        for key in ("top1_change_points", "kl_nats", "agreement_percent", "speedup", "cost")
    }

    def shown(key: str, digits: int, sign: str = "") -> str:
        value = interval[key]
        if value is None:
            return "–"
        if value.low is None or value.high is None:
            return f"{value.value:{sign}.{digits}f}"
        return f"{value.value:{sign}.{digits}f} ({value.low:{sign}.{digits}f} to {value.high:{sign}.{digits}f})"

    return [
        f"{row['budget']:g}",
        row["method"],
        str(row["stages"]),
        f"{100 * row['macs_share']:.1f}",
        "–" if row["top1_percent"] is None else f"{row['top1_percent']:.1f}",
        shown("top1_change_points", 1, "+"),
        shown("kl_nats", 3),
        "–" if interval["agreement_percent"] is None else f"{interval['agreement_percent'].value:.1f}",
        f"{row['median_ms']:.2f}" if "median_ms" in row else "–",
        shown("speedup", 2),
        shown("cost", 3),
    ]


def picture(rows: list[Row], file: Path, title: str) -> None:
    """Change of top-1 against speed-up, a line per method, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    markers = "osD^v<>PX*phd"
    good = [r for r in rows if "failed" not in r and r["method"] != "slice" and r["top1_change_points"]]
    methods = sorted(
        {r["method"] for r in good},
        key=lambda m: -statistics.fmean(r["top1_change_points"]["value"] for r in good if r["method"] == m),
    )
    for number, method in enumerate(methods):
        points = sorted((r["speedup"]["value"], r["top1_change_points"]["value"]) for r in good if r["method"] == method)
        axes.plot(
            *zip(*points),
            marker=markers[number % len(markers)],
            label=method,
            color=plt.get_cmap("tab20")(number % 20),
            lw=1.2,
            ms=5,
        )
    axes.set(xlabel="speed-up over the unpruned graph", ylabel="change of top-1 (points)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    with matplotlib.rc_context({"svg.hashsalt": "edge-tprune"}):
        figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--data", help="images with labels; the reference task's for the reference model")
    parser.add_argument("--limit", type=int)
    names = [m for m in sorted({**registry.methods(), **registry.baselines()}) if m != "none"]
    everything = " ".join([*names, "evit@4,7,10", "tome@4,7,10", "mctf@4,7,10", "zero_tprune@4,7,10:merge=false"])
    parser.add_argument(
        "--methods",
        default=everything,
        help="with spaces; evit@4,7,10 removes tokens at other blocks, zero_tprune:merge=false has another option",
    )
    parser.add_argument("--budgets", default="0.8,0.65,0.5")
    parser.add_argument(
        "--exact-savings",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let the last block compute only what the head reads",
    )
    parser.add_argument("--rounds", type=int, choices=range(1000), metavar="N", default=10, help="0 leaves latencies out")
    parser.add_argument("--seconds", type=float, default=0.1, help="least length of one turn")
    parser.add_argument("--threads", type=positive, default=default_threads())
    parser.add_argument("--out", type=Path, help="out/methods-MODEL by default")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    folder = options.out or Path("out") / f"methods-{options.model}"
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_model(options.model, options.weights)
    dataset = open_dataset(options.data or "reference", loaded.model.num_classes, options.limit)
    if not dataset.labelled:
        raise SystemExit(f"{dataset.name} has no labels: give --data with one sub-directory per class")
    budgets = [budget for budget in parse_list(options.budgets, float, "--budgets") if budget != 1]
    rows: list[Row] = []
    bundles: dict[str, Bundle] = {}
    for method in options.methods.split():
        found, bundle = accuracy_of(loaded, method, budgets, dataset, folder, options.threads, options.exact_savings)
        rows += found
        if bundle is not None:
            bundles[method] = bundle
            print_note(f"{method}: " + ", ".join(f"{r['budget']:g}: {cells(r)[5]}" for r in found if "failed" not in r))
    if not bundles:
        raise SystemExit("no method could be built: " + "; ".join(row["failed"] for row in rows))
    good = [r for r in rows if "failed" not in r]
    latencies = None
    if options.rounds and good:
        latencies = time_all(loaded, good, bundles, folder, options.rounds, options.seconds, options.threads)
        add_latencies(good, latencies)
    rows.sort(key=lambda r: (-r["budget"], -(r.get("top1_change_points") or {"value": -1e9})["value"], r["method"]))
    unpruned = next(iter(bundles.values())).unpruned
    assert unpruned is not None
    assert unpruned.accuracy is not None
    title = f"{loaded.name}, {len(dataset)} images of {dataset.name}, unpruned top-1 {unpruned.accuracy.top1_percent:.1f} %"
    write_json(
        folder / "methods.json",
        {
            "model": loaded.name,
            "weights_sha256": loaded.weights_sha256,
            "data": {"name": dataset.name, "images": len(dataset), "sha256": dataset.fingerprint},
            "unpruned": msgspec.to_builtins(unpruned.accuracy),
            "exact_savings": options.exact_savings,
            "made_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rounds": options.rounds,
            "seconds": options.seconds,
            "threads": options.threads,
            "environment": asdict(read_environment()),
            "rows": rows,
            "medians_ms_by_round": None if latencies is None else asdict(latencies),
        },
    )
    if latencies:
        picture(rows, folder / "accuracy-speed.svg", title)
    write_table(folder / "methods.md", HEADINGS, [cells(row) for row in rows], title)
    print_note(f"wrote {folder}/methods.json, methods.md" + (", accuracy-speed.svg" if latencies else ""))


if __name__ == "__main__":
    main()
