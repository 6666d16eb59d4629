"""How fast fine-tuning trains: a plain loop, ours, and the limit, in turns; and the memory that ours takes.

    python -m tests.benchmarks.finetune_speed --model deit_tiny_patch16_224 --weights w.safetensors --data photos

`plain` is the loop one would write first: each photo is opened and cropped where it is needed, everything is float32, PyTorch's fused attention, AdamW as it
comes. `ours` is what `edge-tprune finetune` runs. `limit` is the teacher's forward pass and the student's forward and backward pass alone, in our
arithmetic, on crops that are in memory: no photos, no optimiser, no averaging. All three see the same budget in every step. Times are wall-clock and of the
processor (all threads), medians over rounds; ratios are paired by round.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edge_tprune.cli.parsing import parse_list
from edge_tprune.cli.terminal import print_text
from edge_tprune.finetune import choose
from edge_tprune.finetune.distill import Arithmetic, Students, Teacher, divergence
from edge_tprune.finetune.photos import Photos, Spot, spots
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.finetune.request import Request, schedules_of
from edge_tprune.finetune.trainer import Trainer
from edge_tprune.models.data import open_dataset, open_images
from edge_tprune.models.loading import LoadedModel, load_model

CPU = torch.device("cpu")


def recipe_of(budget: str, steps: int, batch: int) -> Recipe:
    return Recipe(
        rate=1e-5,
        steps=steps,
        batch=batch,
        least_area=0.4,
        flip=True,
        temperature=1.0,
        average=choose.average(steps),
        class_tokens=choose.CLASS_TOKENS,
        labels=0.0,
        draws={budget: 1.0},
    )


def plain_step(
    students: Students, teacher: Teacher, photos: Photos, optimiser: torch.optim.Optimizer, budget: str
) -> Callable[[list[Spot]], None]:
    """A step of the plain loop."""

    def step(batch: list[Spot]) -> None:
        crops = []
        for spot in batch:
            image = photos.dataset[photos.places[spot.photo]][0]
            width, height = image.size
            side = min(width, height) * 0.8
            left, top = np.random.default_rng(spot.photo).uniform(0, [width - side, height - side])
            image = image.resize(photos.size[::-1], Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
            crops.append((torch.from_numpy(np.array(image)).permute(2, 0, 1) - photos.mean) / photos.std)
        images = torch.stack(crops)
        expected = teacher(images)[0]
        loss = divergence(students(images, budget, False)[0], expected, 1.0, True).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def turns(loaded: LoadedModel, photos: Photos, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What is timed, by name; each trains `--steps` steps."""
    request = Request(method=options.method, budgets=(options.budget,))
    schedules = schedules_of(loaded, request)
    (budget,) = schedules
    arithmetic = Arithmetic(CPU, choose.bfloat16_gains(CPU))
    print_text(
        f"{'bfloat16' if arithmetic.bfloat16 else 'float32'}, {torch.get_num_threads()} threads, budget {budget}, batch {options.batch}"
    )
    recipe = recipe_of(budget, 10**6, options.batch)

    def trainer(chosen: Recipe) -> Trainer:
        students = Students(loaded.model, request.method, {}, schedules, "all")
        return Trainer(students, Teacher(loaded.model, arithmetic), photos, chosen, arithmetic)

    ours, alone = trainer(recipe), trainer(recipe)
    exact = Arithmetic(CPU, False)
    students = Students(loaded.model, request.method, {}, schedules, "all")
    plain = plain_step(
        students, Teacher(loaded.model, exact), photos, torch.optim.AdamW(students.parameters(), lr=1e-5), budget
    )
    images = torch.stack([photos.crop(Spot(number, 0), 0.4, True) for number in range(options.batch)])
    labels = torch.zeros(options.batch, dtype=torch.int64)

    def run_ours() -> None:
        for _ in ours.run(ours.done + options.steps):
            pass

    def run_limit() -> None:
        for _ in range(options.steps):
            alone.optimiser.zero_grad(set_to_none=True)
            alone._backward(images, labels, budget)

    def run_plain() -> None:
        for batch in spots(len(photos), options.batch, 0, 0, options.steps):
            plain(batch)

    return {"plain": run_plain, "ours": run_ours, "limit": run_limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="reference")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--method", default="bat")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="in one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="plain,ours,limit", help="'ours' alone for its memory")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    loaded = load_model(options.model, options.weights)
    if options.data == "reference":
        dataset = open_dataset("reference", loaded.model.num_classes, options.images, training=True)
    else:
        dataset = open_images(Path(options.data)).first(options.images)
    photos = Photos(dataset, range(len(dataset)), loaded.preprocessing, 0)
    photos.read()
    chosen = {
        name: turn for name, turn in turns(loaded, photos, options).items() if name in parse_list(options.only, str, "--only")
    }
    names = list(chosen)
    wall: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            began, used = time.perf_counter(), time.process_time()
            chosen[name]()
            if number:  # the first round warms up
                wall[name].append((time.perf_counter() - began) / options.steps / options.batch * 1e3)
                processor[name].append((time.process_time() - used) / options.steps / options.batch * 1e3)
    for name in names:
        rate = 1e3 / statistics.median(wall[name])
        line = f"{name:6} {rate:6.1f} images/s, {statistics.median(processor[name]):6.1f} ms of processor time per image"
        if name != "limit" and "limit" in names:
            ratios = [limit / mine for limit, mine in zip(wall["limit"], wall[name])]
            of_processor = [limit / mine for limit, mine in zip(processor["limit"], processor[name])]
            line += f"; {statistics.median(ratios):.2f} of the limit ({statistics.median(of_processor):.2f} by processor time)"
        print_text(line)
    print_text(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
