"""Does training with integers in place help INT8? Distillation as `finetune` does it, plain and with the layers' rounding, from one start.

    python -m tests.benchmarks.integer_training                                   (the reference model and its task)
    python -m tests.benchmarks.integer_training --model deit_tiny_patch16_224 --weights w.safetensors --photos photos --data imagenet-sample

Both trainings see the same crops and budgets and start with the network as it came. In the second, inputs and weights of the layers that INT8 is about are
rounded as INT8 rounds them, and gradients pass the rounding unchanged (Jacob et al. 2018, section 3; ranges are those of the calibration before training).
Both results are then calibrated and quantized as `build --precision int8` does it. Divergences in nats from the unpruned network as it came, on images that
no training saw; differences are paired by image, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edge_tprune.bundle.divergence import divergence, log_softmax
from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import Heading, Table, print_note, print_table
from edge_tprune.export.calibration import calibrate, host, outputs_of
from edge_tprune.export.settings import BuildSettings, decide
from edge_tprune.finetune import choose
from edge_tprune.finetune.distill import Arithmetic, Students, Teacher
from edge_tprune.finetune.photos import Photos
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.finetune.trainer import Trainer
from edge_tprune.models.data import Dataset, open_dataset, open_images
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction.precision import PRECISIONS
from edge_tprune.reduction.quantization import UINT8, WEIGHT_LIMIT, quantizable
from edge_tprune.statistics import Interval, mean_interval, paired_difference

DRAWS = {"1.0": 0.2, "0.65": 0.3, "0.5": 0.5}  #: how often a step trains each budget
Answers = dict[str, dict[str, NDArray[np.float64]]]  #: budget -> "fp32" or "int8" -> divergence of every image


class RoundedLinear(nn.Linear):
    """A Linear that rounds its input and weight as INT8 does; both stay trainable."""

    @classmethod
    def of(cls, layer: nn.Linear, low: float, high: float) -> RoundedLinear:
        """With the parameters of `layer`, whose inputs lie between `low` and `high`."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        made.step, made.zero = UINT8.scale_and_zero(low, high)
        return made

    def rows(self, x: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
        """Some of the outputs, as `QuantizedLinear.rows`."""
        scale = (self.weight.detach().abs().amax(1) / WEIGHT_LIMIT).clamp_min(1e-12)
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(self.weight, scale, zeros, 0, -WEIGHT_LIMIT, WEIGHT_LIMIT)
        x = torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, UINT8.lowest, UINT8.highest)
        return functional.linear(x, weight[rows], bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.rows(input, self.bias, slice(None))


def train(
    loaded: LoadedModel, photos: Photos, settings: BuildSettings, recipe: Recipe, ranges: dict[str, tuple[float, float]] | None
) -> nn.Module:
    """A copy of the network with trained weights; with `ranges` of its layers' inputs, trained with their rounding."""
    arithmetic = Arithmetic(torch.device("cpu"), False)
    schedules = {budget.name: budget.schedule.tokens for budget in settings.budgets}
    students = Students(loaded.model, settings.method, settings.options, schedules, "all")
    for name, layer in quantizable(students.model).items() if ranges else ():
        assert ranges is not None
        students.model.set_submodule(name, RoundedLinear.of(layer, *ranges[name]))
    trainer = Trainer(students, Teacher(loaded.model, arithmetic), photos, recipe, arithmetic)
    began, title = time.monotonic(), "with rounding" if ranges else "plain"
    with show_progress(title) as advance:
        for step, _ in enumerate(trainer.run(recipe.steps)):
            advance(f"training, {title}", step, recipe.steps)
    print_note(f"trained {title}: {time.monotonic() - began:.0f} s")
    trained = copy.deepcopy(loaded.model)
    trained.load_state_dict(trainer.averaged())
    return trained


def judge(
    loaded: LoadedModel,
    model: nn.Module,
    settings: BuildSettings,
    photos: Dataset,
    images: Tensor,
    expected: NDArray[np.float64],
) -> Answers:
    """Divergences of weights in float32 and, calibrated again, in INT8."""
    calibrated = calibrate(replace(loaded, model=model), settings, photos, [], lambda what, done, of: None)
    found: Answers = {}
    for budget in settings.budgets:
        modules = {"fp32": host(model, settings, budget, PRECISIONS["fp32"]), "int8": calibrated.module(budget, UINT8)}
        found[budget.name] = {
            name: divergence(expected, log_softmax(outputs_of(module, images))) for name, module in modules.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--weights")
    parser.add_argument("--photos", help="a directory; to train and to calibrate on")
    parser.add_argument("--data", default="reference", help="images to judge on")
    parser.add_argument("--method", default="bat")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(options.model, options.weights)
    classes = int(loaded.model.num_classes)
    photos = open_images(Path(options.photos)) if options.photos else open_dataset("reference", classes, 1000, training=True)
    settings = decide(loaded, options.method, budgets=list(map(float, DRAWS)), precisions=["fp32", "int8"], calibration=photos)
    data, transform = open_dataset(options.data, classes), loaded.transform()
    places = np.unique(np.linspace(0, len(data) - 1, options.images).round().astype(int))
    images = torch.stack([transform(data[int(place)][0]) for place in places])
    unpruned = next(budget for budget in settings.budgets if budget.name == "1.0")
    expected = log_softmax(outputs_of(unpruned.module, images))

    crops = Photos(photos, range(len(photos)), loaded.preprocessing, 0)
    crops.read()
    least_area, flip, _ = choose.crops_understood(Teacher(loaded.model, Arithmetic(torch.device("cpu"), False)), crops)
    recipe = Recipe(
        rate=options.rate, steps=options.steps, batch=options.batch, least_area=least_area, flip=flip, temperature=1.0,
        average=choose.average(options.steps), class_tokens=choose.CLASS_TOKENS, labels=0.0, draws=DRAWS,
    )  # fmt: skip
    ranges = calibrate(loaded, settings, photos, [], lambda what, done, of: None).ranges(UINT8, "min-max")
    answers = {
        "untrained": loaded.model,
        "plain": train(loaded, crops, settings, recipe, None),
        "with rounding": train(loaded, crops, settings, recipe, ranges),
    }
    found = {name: judge(loaded, model, settings, photos, images, expected) for name, model in answers.items()}
    rows = []
    for name, budgets in found.items():
        for budget, kl in budgets.items():
            rows.append([name, budget, text(mean_interval(kl["fp32"])), text(mean_interval(kl["int8"])), ""])
            if name == "with rounding":
                rows[-1][-1] = text(paired_difference(kl["int8"], found["plain"][budget]["int8"]), "+")
    headings = ("training", "budget", "KL, float32 (nats)", "KL, INT8", "INT8, less plain training's")
    print_table(Table(list(map(Heading, headings)), rows, f"{options.model}, {options.method}, {len(images)} images"))


def text(interval: Interval, sign: str = "") -> str:
    """0.0123 (0.0100 to 0.0145)."""
    return f"{interval.value:{sign}.4f} ({interval.low:{sign}.4f} to {interval.high:{sign}.4f})"


if __name__ == "__main__":
    main()
