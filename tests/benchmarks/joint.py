"""Which blocks should a method remove tokens at, for a low budget, on several networks at once? Equal shares at many sets of blocks, tried on each network.

    python -m tests.benchmarks.joint --budget 0.35 --methods bat,zero_tprune \\
        --network deit_tiny_patch16_224,w.safetensors,calibration --network reference

A set of three or four blocks scores the mean over the networks of log(KL of the set / KL of the method's own blocks): a gain counts by its factor,
so that no network outweighs the others. Sets that lose on any network are left out. Images are without labels and are not those that accuracy is judged on (the
reference task's are of its training split). Float32, PyTorch. `--write` puts the best set into the method's shipped file (`edge_tprune/reduction/tuned/`);
judge it with `make eval-patterns` after that.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_note, print_table
from edge_tprune.errors import UserError
from edge_tprune.files import write_json
from edge_tprune.models.data import open_dataset
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.tuned import FOLDER, equal_blocks
from edge_tprune.runtime.engine import default_threads
from edge_tprune.search.configuration import read_images
from edge_tprune.search.score import DIVERGENCE, Scorer
from edge_tprune.statistics import mean_interval

Blocks = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A network and the images that sets of blocks are tried on."""

    loaded: LoadedModel
    scorer: Scorer

    def losses(self, method: str, budget: float, blocks: Blocks) -> list[float] | None:
        """KL in nats of every image; None where these blocks cannot reach the budget."""
        try:
            tokens = solve_schedule(self.loaded.model, method, budget=budget, blocks=blocks, exact_savings=False).tokens
        except UserError:
            return None
        return [loss for part in self.scorer(method, tokens, {}) for loss in part]


def candidates() -> Iterator[Blocks]:
    """Three or four blocks of twelve, equally far from each other."""
    for first in (1, 2, 3):
        for step in (1, 2, 3):
            for stages in (3, 4):
                yield tuple(range(first, first + stages * step, step))


def open_network(words: str, images: int) -> Network:
    """From NAME[,WEIGHTS,IMAGES]."""
    name, *rest = words.split(",")
    weights, data = rest if rest else (None, "reference")
    loaded = load_model(name, weights)
    dataset = open_dataset(data, int(loaded.model.num_classes), images, training=True)
    with show_progress(f"reading {name}") as advance:
        return Network(loaded, read_images(loaded, dataset, DIVERGENCE, advance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", required=True, help="NAME[,WEIGHTS,IMAGES]; may be repeated")
    parser.add_argument("--methods", default="bat,zero_tprune,evit,dpc_knn")
    parser.add_argument("--budget", type=float, default=0.35)
    parser.add_argument("--images", type=int, default=100, help="per network")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = [open_network(words, options.images) for words in options.network]
    sets = list(candidates())
    for method in parse_list(options.methods, str, "--methods"):
        own = equal_blocks(registry.method(method), 12)
        tried: dict[Blocks, list[list[float]]] = {}
        with show_progress(method) as advance:
            for done, blocks in enumerate([own, *sets]):
                advance(f"{method}, blocks {blocks}", done, len(sets) + 1)
                losses = [network.losses(method, options.budget, blocks) for network in networks]
                if all(each is not None for each in losses):
                    tried[blocks] = [each for each in losses if each is not None]
        factors = {
            blocks: [float(np.mean(losses) / np.mean(default)) for losses, default in zip(found, tried[own])]
            for blocks, found in tried.items()
        }
        ranked = sorted(
            (blocks for blocks, each in factors.items() if max(each) <= 1),
            key=lambda blocks: sum(math.log(factor) for factor in factors[blocks]),
        )
        names = [network.loaded.name for network in networks]
        print_table(
            Table(
                [Heading("blocks"), *(Heading(f"KL, {name}", right=True) for name in names)],
                [[str(blocks), *(f"{np.mean(losses):.4f}" for losses in tried[blocks])] for blocks in ranked],
                f"{method} at {options.budget:g}: no worse than blocks {own} on any network, the best first",
            )
        )
        if options.write and ranked[0] != own:
            write_entry(method, options.budget, ranked[0], networks[0], tried[ranked[0]][0], tried[own][0])


def write_entry(
    method: str, budget: float, blocks: Blocks, network: Network, losses: list[float], default: list[float]
) -> None:
    """Adds the budget to the method's file, whose entries are of the first network."""
    file: Path = FOLDER / f"{method}.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    schedule = solve_schedule(network.loaded.model, method, budget=budget, blocks=blocks, exact_savings=False)
    document["budgets"][f"{budget:g}"] = {
        "tokens": list(schedule.tokens),
        "share": schedule.share,
        "blocks": list(blocks),
        "weights": [1.0] * len(blocks),
        "kl": mean_interval(losses).to_json(),
        "default_kl": mean_interval(default).to_json(),
    }
    write_json(file, document)
    print_note(f"wrote {file}; now judge it: make eval-patterns")


if __name__ == "__main__":
    main()
