"""Which blocks should a method remove tokens at, for a budget, on several networks at once? Equal shares at many sets of blocks, tried on each network.

    python -m tests.benchmarks.joint --budgets 0.35 --methods bat,zero_tprune \\
        --network deit_tiny_patch16_224,w.safetensors,calibration --network reference

A set of two to five blocks scores the mean over the networks of log(KL of the set / KL of the method's own blocks): a gain counts by its factor, so that
no network outweighs the others. A hundredth of a nat is added to both, so that a gain of next to nothing does not count. Sets that lose on any network
are left out. Images are without labels and are not those that accuracy is judged on (the reference task's are of its training split). Float32, PyTorch.
`--write` puts the best set into the method's shipped file (`edge_tprune/reduction/tuned/`); judge it with `make eval-patterns` after that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_note, print_table
from edge_tprune.errors import UserError
from edge_tprune.files import write_json
from edge_tprune.models.data import Dataset, open_dataset
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import registry, solve_schedule
from edge_tprune.reduction.tuned import FOLDER, equal_blocks
from edge_tprune.runtime.engine import default_threads
from edge_tprune.search.configuration import read_images
from edge_tprune.search.score import DIVERGENCE, Scorer
from edge_tprune.statistics import mean_interval

Blocks = tuple[int, ...]
SMALL = 0.01  #: nats


@dataclass(frozen=True)
class Network:
    """A network and the images that sets of blocks are tried on."""

    loaded: LoadedModel
    images: Dataset
    scorer: Scorer

    def losses(self, method: str, budget: float, blocks: Blocks) -> list[float] | None:
        """KL in nats of every image; None where these blocks cannot reach the budget."""
        try:
            tokens = solve_schedule(self.loaded.model, method, budget=budget, blocks=blocks, exact_savings=False).tokens
        except UserError:
            return None
        return [loss for part in self.scorer(method, tokens, {}) for loss in part]


def candidates() -> Iterator[Blocks]:
    """Two to five blocks of twelve, equally far from each other; the last block is left out, where a removal saves nothing."""
    for first, step, stages in itertools.product(range(1, 6), (1, 2, 3), (2, 3, 4, 5)):
        if (last := first + (stages - 1) * step) < 12:
            yield tuple(range(first, last + 1, step))


def open_network(words: str, images: int) -> Network:
    """From NAME[,WEIGHTS,IMAGES]."""
    name, *rest = words.split(",")
    weights, data = rest if rest else (None, "reference")
    loaded = load_model(name, weights)
    dataset = open_dataset(data, int(loaded.model.num_classes), images, training=True)
    with show_progress(f"reading {name}") as advance:
        return Network(loaded, dataset, read_images(loaded, dataset, DIVERGENCE, advance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", required=True, help="NAME[,WEIGHTS,IMAGES]; may be repeated")
    parser.add_argument("--methods", default="bat,zero_tprune,evit,dpc_knn")
    parser.add_argument("--budgets", default="0.35")
    parser.add_argument("--images", type=int, default=100, help="per network")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = [open_network(words, options.images) for words in options.network]
    for method in parse_list(options.methods, str, "--methods"):
        for budget in parse_list(options.budgets, float, "--budgets"):
            search(method, budget, networks, options.write)


def search(method: str, budget: float, networks: list[Network], write: bool) -> None:
    """Tries all sets for one method and budget, and prints those that lose nowhere."""
    own = equal_blocks(registry.method(method), 12)
    tried: dict[Blocks, list[list[float]]] = {}
    sets = [own, *candidates()]
    with show_progress(method) as advance:
        for done, blocks in enumerate(sets):
            advance(f"{method} at {budget:g}, blocks {blocks}", done, len(sets))
            losses = [network.losses(method, budget, blocks) for network in networks]
            if all(each is not None for each in losses):
                tried[blocks] = [each for each in losses if each is not None]
    factors = {
        blocks: [float((np.mean(loss) + SMALL) / (np.mean(default) + SMALL)) for loss, default in zip(found, tried[own])]
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
            f"{method} at {budget:g}: no worse than blocks {own} on any network, the best first",
        )
    )
    if write:  # also the own blocks: without them another budget's set would be taken as the nearest
        write_entry(method, budget, ranked[0], networks[0], tried[ranked[0]][0], tried[own][0])


def new_document(method: str, network: Network) -> dict[str, Any]:
    """The file of a method that had no pattern."""
    loaded, images = network.loaded, network.images
    found = {"model": loaded.name, "weights_sha256": loaded.weights_sha256, "score": "kl"}
    found |= {"images": len(images), "data": images.name, "data_sha256": images.fingerprint}
    found |= {"stages": [2, 5], "seed": 0, "trials": len(list(candidates()))}
    return {"format": "edge-tprune-schedule", "version": 1, "method": method, "options": {}, "budgets": {}, "found": found}


def write_entry(
    method: str, budget: float, blocks: Blocks, network: Network, losses: list[float], default: list[float]
) -> None:
    """Adds the budget to the method's file, whose entries are of the first network."""
    file: Path = FOLDER / f"{method}.json"
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else new_document(method, network)
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
