"""From photos to a network whose layers multiply integers: what the layers read, where to cut it off, and what that costs.

Photos need no labels. They are split in three that share none: on the first the layers' inputs are watched, on the second the rules for their
ranges compete, on the third every graph is judged (`edge_tprune.export.integer_parity`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from edge_tprune.bundle.divergence import divergence, log_softmax
from edge_tprune.bundle.manifest import EvaluationData, Quantization, RangeRule
from edge_tprune.bundle.outputs import LOGITS, cosine_distance
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.export.migration import find_migrations, migrate
from edge_tprune.export.observe import channels, histograms, observed
from edge_tprune.export.ranges import RULES, Histogram, Range
from edge_tprune.export.settings import BudgetSettings, BuildSettings
from edge_tprune.models.data import Dataset
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.precision import INTEGERS, PRECISIONS, Precision
from edge_tprune.reduction.quantization import IntegerType, quantizable, quantize_layers

FEWEST = 32  #: photos
_MOST = 224  # more change nothing: 64 to watch, 32 to choose on, 128 to judge on
_ROLES = (0, 2, 0, 2, 1, 2, 2)  # of every seven photos
_ALIKE = 1e-3  # standard deviation of normalised pixels over the photos
_BATCH = 16
_LAYER_PHOTOS = 16  # on which each layer is tried alone

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Photos:
    """Normalised photos, each (n, 3, H, W)."""

    watched: Tensor
    chosen_on: Tensor
    judged: Tensor
    data: EvaluationData


def read_photos(loaded: LoadedModel, dataset: Dataset, progress: Progress) -> Photos:
    """Photos spread over the dataset.

    Raises:
        UserError: too few, all alike, or one that cannot be read.
    """
    if len(dataset) < FEWEST:
        raise UserError(
            f"{dataset.name} has {len(dataset)} photos: calibration needs {FEWEST}, and 200 are better (--calibration)"
        )
    places = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _MOST)).round().astype(int))
    transform, images = loaded.transform(), []
    for done, place in enumerate(places):
        progress("reading photos", done, len(places))
        images.append(transform(dataset[int(place)][0]))
    stacked = torch.stack(images)
    if float(stacked.std(0).max()) < _ALIKE:
        raise UserError(f"the photos in {dataset.name} are all alike: give --calibration photos of what the network will see")
    roles = torch.tensor([_ROLES[number % len(_ROLES)] for number in range(len(places))])
    data = EvaluationData(name=dataset.name, images=len(places), labelled=False, sha256=dataset.fingerprint)
    return Photos(stacked[roles == 0], stacked[roles == 1], stacked[roles == 2], data)


@torch.inference_mode()
def outputs_of(module: PrunedViT, images: Tensor) -> np.ndarray:
    """Outputs (N, ...) of images (N, 3, H, W)."""
    return np.concatenate([module(part).numpy() for part in torch.split(images, _BATCH)])


def distance(kind: str, expected: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """How far outputs (N, ...) are from the expected ones, image by image (N,): KL divergence of logits in nats, cosine distance of others."""
    if kind == LOGITS:
        return divergence(log_softmax(expected), log_softmax(outputs))
    return cosine_distance(kind, outputs, expected)


@dataclass
class Calibration:
    """The ranges of every layer, and the networks that they make."""

    loaded: LoadedModel
    settings: BuildSettings
    photos: Photos
    model: nn.Module  #: in float32, after scale migration
    migrated: tuple[str, ...]  #: its norms that it changed
    seen: dict[str, Histogram]  #: what its layers read
    keep: tuple[str, ...]  #: layers that stay floats
    progress: Progress
    rules: dict[str, RangeRule] = field(default_factory=dict)  #: by integer type: which won, and all results
    _networks: dict[str, nn.Module] = field(default_factory=dict)

    def network(self, inputs: IntegerType) -> nn.Module:
        """The unpruned network in integers, by the rule that is best on photos."""
        if inputs.name not in self._networks:
            self._networks[inputs.name] = self._choose(inputs)
        return self._networks[inputs.name]

    def module(self, budget: BudgetSettings, inputs: IntegerType, precision: Precision = PRECISIONS[INTEGERS]) -> PrunedViT:
        """A budget's module in integers."""
        return self._host(self.network(inputs), budget, precision)

    def ranges(self, inputs: IntegerType, rule: str) -> dict[str, Range]:
        """By layer."""
        return {name: RULES[rule](seen, inputs) for name, seen in self.seen.items()}

    @property
    def record(self) -> Quantization:
        """What the manifest says of it."""
        photos = self.photos
        return Quantization(
            data=photos.data,
            watched=len(photos.watched),
            chosen_on=len(photos.chosen_on),
            judged=len(photos.judged),
            rules=dict(self.rules),
            float_layers=self.keep,
            migrated=self.migrated,
        )

    def layer_losses(self, budget: BudgetSettings, inputs: IntegerType) -> list[tuple[str, float]]:
        """What each layer alone costs in integers, the most expensive first: its name and the mean distance from the float32 module."""
        rule = self.rules[inputs.name].name
        ranges, images = self.ranges(inputs, rule), self.photos.chosen_on[:_LAYER_PHOTOS]
        expected = outputs_of(budget.module, images)
        layers = [name for name in ranges if name not in self.keep]
        losses = []
        for done, name in enumerate(layers):
            self.progress("finding the layers at fault", done, len(layers))
            network = quantize_layers(self.model, ranges, inputs, keep=set(ranges) - {name})
            outputs = outputs_of(self._host(network, budget, PRECISIONS[INTEGERS]), images)
            losses.append((name, float(distance(self.settings.output, expected, outputs).mean())))
        return sorted(losses, key=lambda entry: -entry[1])

    def _choose(self, inputs: IntegerType) -> nn.Module:
        """The rule whose networks are nearest to float32, over the largest and the smallest budget together."""
        budgets, images = _extremes(self.settings), self.photos.chosen_on
        expected = [outputs_of(budget.module, images) for budget in budgets]
        found: dict[str, float] = {}
        best = None
        for done, rule in enumerate(RULES):
            self.progress("choosing ranges", done, len(RULES))
            network = quantize_layers(self.model, self.ranges(inputs, rule), inputs, self.keep)
            off = [
                distance(
                    self.settings.output, right, outputs_of(self._host(network, budget, PRECISIONS[INTEGERS]), images)
                ).mean()
                for right, budget in zip(expected, budgets)
            ]
            found[rule] = float(np.mean(off))
            if best is None or found[rule] < found[best[0]]:
                best = rule, network
        assert best is not None
        self.rules[inputs.name] = RangeRule(name=best[0], distances=found)
        return best[1]

    def _host(self, network: nn.Module, budget: BudgetSettings, precision: Precision) -> PrunedViT:
        return host(network, self.settings, budget, precision)


