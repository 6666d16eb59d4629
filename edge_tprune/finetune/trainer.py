"""The training loop: one step after another, and its whole state as tensors and JSON, so that it can stop anywhere and go on."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import nullcontext

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edge_tprune.errors import UserError
from edge_tprune.finetune.distill import Arithmetic, Students, Teacher, loss_of
from edge_tprune.finetune.photos import Photos, Spot, spots
from edge_tprune.finetune.recipe import Recipe

_PART = 16  # images that go through the network at once
WARM_SHARE, FIRST_FACTOR, LAST_FACTOR = (
    0.1,
    10.0,
    100.0,
)  # of the one-cycle schedule: rise, where it begins and ends below the peak


class NotFinite(UserError):
    """The loss of a step was infinite or not a number."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss of step {step + 1} is {loss}")
        self.step = step


def processes() -> tuple[int, int]:
    """(rank, number) of the processes that train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agreed(value: float) -> float:
    """A measured number, the same in all processes: the first one's."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


class TrainerState(msgspec.Struct, frozen=True):
    """What of a trainer's state is no tensor."""

    done: int  #: steps
    loss: float  #: of the newest one
    rate: float  #: of learning, at its peak
    groups: list[dict[str, object]]  #: of the optimiser, and
    schedule: dict[str, object]  #: of the rate, as PyTorch has them


class Trainer:
    """Trains students by a recipe.

    Args:
        students: on the device of `arithmetic`.
        teacher: likewise.
        photos: read.
        recipe: with as many steps as there will be.
        arithmetic: device and precision.
    """

    def __init__(self, students: Students, teacher: Teacher, photos: Photos, recipe: Recipe, arithmetic: Arithmetic) -> None:
        self.students, self.teacher, self.photos, self.recipe, self.arithmetic = students, teacher, photos, recipe, arithmetic
        for form in students.pruned.values():
            arithmetic.prepare(form, training=True)
        self.head = teacher.head
        self.trained = [p for p in students.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.rate, fused=True)
        steps = max(4, recipe.steps)
        self.schedule = OneCycleLR(
            self.optimiser,
            recipe.rate,
            total_steps=steps,
            pct_start=max(WARM_SHARE, 2 / steps),  # the rise takes a step at least
            div_factor=FIRST_FACTOR,
            final_div_factor=LAST_FACTOR,
            cycle_momentum=False,
        )
        self.average = AveragedModel(students.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average))  # type: ignore[no-untyped-call]
        self.spread = self._class_token_spread() if recipe.class_tokens else []
        self.done = 0  #: steps
        self.loss = math.nan  #: running mean
        self.forward: nn.Module = students
        if dist.is_initialized():
            self.forward = DistributedDataParallel(students)

    def run(self, until: int) -> Iterator[float]:
        """Trains up to step `until`; yields each step's loss.

        Raises:
            NotFinite: naming the step. The weights are then of no use: `load` an earlier state.
        """
        recipe, share = self.recipe, processes()
        plan = spots(len(self.photos), recipe.batch, recipe.seed, self.done, until, share)
        for images, labels in self.photos.batches(plan, recipe.least_area, recipe.flip):
            yield self._step(images.to(self.arithmetic.device), labels.to(self.arithmetic.device))

    def _step(self, images: Tensor, labels: Tensor) -> float:
        recipe = self.recipe
        draw = random.Random(f"{recipe.seed} {self.done}")  # the same budget in every process
        (budget,) = draw.choices(list(recipe.draws), list(recipe.draws.values()))
        self.optimiser.zero_grad(set_to_none=True)
        value = self._backward(images, labels, budget)
        norm = nn.utils.clip_grad_norm_(self.trained, recipe.clip)
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise NotFinite(self.done, value if not math.isfinite(value) else float(norm))
        self.optimiser.step()
        self.schedule.step()
        self.average.update_parameters(self.students.model)
        self.done += 1
        self.loss = value if math.isnan(self.loss) else self.loss + 0.02 * (value - self.loss)
        return value

    def _backward(self, images: Tensor, labels: Tensor, budget: str) -> float:
        """The gradient of a step, part by part so that memory does not grow with the batch; returns the loss."""
        recipe, total = self.recipe, 0.0
        class_tokens = recipe.class_tokens > 0
        parts = list(zip(torch.split(images, _PART), torch.split(labels, _PART)))
        for number, (some, truth) in enumerate(parts, 1):
            model = self.forward
            # Processes add up their gradients once, after the last part.
            with model.no_sync() if isinstance(model, DistributedDataParallel) and number < len(parts) else nullcontext():
                expected = self.teacher(some, class_tokens)
                with self.arithmetic.autocast():
                    given = model(some, budget, class_tokens)
                loss = loss_of(recipe, given, expected, truth, self.head, self.spread) * (len(some) / len(images))
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _class_token_spread(self) -> list[Tensor]:
        """How much the teacher's class token differs between photos, block by block: the variance, as the mean over channels."""
        count = min(_PART, len(self.photos))
        crops = [self.photos.crop(Spot(number, 0), self.recipe.least_area, False) for number in range(count)]
        seen = self.teacher(torch.stack(crops).to(self.arithmetic.device), True)[1]
        return [token.float().var(0, unbiased=False).mean().clamp_min(1e-6) for token in seen]

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights by timm's names, on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in self.average.module.state_dict().items()}

    def state(self) -> tuple[dict[str, Tensor], TrainerState]:
        """Everything that `load` needs: tensors, and what goes into JSON."""
        tensors = {f"model.{name}": value for name, value in self.students.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.module.state_dict().items()}
        tensors["averaged"] = self.average.n_averaged
        optimiser = self.optimiser.state_dict()
        for number, entry in optimiser["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in entry.items()}
        counts: dict[str, object] = {
            key: value for key, value in self.schedule.state_dict().items() if isinstance(value, int | float | list)
        }
        values = TrainerState(self.done, self.loss, self.recipe.rate, optimiser["param_groups"], counts)
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, values

    def load(self, tensors: dict[str, Tensor], values: TrainerState) -> None:
        """Back to a state that `state` gave; at this recipe's rate, if the state was trained at another.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError: it is not of this network and recipe.
        """
        now = self.state()[1]
        if (_kinds(values.groups), _kinds(values.schedule)) != (_kinds(now.groups), _kinds(now.schedule)):
            raise ValueError("an optimiser of another kind")
        if not 0 <= values.done <= self.recipe.steps:
            raise ValueError(f"after {values.done} of {self.recipe.steps} steps")
        self.students.model.load_state_dict(_under(tensors, "model."))
        self.average.module.load_state_dict(_under(tensors, "average."))
        self.average.n_averaged.copy_(tensors["averaged"])
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimiser.").items():
            number, _, key = name.partition(".")
            entries.setdefault(int(number), {})[key] = value.clone()
        self.optimiser.load_state_dict({"state": entries, "param_groups": values.groups})
        self.schedule.load_state_dict(values.schedule)
        if values.rate != self.recipe.rate:
            for group in self.optimiser.param_groups:
                for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                    group[key] *= self.recipe.rate / values.rate
        self.done, self.loss = values.done, values.loss


def _kinds(value: object) -> object:
    """The types of what JSON can hold, as deep as it goes; lists of numbers may have any length."""
    if isinstance(value, dict):
        return {key: _kinds(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kinds(each) for each in value] if any(isinstance(each, dict) for each in value) else list
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
