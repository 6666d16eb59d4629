"""Segmentation on pruned features: which pixels are strokes of the whole digit, by the shipped head on the reference model's features.

    python -m tests.benchmarks.dense            (make eval-dense)

Each method becomes a bundle with `--output features`; its graphs run in ONNX Runtime, and the head, which was trained on the unpruned network's features
(`edge_tprune.models.segmentation`), reads what they give. Nothing is trained for pruning. mIoU is the mean over test canvases of the intersection over
union of the digit's pixels; its changes are paired by canvas. Every graph is timed directly before or after the unpruned one, and speed-ups are
paired by round. Intervals are 95 % ones. Exact savings do not apply: features need every token of the last block.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Budget
from edge_tprune.bundle.outputs import FEATURES
from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import Advance, show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.export.builder import build
from edge_tprune.export.settings import decide
from edge_tprune.files import sha256_file, write_json
from edge_tprune.models import reference
from edge_tprune.models.loading import load_model
from edge_tprune.models.segmentation import HEAD, MaskHead, intersection_over_union
from edge_tprune.runtime.engine import default_threads, open_engine
from edge_tprune.statistics import Interval, mean_interval, paired_difference
from edge_tprune.telemetry.environment import read_environment
from tests.benchmarks.reduction import Opener, chosen, graph_opener, measure, paired_ratio, positive
from tests.benchmarks.tables import write_table

Row = dict[str, Any]
HEADINGS = ("budget", "method", "MACs (%)", "mIoU (%)", "change (points)", "ms", "speed-up")


def overlaps(bundle: Bundle, budget: Budget, head: MaskHead, count: int, threads: int, advance: Advance) -> np.ndarray:
    """Intersection over union on the first `count` test canvases, (count,), through a budget's graph."""
    scores = np.empty(count)
    with open_engine(bundle.path / budget.artifact("onnxruntime").file, "onnxruntime", threads=threads) as engine:
        for index in range(count):
            advance(f"budget {budget.name}: canvases", index, count)
            pixels, mask = reference.compose_mask("test", index)
            image = (pixels.astype(np.float32).transpose(2, 0, 1)[None] / 255 - reference.MEAN[0]) / reference.STD[0]
            features = engine.run(np.ascontiguousarray(image, np.float32))
            scores[index] = intersection_over_union(head(features), mask[None])[0]
    return scores


def judge(bundle: Bundle, method: str, unpruned: np.ndarray, head: MaskHead, threads: int, advance: Advance) -> list[Row]:
    """A row for every pruned budget, compared with the unpruned network's overlaps (canvases,)."""
    rows = []
    for budget in bundle.budgets:
        if budget.requested == 1.0:
            continue
        scores = overlaps(bundle, budget, head, len(unpruned), threads, advance)
        rows.append(
            {
                "method": method,
                "budget": budget.requested,
                "options": dict(bundle.manifest.method.options),
                "tokens": list(budget.schedule),
                "macs_share": budget.macs_share,
                "miou_percent": 100 * float(scores.mean()),
                "miou_change_points": paired_difference(100 * scores, 100 * unpruned).to_json(),
            }
        )
    return rows


def add_latencies(rows: list[Row], bundles: dict[str, Bundle], rounds: int, seconds: float, threads: int) -> dict[str, Any]:
    """Median latency and speed-up into the rows; the medians of every round, (its own, the unpruned graph's beside it), by row."""
    image = np.random.default_rng(0).normal(size=(1, 3, reference.SIZE, reference.SIZE)).astype(np.float32)

    def opener(bundle: Bundle, requested: float) -> Opener:
        budget = next(b for b in bundle.budgets if b.requested == requested)
        return graph_opener(bundle.path / budget.artifact("onnxruntime").file, image, threads)

    unpruned = opener(next(iter(bundles.values())), 1.0)
    contestants = {
        f"{row['method']} {row['budget']:g}": (opener(bundles[row["method"]], row["budget"]), unpruned) for row in rows
    }
    found = measure({}, contestants, rounds, seconds, 5, "latency")
    for row in rows:
        name = f"{row['method']} {row['budget']:g}"
        row["median_ms"] = statistics.median(found.methods[name].values())
        row["speedup"] = paired_ratio(found.oracles[name], found.methods[name]).to_json()
    return {"pruned": found.methods, "unpruned_beside_it": found.oracles}


