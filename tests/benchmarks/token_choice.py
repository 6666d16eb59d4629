"""What INT8 costs at a budget: its arithmetic, and the tokens that it chooses otherwise.

    python -m tests.benchmarks.token_choice --model deit_tiny_patch16_224 --weights w.safetensors --data imagenet-sample --calibration photos
    python -m tests.benchmarks.token_choice                                       (the reference model and its task)

Divergences in nats from the same module in float32, with 95 % intervals, of: INT8 as `build` makes it; the same with float32's choice of tokens; both
again with the scales of every norm migrated, whether that is worth it or not; and, without any integers, float32 with weights rounded to half
precision. Beside them the share of tokens that are the same, by block. PyTorch.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_tprune.bundle.divergence import divergence, log_softmax
from edge_tprune.cli.terminal import Heading, Table, print_note, print_table
from edge_tprune.export import migration
from edge_tprune.export.calibration import calibrate, host, outputs_of
from edge_tprune.export.graph import FORMS
from edge_tprune.export.parity import selection
from edge_tprune.export.settings import BudgetSettings, decide
from edge_tprune.models.data import open_dataset, open_images
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import host as hosting
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.precision import PRECISIONS
from edge_tprune.statistics import mean_interval

_CANVASES = 112  # of the reference task, to calibrate on
_PART = 16  # images that choose together


@contextmanager
def outcomes(recorded: list[Outcome], replay: bool) -> Iterator[None]:
    """Records what reducers decide, or lets them decide what was recorded, in the same order."""
    original, place = hosting.decide, iter(list(recorded))

    def decided(*arguments: object) -> Outcome:
        if replay:
            return next(place)
        recorded.append(original(*arguments))  # type: ignore[arg-type]  # as given
        return recorded[-1]

    hosting.decide = decided  # type: ignore[assignment]
    try:
        yield
    finally:
        hosting.decide = original


def with_tokens_of(exact: PrunedViT, module: PrunedViT, images: Tensor) -> np.ndarray:
    """Logits of a module that goes on with the tokens that another one chooses."""
    found = []
    for part in torch.split(images, _PART):
        recorded: list[Outcome] = []
        with outcomes(recorded, replay=False):
            outputs_of(exact, part)
        with outcomes(recorded, replay=True):
            found.append(outputs_of(module, part))
    return np.concatenate(found)


def modules(
    loaded: LoadedModel, calibration: str | None, method: str, share: float
) -> tuple[BudgetSettings, dict[str, PrunedViT]]:
    """The budget, and its modules by what they are."""
    photos = (
        open_images(Path(calibration))
        if calibration
        else open_dataset("reference", loaded.model.num_classes, _CANVASES, training=True)
    )
    settings = decide(loaded, method, budgets=[1.0, share], precisions=["fp32", "int8"], calibration=photos)
    budget = next(budget for budget in settings.budgets if budget.schedule.requested == share)
    made = {}
    for name, worth in (("int8", migration.WORTH), ("int8, all norms migrated", float("inf"))):
        migration.WORTH = worth
        calibrated = calibrate(loaded, settings, photos, [], lambda what, done, of: None)
        made[name] = calibrated.module(budget, FORMS["onnxruntime"].inputs)
        print_note(f"{name}: {calibrated.rules['uint8'].name}, {len(calibrated.migrated)} norms migrated")
    rounded = copy.deepcopy(loaded.model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    made["float32, weights rounded to half"] = host(rounded, settings, budget, PRECISIONS["fp32"])
    return budget, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="reference")
    parser.add_argument("--calibration", help="a directory of photos")
    parser.add_argument("--method", default="bat")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    loaded = load_model(options.model, options.weights)
    data, transform = open_dataset(options.data, loaded.model.num_classes), loaded.transform()
    places = np.linspace(0, len(data) - 1, options.images).round().astype(int)
    images = torch.stack([transform(data[int(place)][0]) for place in places])
    budget, made = modules(loaded, options.calibration, options.method, options.budget)
    expected, rows = log_softmax(outputs_of(budget.module, images)), []
    for name, module in made.items():
        answers = {"its own": outputs_of(module, images), "float32's": with_tokens_of(budget.module, module, images)}
        for chosen, outputs in answers.items():
            found = mean_interval(divergence(expected, log_softmax(outputs)))
            same = ""
            if chosen == "its own":
                with torch.inference_mode():
                    stages = selection(budget.module, module, list(torch.split(images, _PART)))
                same = ", ".join(f"{stage.block}: {stage.same_percent:.1f}" for stage in stages)
            rows.append([name, chosen, f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})", same])
    headings = list(map(Heading, ("module", "tokens", "KL from float32 (nats)", "same tokens (%), by block")))
    print_table(Table(headings, rows, f"{options.model}, {options.method} {options.budget:g}, {len(images)} images"))


if __name__ == "__main__":
    main()
