"""What a fine-tuning leaves on the disk while it works, in a directory beside its output, so that it can be killed at any time and go on.

    tuned.safetensors.run/run.json             what was asked for, and every decision that was taken, such as the recipe
    tuned.safetensors.run/log.jsonl            what the held-out photos said, line by line
    tuned.safetensors.run/state.safetensors    the newest state of the training: weights, their average, the optimiser
    tuned.safetensors.run/best.safetensors     the best weights so far

Every file appears whole or not at all. Nothing in them is code: tensors and JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from edge_tprune.documents import LARGEST_BYTES, DocumentKind, InvalidDocument, Whole, convert, decode, show
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, cut_last_line, open_log, open_regular, read_regular, sha256_json, write_bytes
from edge_tprune.finetune.holdout import Row
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.models.state_dict import hash_tensors
from edge_tprune.statistics import Interval
from edge_tprune.text import one_line, shorten

T = TypeVar("T", bound=msgspec.Struct)


class Result(msgspec.Struct):
    """What a fine-tuning came to."""

    written: bool
    verdict: str  #: in words
    recipe: Recipe
    rows: list[Row]  #: the held-out photos, budget by budget
    change: Interval  #: of the held-out photos' mean loss over the budgets below 1
    best_step: int  #: whose weights these are
    photos: int  #: trained on
    held_out: int
    seconds: float  #: of the process that finished
    images_per_second: float | None  #: in training, over all processes
    trained_share: float = 1.0  #: how far the weights are on the way from the untrained to the trained ones
    output: str = "logits"  #: what the network was trained to give; of an embedding divergences are 2 - 2 cos
    sha256: str | None = None  #: of the file that was written


class Look(msgspec.Struct, frozen=True):
    """A line of the log: what the held-out photos said after a step."""

    step: Whole
    rate: float  #: of learning
    training_loss: float
    loss: float  #: mean over the budgets below 1
    divergence: dict[str, float]  #: by budget
    change: Interval  #: of `loss`, from before training
    refused: str  #: why the unpruned network is not good enough any more; "" where it is


class Best(msgspec.Struct, frozen=True):
    """The best weights so far."""

    step: Whole
    loss: float
    improved: bool  #: whether they answer better than before training, beyond noise
    refused: str  #: as in `Look`

    @property
    def rank(self) -> tuple[bool, float]:
        """Lower is better. Weights that are refused are of no use, however well they answer with fewer tokens."""
        return bool(self.refused), self.loss


class ArithmeticChoice(msgspec.Struct, frozen=True):
    """How the network is computed."""

    bfloat16: bool
    device: str
    threads: Annotated[int, Meta(ge=1, le=1024)]


class Decisions(msgspec.Struct):
    """What was asked for, and what was decided on the way. None: not yet."""

    asked: dict[str, object]
    arithmetic: ArithmeticChoice | None = None
    recipe: Recipe | None = None
    restarts: int = 0  #: after a loss that was not finite
    result: Result | None = None


KIND = DocumentKind(
    noun="fine-tuning",
    format="edge-tprune-finetune",
    version=1,
    make="Make one with: edge-tprune finetune",
    remedy="Remove the directory and run the command again",
    schema=Decisions,
    file="run.json",
)


@dataclass(frozen=True)
class Store:
    """The directory of one fine-tuning."""

    path: Path

    @classmethod
    def beside(cls, out: Path) -> Store:
        """The directory that belongs to an output."""
        return cls(out.with_name(out.name + ".run"))

    def open(self, asked: dict[str, object]) -> Decisions:
        """The decisions so far of a run with the same questions, or new ones.

        Raises:
            UserError: the directory holds a run with other questions.
        """
        if not (self.path / "run.json").exists():
            others = [
                name for name in ("log.jsonl", "state.safetensors", "best.safetensors") if os.path.lexists(self.path / name)
            ]
            if others:
                raise UserError(
                    f"{self.path} holds {others[0]} and no run.json, and so no fine-tuning: move it away, or choose another --out"
                )
            return Decisions(asked)
        found = KIND.read(self.path)
        different = sorted(key for key in asked.keys() | found.asked.keys() if asked.get(key) != found.asked.get(key))
        if different:
            values = ", ".join(
                f"{key} {show(found.asked.get(key))} there, {show(asked.get(key))} here" for key in different[:3]
            )
            raise UserError(
                f"{self.path} holds a fine-tuning that was asked for differently ({values}). "
                f"Ask the same to continue it, choose another --out, or remove that directory"
            )
        return found

    def open_result(self) -> Result | None:
        """What a finished run came to."""
        return KIND.read(self.path).result

    def decide(self, decisions: Decisions) -> None:
        """Keeps the decisions."""
        KIND.write(self.path, decisions)

    def log(self, entry: Look) -> None:
        """Appends one line."""
        file = self.path / "log.jsonl"
        with clear_write_errors(file):
            handle = open_log(file, os.O_CREAT)
            try:
                cut_last_line(handle)
                os.write(handle, json.dumps(msgspec.to_builtins(entry), allow_nan=False).encode() + b"\n")
                os.fsync(handle)
            finally:
                os.close(handle)

    def logged(self) -> list[Look]:
        """The lines so far; what a dying process left half-written is left out.

        Raises:
            UserError: another line is damaged.
        """
        file = self.path / "log.jsonl"
        if not file.exists():
            return []
        try:
            *whole, _ = read_regular(file, LARGEST_BYTES).split(b"\n")
            return [decode(line, Look) for line in whole]
        except (OSError, InvalidDocument) as error:
            raise UserError(f"{file} cannot be read ({error}). {KIND.remedy}") from error

    def save(self, name: str, tensors: dict[str, Tensor], values: msgspec.Struct) -> None:
        """Keeps tensors, and values as JSON, under a name."""
        text = json.dumps(msgspec.to_builtins(values))
        write_tensors(self._file(name), tensors, {"values": text, "sha256": sha256_json([text, hash_tensors(tensors)])})

    def load(self, name: str, kind: type[T]) -> tuple[dict[str, Tensor], T] | None:
        """What was kept under a name, its values as a `kind`; or None.

        Raises:
            UserError: it is there and cannot be read.
        """
        file = self._file(name)
        if not file.exists():
            return None
        try:
            open_regular(file).close()  # safetensors would wait for a named pipe
            with safe_open(file, "pt") as opened:
                said = opened.metadata()
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            # What is wrong inside an optimiser's state shows steps later, as a crash or as weights that are worse.
            if said["sha256"] != sha256_json([said["values"], hash_tensors(tensors)]):
                raise ValueError("its content is not what was written")
            return tensors, convert(json.loads(said["values"]), kind)
        except Exception as error:
            raise UserError(f"{file} cannot be read ({error}). {KIND.remedy}") from error

    @contextmanager
    def fitting(self, name: str) -> Iterator[None]:
        """Around what puts to use what was kept under a name: where that fails, the file is damaged.

        Raises:
            UserError: saying so.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            why = shorten(one_line(error), 200)
            raise UserError(f"{self._file(name)} does not fit this fine-tuning ({why}). {KIND.remedy}") from error

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def clear_states(self) -> None:
        """Removes the weights; decisions and log stay."""
        for name in ("state", "best"):
            self._file(name).unlink(missing_ok=True)


def write_tensors(file: Path, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    """A .safetensors file with texts in its header, atomically.

    Raises:
        UserError: it cannot be written.
    """
    write_bytes(file, save({name: value.contiguous() for name, value in tensors.items()}, {"format": "pt", **texts}))


def need_space(folder: Path, needed: int) -> None:
    """Refuses to begin where the disk cannot take what will be written.

    Raises:
        UserError: less than `needed` bytes are free.
    """
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB left and fine-tuning needs {needed / 1e6:.0f} MB for its weights and their "
            "states: free some space or choose another --out"
        )
