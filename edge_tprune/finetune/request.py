"""What a person asks of a fine-tuning, and whether it can be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from edge_tprune.bundle.bundle import MOST_BUDGETS
from edge_tprune.documents import OptionValue
from edge_tprune.errors import UserError
from edge_tprune.finetune.recipe import ALL, MOST_EPOCHS, TRAINED
from edge_tprune.models.data import Dataset
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import solve_schedule
from edge_tprune.text import count_of, is_text

REFERENCE_CANVASES = 1500  #: of the reference task, where no photos are named
CROPS = 18_000  #: shown in a fine-tuning of the default length, within `EPOCHS`
EPOCHS = (4, 40)  #: fewest and most of the default length
LEAST_HELD_OUT, MOST_HELD_OUT, HELD_OUT_SHARE = 8, 150, 1 / 6


class Request(msgspec.Struct, frozen=True):
    """What to train and for how long. None: found, or by default."""

    method: str
    budgets: tuple[float, ...]
    #: Budget -> tokens after each block, from a search.
    schedules: Mapping[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    blocks: tuple[int, ...] = ()  #: where budgets remove tokens; empty: where the method does by default
    options: dict[str, OptionValue] = msgspec.field(default_factory=dict)  #: of the method
    labels: bool = False
    train: str = ALL
    epochs: float | None = None
    seconds: float | None = None  #: in all, from the first photo to the written file
    rate: float | None = None
    batch: int = 32
    seed: int = 0
    device: str | None = None

    def check(self, dataset: Dataset, out: Path) -> None:
        """Refuses what would fail later.

        Raises:
            UserError: naming the value.
        """
        if out.suffix != ".safetensors" or out.is_dir():
            raise UserError(f"--out {out}: the result is a file whose name ends in .safetensors")
        if not is_text(out):
            raise UserError(f"--out {out}: safetensors opens no file whose path is not UTF-8 text: choose another")
        if self.labels and not dataset.labelled:
            raise UserError(f"{dataset.name} has no labels: leave --labels out, or give one sub-directory of photos per class")
        if self.train not in TRAINED:
            raise UserError(f"--train {self.train!r} is not known: choose {', '.join(TRAINED)}")
        if self.device is not None and not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", self.device):
            raise UserError(f"--device {self.device!r} is not known: choose cpu, cuda or cuda:0")
        if self.device not in (None, "cpu") and not torch.cuda.is_available():
            raise UserError(f"--device {self.device}: PyTorch sees no GPU here. Leave --device out to train on the CPU")
        if self.device is not None and int(self.device.partition(":")[2] or 0) >= max(1, torch.cuda.device_count()):
            raise UserError(
                f"--device {self.device}: this machine has {count_of(torch.cuda.device_count(), 'GPU')}, counted from 0"
            )
        if self.batch < 1:
            raise UserError(f"--batch {self.batch} is out of range: give 1 or more")
        if self.epochs is not None and not 0 < self.epochs <= MOST_EPOCHS:
            raise UserError(f"--epochs {self.epochs:g} is out of range: give more than 0 and at most {MOST_EPOCHS}")
        if self.rate is not None and not 1e-9 <= self.rate <= 1:
            raise UserError(f"--rate {self.rate:g} is out of range: give 1e-9 to 1; 1e-5 to 3e-4 are usual")
        if self.seconds is not None and self.epochs is not None:
            raise UserError("--time and --epochs both say how long to train: give one")
        training = len(dataset) - self.held_out(len(dataset))
        if training < self.batch:
            raise UserError(
                f"{dataset.name} has {len(dataset)} photos: {self.held_out(len(dataset))} are held out, and the other {max(0, training)} do "
                f"not fill a batch of {self.batch}. Give more photos, or a smaller --batch"
            )

    def held_out(self, photos: int) -> int:
        """How many of the photos no step trains on."""
        return min(MOST_HELD_OUT, max(LEAST_HELD_OUT, round(HELD_OUT_SHARE * photos)))

    def steps(self, photos: int) -> int:
        """How many steps that many photos to train on get, before the time is looked at."""
        epochs = self.epochs or min(EPOCHS[1], max(EPOCHS[0], CROPS / photos))
        return max(1, round(epochs * photos / self.batch))

    def to_json(self) -> dict[str, object]:
        """What identifies a request: the schedules, which stand for budgets and blocks, are added by who resolved them."""
        fields: dict[str, object] = msgspec.to_builtins(self)
        return {key: value for key, value in fields.items() if key not in ("schedules", "budgets", "blocks")}


def budget_name(budget: float) -> str:
    """As bundles name it: "1.0", "0.65"."""
    return "1.0" if budget == 1 else f"{budget:g}"


def schedules_of(loaded: LoadedModel, request: Request) -> dict[str, tuple[int, ...]]:
    """Tokens after each block for every budget, largest first; those of a schedule file before the method's own.

    Raises:
        UserError: a budget that the method cannot meet, none that removes tokens, or one given twice.
    """
    names = [budget_name(budget) for budget in request.budgets]
    if len(set(names)) != len(names):
        raise UserError(f"--budgets: one is given twice: {', '.join(names)}")
    if len(names) > MOST_BUDGETS:
        raise UserError(f"--budgets: {len(names)} are too many: a bundle holds at most {MOST_BUDGETS}")
    found: dict[str, tuple[int, ...]] = {}
    for budget in sorted({*request.budgets, *map(float, request.schedules)}, reverse=True):
        name = budget_name(budget)
        given = request.schedules.get(name) or request.schedules.get(f"{budget:g}")
        found[name] = solve_schedule(
            loaded.model,
            request.method,
            budget=budget if given is None else None,
            schedule=given,
            blocks=request.blocks,
            name=loaded.name,
            options=request.options if budget != 1 else {},  # which may not fit a network that removes nothing
        ).tokens
    if all(float(name) == 1 for name in found):
        raise UserError("--budgets names none that removes tokens: give some below 1, such as 1.0,0.8,0.65,0.5")
    return found


_LONGEST = 1000 * 3600.0  # seconds
_TIME = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


def parse_time(text: str, option: str = "--time") -> float:
    """ "20m", "1h30m", "90s" -> seconds. `option` is named in errors.

    Raises:
        UserError: anything else, or no time at all.
    """
    found = _TIME.fullmatch(text.strip().lower())
    parts = {unit: float(value) for unit, value in (found.groupdict() if found else {}).items() if value}
    seconds = sum(parts[unit] * size for unit, size in (("h", 3600), ("m", 60), ("s", 1)) if unit in parts)
    if not parts or not 0 < seconds <= _LONGEST:
        raise UserError(f"{option} {text!r} is not a time to train for: give 20m, 1h30m or 90s, at most 1000h")
    return seconds