def cells(row: Row) -> list[str]:
    """A row of the table."""

    def shown(key: str, digits: int, sign: str = "") -> str:
        value = Interval.from_json(row.get(key))
        if value is None:
            return "–"
        ends = (
            ""
            if value.low is None or value.high is None
            else f" ({value.low:{sign}.{digits}f} to {value.high:{sign}.{digits}f})"
        )
        return f"{value.value:{sign}.{digits}f}{ends}"

    return [
        f"{row['budget']:g}",
        row["method"],
        f"{100 * row['macs_share']:.1f}",
        f"{row['miou_percent']:.1f}",
        shown("miou_change_points", 1, "+"),
        f"{row['median_ms']:.2f}" if "median_ms" in row else "–",
        shown("speedup", 2),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", default="zero_tprune bat tome random", help="with spaces; tome@4,7,10 removes tokens at other blocks"
    )
    parser.add_argument("--budgets", default="0.8,0.65,0.5")
    parser.add_argument("--canvases", type=positive, default=300)
    parser.add_argument("--rounds", type=int, choices=range(1000), metavar="N", default=12, help="0 leaves latencies out")
    parser.add_argument("--seconds", type=float, default=0.1, help="least length of one turn")
    parser.add_argument("--threads", type=positive, default=default_threads())
    parser.add_argument("--out", type=Path, default=Path("out/dense-reference"))
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    loaded, head = load_model(reference.NAME), MaskHead.load()
    budgets = [1.0, *(budget for budget in parse_list(options.budgets, float, "--budgets") if budget != 1)]
    rows: list[Row] = []
    bundles: dict[str, Bundle] = {}
    unpruned: np.ndarray | None = None
    for method in options.methods.split():
        name, blocks, given = chosen(method)
        with show_progress(method) as advance:
            settings = decide(loaded, name, budgets=budgets, blocks=blocks, options=given, output=FEATURES)
            bundle = bundles[method] = build(loaded, settings, options.out / method, progress=advance).bundle
            if unpruned is None:
                assert bundle.unpruned is not None
                unpruned = overlaps(bundle, bundle.unpruned, head, options.canvases, options.threads, advance)
            found = judge(bundle, method, unpruned, head, options.threads, advance)
        rows += found
        print_note(f"{method}: " + ", ".join(f"{row['budget']:g}: {cells(row)[4]}" for row in found))
    assert unpruned is not None
    medians = add_latencies(rows, bundles, options.rounds, options.seconds, options.threads) if options.rounds else None
    rows.sort(key=lambda row: (-row["budget"], -row["miou_change_points"]["value"]))
    write_json(
        options.out / "dense.json",
        {
            "model": loaded.name,
            "weights_sha256": loaded.weights_sha256,
            "output": FEATURES,
            "exact_savings": True,
            "head_sha256": sha256_file(HEAD),
            "canvases": options.canvases,
            "unpruned_miou_percent": mean_interval(100 * unpruned).to_json(),
            "made_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rounds": options.rounds,
            "seconds": options.seconds,
            "threads": options.threads,
            "environment": asdict(read_environment()),
            "rows": rows,
            "medians_ms_by_round": medians,
        },
    )
    title = f"{loaded.name}, {options.canvases} test canvases, unpruned mIoU {100 * unpruned.mean():.1f} %"
    write_table(options.out / "dense.md", HEADINGS, [cells(row) for row in rows], title)
    print_note(f"wrote {options.out}/dense.json, dense.md")


if __name__ == "__main__":
    main()