def host(network: nn.Module, settings: BuildSettings, budget: BudgetSettings, precision: Precision) -> PrunedViT:
    """A budget's reduction in a network like the one that it was decided for."""
    module = budget.module
    return PrunedViT(
        network,
        registry.any_method(module.method),
        budget.schedule.tokens,
        module.options,
        precision,
        settings.output,
        settings.normalize,
    )


def calibrate(
    loaded: LoadedModel, settings: BuildSettings, dataset: Dataset, keep: Collection[str], progress: Progress
) -> Calibration:
    """Watches what the layers read, in the largest and the smallest budget together: all budgets share integers and ranges.

    Args:
        loaded: the model, in float32.
        settings: of the build.
        dataset: photos.
        keep: layers that stay floats.
        progress: called as (what, done, of).

    Raises:
        UserError: photos that cannot serve (`read_photos`); a layer in `keep` that there is not.
        NegativeAnswer: a layer reads numbers that are not finite.
    """
    check_layers(loaded, keep)
    photos = read_photos(loaded, dataset, progress)
    passes = 2 * len(_extremes(settings))

    def watch(model: nn.Module) -> tuple[nn.Module, dict[str, Histogram]]:
        watching, done = observed(model), 0
        modules = [host(watching, settings, budget, PRECISIONS["fp32"]) for budget in _extremes(settings)]

        def run() -> None:
            nonlocal done
            for module in modules:
                progress("watching layers", done, passes)
                outputs_of(module, photos.watched)
                done += 1

        return watching, histograms(watching, run)

    watching, seen = watch(loaded.model)
    migrations = find_migrations(loaded.model, channels(watching))
    model = loaded.model
    if migrations:
        model = migrate(model, migrations)
        _, seen = watch(model)
    return Calibration(loaded, settings, photos, model, tuple(migrations), seen, tuple(keep), progress)


def check_layers(loaded: LoadedModel, keep: Collection[str]) -> None:
    """Refuses the names of layers that there are not.

    Raises:
        UserError: naming the first.
    """
    known = quantizable(loaded.model)
    for name in keep:
        if name not in known:
            raise UserError(
                f"no layer {name!r} that int8 is about.{did_you_mean(name, known)} There are {len(known)}, from {next(iter(known))} on"
            )


def _extremes(settings: BuildSettings) -> list[BudgetSettings]:
    """The largest and the smallest budget."""
    ordered = sorted(settings.budgets, key=lambda budget: budget.schedule.share)
    return list({ordered[place].name: ordered[place] for place in (-1, 0)}.values())
