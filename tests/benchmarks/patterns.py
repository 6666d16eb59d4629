"""Do the patterns that methods ship with (`edge_tprune/reduction/tuned/`) carry over to another network? Each against equal shares.

    make eval-patterns                                                       (the reference model)
    make eval-patterns MODEL=deit_tiny_patch16_224 WEIGHTS=w.safetensors DATA=imagenet-sample

At each budget a method removes tokens by its pattern, and once more in equal shares at the blocks of its paper, at the same MACs. The loss is
KL(unpruned || pruned) in nats, in PyTorch, on images that no search saw; differences are paired by image. Where the pattern is worse beyond
noise, `carries` says no, and it must not ship. What was found is kept in `edge_tprune/reduction/pattern_evidence.json`, by network; `edge-tprune methods NAME`
shows it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_note, print_table
from edge_tprune.errors import UserError
from edge_tprune.files import write_json
from edge_tprune.models.data import open_dataset
from edge_tprune.models.loading import load_model
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.evidence import PATTERN_EVIDENCE
from edge_tprune.reduction.tuned import equal_blocks, tuned_blocks
from edge_tprune.runtime.engine import default_threads
from edge_tprune.search.configuration import read_images
from edge_tprune.search.score import DIVERGENCE
from edge_tprune.statistics import mean_interval, paired_difference
from tests.benchmarks.judge import with_other_methods

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="reference")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument(
        "--methods", help="with commas; every method that ships a pattern by default; the rows of others are kept"
    )
    parser.add_argument("--budgets", default="0.8,0.65,0.5,0.4,0.35")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--out", type=Path, default=PATTERN_EVIDENCE, help="other networks' entries in it are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(options.model, options.weights)
    dataset = open_dataset(options.data, int(loaded.model.num_classes), options.images)
    names = (
        parse_list(options.methods, str, "--methods") if options.methods else [m for m in registry.methods() if tuned_blocks(m)]
    )
    budgets = parse_list(options.budgets, float, "--budgets")
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows: list[Row] = []
    with show_progress("comparing patterns") as advance:
        scorer = read_images(loaded, dataset, DIVERGENCE, advance)
        for name in names:
            for budget in budgets:
                advance(f"{name} at {budget:g}", len(rows), len(names) * len(budgets))
                blocks = equal_blocks(registry.method(name), len(loaded.model.blocks))
                try:
                    schedules = [
                        solve_schedule(loaded.model, name, budget=budget, name=loaded.name),
                        solve_schedule(loaded.model, name, budget=budget, name=loaded.name, blocks=blocks),
                    ]
                except UserError as error:  # a method that removes half of its tokens at most
                    print_note(f"{name} is left out at {budget:g}: {error}")
                    continue
                losses = [[loss for part in scorer(name, each.tokens, {}) for loss in part] for each in schedules]
                change = paired_difference(losses[0], losses[1])
                rows.append(
                    {
                        "method": name,
                        "budget": f"{budget:g}",
                        "tokens": list(schedules[0].tokens),
                        "equal_tokens": list(schedules[1].tokens),
                        "share": schedules[0].share,
                        "equal_share": schedules[1].share,
                        "kl": mean_interval(losses[0]).to_json(),
                        "equal_kl": mean_interval(losses[1]).to_json(),
                        "change": change.to_json(),
                        "carries": change.low is None or change.low <= 0,
                    }
                )
    found = {"weights_sha256": loaded.weights_sha256, "data": dataset.name, "images": len(dataset)}
    every = with_other_methods(rows, found, kept.get(loaded.name))
    write_json(options.out, {**kept, loaded.name: {**found, "rows": every}})
    print_table(table(rows, f"{loaded.name}, {len(dataset)} images of {dataset.name}: KL in nats"))


def table(rows: list[Row], title: str) -> Table:
    """One row per method and budget."""
    numbers = ("method", "budget", "pattern", "equal shares", "change", "carries")
    cells = [
        [
            row["method"],
            f"{row['budget']}",
            f"{row['kl']['value']:.4f}",
            f"{row['equal_kl']['value']:.4f}",
            f"{row['change']['value']:+.4f} ({row['change']['low']:+.4f} to {row['change']['high']:+.4f})",
            "yes" if row["carries"] else "no",
        ]
        for row in rows
    ]
    return Table([Heading(name, right=name not in ("method", "carries")) for name in numbers], cells, title)


if __name__ == "__main__":
    main()
