"""How much faster a trial of `search` is where the first blocks are kept than where every network begins at the image.

    python -m tests.benchmarks.scoring
    python -m tests.benchmarks.scoring --model deit_tiny_patch16_224 --weights w.safetensors --data photos --images 200

The same network is scored both ways directly one after the other, in random order, round by round; ratios are paired by round, with 95 % intervals. The losses
are the same bit for bit, which is checked. The kept tokens take as much memory as `Scorer` allows.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.models.data import open_dataset
from edge_tprune.models.loading import load_model
from edge_tprune.reduction import solve_schedule
from edge_tprune.runtime.engine import default_threads
from edge_tprune.search.score import DIVERGENCE, Scorer, read_images
from tests.benchmarks.reduction import paired_ratio, positive, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="reference")
    parser.add_argument("--images", type=positive, default=200)
    parser.add_argument("--method", default="zero_tprune")
    parser.add_argument("--budgets", default="0.8,0.65,0.5")
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--threads", type=positive, default=default_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(options.model, options.weights)
    dataset = open_dataset(options.data, int(loaded.model.num_classes), options.images, training=True)
    with show_progress("reading images") as advance:
        keeping = read_images(loaded, dataset, DIVERGENCE, advance)
    beginning = Scorer(loaded.model, keeping.images, kept_bytes=0)
    order, rows = random.Random(0), []
    for budget in parse_list(options.budgets, float, "--budgets"):
        tokens = solve_schedule(loaded.model, options.method, budget=budget).tokens
        seconds: dict[Scorer, dict[int, float]] = {keeping: {}, beginning: {}}
        with show_progress(f"scoring at {budget:g}") as advance:
            for number in range(options.rounds):
                advance(f"scoring at {budget:g}", number, options.rounds)
                losses = []
                for scorer in order.sample([keeping, beginning], 2):
                    start = time.perf_counter()
                    losses.append(list(scorer(options.method, tokens, {})))
                    seconds[scorer][number] = time.perf_counter() - start
                assert losses[0] == losses[1]
        least = [f"{min(seconds[scorer].values()):.2f}" for scorer in (beginning, keeping)]
        rows.append([f"{budget:g}", *least, text(paired_ratio(seconds[beginning], seconds[keeping]))])
    headings = [
        Heading(name, right=True) for name in ("budget", "from the image (s)", "from the first removal (s)", "times as fast")
    ]
    print_table(
        Table(headings, rows, f"{loaded.name}, {len(dataset)} images, {options.method}, threads: {options.threads}, one trial")
    )


if __name__ == "__main__":
    main()
