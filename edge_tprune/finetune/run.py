"""One fine-tuning from photos to a checkpoint: what `edge-tprune finetune` calls."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch.distributed.rendezvous import rendezvous

from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.files import exclusive, open_regular, refuse_special, sha256_file
from edge_tprune.finetune import choose, holdout
from edge_tprune.finetune.distill import Arithmetic, Students, Teacher
from edge_tprune.finetune.holdout import HoldOut, Scores
from edge_tprune.finetune.photos import Photos, split
from edge_tprune.finetune.recipe import Recipe
from edge_tprune.finetune.request import Request, schedules_of
from edge_tprune.finetune.store import (
    KIND,
    ArithmeticChoice,
    Best,
    Decisions,
    Look,
    Result,
    Store,
    need_space,
    write_tensors,
)  # fmt: skip
from edge_tprune.finetune.trainer import NotFinite, Trainer, TrainerState, agreed, processes
from edge_tprune.models.adapter import LOGITS
from edge_tprune.models.checkpoint import CONFIG
from edge_tprune.models.data import REFERENCE, Dataset
from edge_tprune.models.families import adapt
from edge_tprune.models.loading import LoadedModel
from edge_tprune.models.records import imagenet_names, to_config
from edge_tprune.processes import result_of
from edge_tprune.reduction import network_shape, registry
from edge_tprune.reduction.code import method_code_sha256
from edge_tprune.text import one_line

T = TypeVar("T")

_MADE = "edge_tprune_finetune"  # key in the header of a checkpoint
RESTARTS = 3  # times that training begins again at half the rate after a loss that is not finite
_COPIES = 10
"""Of the weights on the disk at most: in a state four (weights, their average, two moments), and as many while a new one is written beside it; the
best, and the output."""

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. `kept`: where the best weights so far are, in words; `written`: whether they are at the output."""

    def __init__(self, step: int, steps: int, kept: str, written: bool) -> None:
        super().__init__(f"stopped after step {step} of {steps}")
        self.step, self.steps, self.kept, self.written = step, steps, kept, written


def finetune(
    loaded: LoadedModel,
    dataset: Dataset,
    out: Path,
    request: Request,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Result:
    """Trains one set of weights for all budgets of the request and writes it, if it is better on photos that were held out.

    Killed or interrupted, the same call goes on where the newest state in `OUT.run/` was saved, and ends with the same weights as if nothing had
    happened. In several processes (`torchrun`) each trains on its share of every batch; the first one writes.

    Args:
        loaded: the network; stays as it is.
        dataset: photos; labels are read where the request asks for them.
        out: a .safetensors file, which timm and `edge-tprune build --weights` load.
        request: what to train.
        progress: called as (what, done, of).
        say: called with what a person should know.

    Returns:
        What came out.

    Raises:
        UserError: a request, photos or files that cannot be.
        NegativeAnswer: training brought no improvement, or cost the unpruned network accuracy; nothing was written.
        Interrupted: Ctrl-C.
    """
    first = processes()[0] == 0
    out = out.absolute()
    schedules = schedules_of(loaded, request)
    request.check(dataset, out)
    if request.labels and adapt(loaded.model, loaded.name).default_output != LOGITS:
        raise UserError(
            f"--labels: {loaded.name} has no classifier head. Leave it out: its embedding is trained without labels"
        )
    if getattr(loaded.model, "num_classes", 0) == 1:
        raise UserError(f"{loaded.name} has one output: fine-tuning compares the probabilities of classes, two or more")
    if request.batch < processes()[1]:
        raise UserError(f"--batch {request.batch} does not give each of {processes()[1]} processes a photo: give a larger one")
    with exclusive(out, "fine-tuning") if first else nullcontext():
        store = Store.beside(out)
        asked = {
            **request.to_json(),
            "model": loaded.name,
            "weights_sha256": loaded.weights_sha256,
            "code": method_code_sha256(registry.method(request.method)),
            **loaded.settings,
        }
        asked |= {"data": dataset.name, "data_sha256": dataset.fingerprint, "processes": processes()[1]}
        decisions = store.open(asked | {"schedules": {name: list(tokens) for name, tokens in schedules.items()}})
        if decisions.result is not None and (out.is_file() or not decisions.result.written):
            _check_unchanged(decisions.result, out)
            return _answer(decisions.result)
        _check_place(out, "choose another --out, or move it away")
        if decisions.result is not None:  # its weights were moved away: what is trained from here on has none yet
            decisions.result = None
            if first:
                store.decide(decisions)
        if first:
            need_space(out.parent, _COPIES * sum(p.numel() * p.element_size() for p in loaded.model.parameters()))
        run = _Run(loaded, dataset, out, request, schedules, store, decisions, progress, say)
        return _answer(run())


def _answer(result: Result) -> Result:
    if not result.written:
        raise NegativeAnswer(result.verdict)
    return result


def _check_unchanged(result: Result, out: Path) -> None:
    """Refuses to pass off other weights as the result of an earlier run."""
    if result.written and result.sha256 not in (None, sha256_file(out)):
        raise UserError(
            f"{out} was changed since this fine-tuning wrote it: move it away to train again, or choose another --out"
        )


def _check_place(out: Path, remedy: str) -> None:
    """Refuses to replace a file of a person's."""
    refuse_special(out)
    if out.exists() and _said_of(out) is None:
        raise UserError(f"{out} exists, and finetune did not write it: {remedy}")


def _said_of(file: Path) -> dict[str, object] | None:
    """What a fine-tuning said of the weights that it wrote; None where it wrote none there."""
    try:
        open_regular(file).close()  # safetensors would wait for a named pipe
        with safe_open(file, framework="pt") as opened:
            said = json.loads((opened.metadata() or {})[_MADE])
            return said if isinstance(said, dict) else None
    except (OSError, SafetensorError, LookupError, ValueError, RecursionError):
        return None


class _Run:
    """The work behind `finetune`, once all that can be wrong with the request was looked at."""

    def __init__(
        self,
        loaded: LoadedModel,
        dataset: Dataset,
        out: Path,
        request: Request,
        schedules: Mapping[str, tuple[int, ...]],
        store: Store,
        decisions: Decisions,
        progress: Progress | None,
        say: Say | None,
    ) -> None:
        self.loaded, self.dataset, self.out, self.request, self.schedules = loaded, dataset, out, request, schedules
        self.store, self.decisions = store, decisions
        self.configuration = _configuration(loaded)
        self.first = processes()[0] == 0
        self.progress = progress if progress and self.first else lambda what, done, of: None
        self.say = say if say and self.first else lambda text: None
        self.began = time.monotonic()
        self.training_seconds, self.trained_on = 0.0, 0

    def __call__(self) -> Result:
        """Everything from reading photos to the written file."""
        self._arithmetic()
        self._photos()
        self.progress("judging the untrained network", 0, 1)
        self.teacher = Teacher(self.loaded.model, self.arithmetic)
        self.hold_out = HoldOut(self.held_out, self.held_out_labels, self.teacher, self.exact)
        if not bool(self.hold_out.answers.isfinite().all()):
            raise UserError(
                f"the weights {self.loaded.weights} of {self.loaded.name} give answers that are not finite: are they those of a trained network?"
            )
        students = self._students()
        self.before = self.hold_out.judge(students)
        broken = [name for name, scores in self.before.items() if not np.isfinite(scores.divergence).all()]
        if broken:
            raise UserError(f"method {self.request.method}: the pruned network's outputs are not finite at budget {broken[0]}")
        for remark in holdout.remarks(len(self.dataset), self.hold_out.answers, self.teacher.head):
            self.say(remark)
        if self.decisions.recipe is None:
            self.decisions.recipe = self._recipe(students)
            self._decide()
        if self.decisions.recipe.draws.keys() != self.schedules.keys():
            raise UserError(f"{self.store.path}/run.json: its recipe draws other budgets than were asked for. {KIND.remedy}")
        trainer = self._resumed(self._trainer(students))
        try:
            while trainer.done < self.decisions.recipe.steps:
                trainer = self._stretch(trainer)
        except KeyboardInterrupt as stop:
            raise Interrupted(trainer.done, self.decisions.recipe.steps, *self._keep_best()) from stop
        return self._conclude(trainer)

    # what is trained on

    def _arithmetic(self) -> None:
        device = torch.device(self.request.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.decisions.arithmetic is None:
            gains = choose.bfloat16_gains(device)
            self.decisions.arithmetic = ArithmeticChoice(gains, device.type, torch.get_num_threads())
        if (began_with := self.decisions.arithmetic.threads) != torch.get_num_threads():
            self.say(
                f"note: it goes on with {began_with} CPU threads, as it began: with another number the weights would be others"
            )
        torch.set_num_threads(began_with)
        self.arithmetic = Arithmetic(device, self.decisions.arithmetic.bfloat16)
        self.exact = Arithmetic(device, False)

    def _photos(self) -> None:
        training, held_out = split(len(self.dataset), self.request.held_out(len(self.dataset)), self.request.seed)
        self.photos = Photos(self.dataset, training, self.loaded.preprocessing, self.request.seed)
        self.photos.read(lambda done, of: self.progress("reading photos", done, of))
        judged = Photos(self.dataset, held_out, self.loaded.preprocessing, self.request.seed)
        self.held_out, labels = judged.whole(self.loaded.transform())
        self.held_out_labels = labels if self.request.labels else None

    def _students(self) -> Students:
        request = self.request
        students = Students(self.loaded.model, request.method, request.options, self.schedules, request.train)
        return students.to(self.arithmetic.device)

    # how it is trained

    def _recipe(self, students: Students) -> Recipe:
        request, photos = self.request, self.photos
        self.progress("finding the recipe", 0, 1)
        least_area, flip, crops_why = choose.crops_understood(self.teacher, photos)
        degrees, degrees_why = choose.temperature(self.hold_out.answers, self.teacher.head)
        draws = choose.draws(self.before)
        steps = request.steps(len(photos))
        recipe = Recipe(
            rate=request.rate or choose.RATES[0],
            steps=steps,
            batch=request.batch,
            least_area=least_area,
            flip=flip,
            temperature=degrees,
            average=choose.average(steps),
            class_tokens=choose.CLASS_TOKENS,
            labels=choose.LABELS if request.labels else 0.0,
            draws=draws,
            train=request.train,
            seed=request.seed,
            chosen={
                "least_area": crops_why,
                "temperature": degrees_why,
                "draws": "root of each budget's divergence before training",
            },
        )
        return choose.length_and_rate(recipe, request, self._pilot, self.began, self.progress)

    def _pilot(self, recipe: Recipe) -> choose.Pilot:
        trainer = self._trainer(self._students(), recipe)
        began = time.monotonic()
        for _ in trainer.run(recipe.steps):
            pass
        trained = time.monotonic()
        scores = self.hold_out.judge(self._averaged(trainer), self.arithmetic)
        return choose.Pilot(scores, (trained - began) / recipe.steps, time.monotonic() - trained)

    def _trainer(self, students: Students, recipe: Recipe | None = None) -> Trainer:
        recipe = recipe or self.decisions.recipe
        assert recipe is not None
        torch.manual_seed(recipe.seed)
        return Trainer(students, self.teacher, self.photos, recipe, self.arithmetic)

    def _resumed(self, trainer: Trainer) -> Trainer:
        if self._load_state(trainer):
            self.say(f"continuing after step {trainer.done} of {trainer.recipe.steps}")
        return trainer

    def _averaged(self, trainer: Trainer) -> Students:
        """Students with the averaged weights."""
        students = self._students()
        students.model.load_state_dict(trainer.averaged())
        return students

    def _stretch(self, trainer: Trainer) -> Trainer:
        """Trains up to the next look at the held-out photos, and keeps what came out."""
        recipe = trainer.recipe
        every = -(-recipe.steps // choose.EVALUATIONS)
        start, until = trainer.done, min(recipe.steps, (trainer.done // every + 1) * every)
        best = self.store.load("best", Best)
        so_far = "" if best is None else f", held-out loss {best[1].loss:.4f}"
        began = time.monotonic()
        try:
            for _ in trainer.run(until):
                self.progress(f"training{so_far}", trainer.done, recipe.steps)
        except NotFinite as error:
            return self._restart(error)
        self.training_seconds += time.monotonic() - began
        self.trained_on += recipe.batch * (until - start)
        self._look(trainer)
        return trainer

    def _look(self, trainer: Trainer) -> None:
        scores = self.hold_out.judge(self._averaged(trainer), self.arithmetic)
        change = holdout.improvement(self.before, scores)
        look = Look(
            step=trainer.done,
            rate=float(trainer.optimiser.param_groups[0]["lr"]),
            training_loss=trainer.loss,
            loss=float(holdout.mean_loss(scores).mean()),
            divergence={name: float(s.divergence.mean()) for name, s in scores.items()},
            change=change,
            refused=holdout.gate(scores, self.before),
        )
        if self.first:
            self._keep(trainer, look, improved=holdout.is_improvement(change, self.before))
        agreed(0.0)  # the others read what the first has written

    def _keep(self, trainer: Trainer, look: Look, *, improved: bool) -> None:
        """The state, and the weights where they are the best so far."""
        best = self.store.load("best", Best)
        now = Best(look.step, look.loss, improved, look.refused)
        if best is None or now.rank < best[1].rank:
            self.store.save("best", trainer.averaged(), now)
        if trainer.done > max((line.step for line in self.store.logged()), default=0):
            self.store.log(look)
        self.store.save("state", *trainer.state())

    def _restart(self, error: NotFinite) -> Trainer:
        """From the newest state that was saved, or from the beginning, at half the rate."""
        recipe = self.decisions.recipe
        assert recipe is not None
        if self.decisions.restarts >= RESTARTS:
            raise UserError(
                f"{error}, after {RESTARTS} restarts at half the rate each. The rate is now {recipe.rate:g}: give a lower --rate, and "
                "check that the weights are those of a trained network"
            ) from error
        self.say(f"{error}: going back to the newest state that was saved, at half the learning rate")
        self.decisions.restarts += 1
        self.decisions.recipe = recipe.halved()
        self._decide()
        trainer = self._trainer(self._students())
        self._load_state(trainer)
        return trainer

    def _load_state(self, trainer: Trainer) -> bool:
        """Back to the newest state that was saved; False where there is none."""
        state = self.store.load("state", TrainerState)
        if state is None:
            return False
        with self.store.fitting("state"):
            trainer.load(*state)
        return True

    def _decide(self) -> None:
        if self.first:
            self.store.decide(self.decisions)

    # what came out

    def _keep_best(self) -> tuple[str, bool]:
        """After Ctrl-C: the best weights so far at the output, if the held-out photos say that they are better."""
        best = self.store.load("best", Best)
        if best is None or not self.first or not best[1].improved or best[1].refused:
            return "nothing better than the untrained network was found yet", False
        if self.out.exists() and not (_said_of(self.out) or {}).get("interrupted"):
            return f"{self.out} holds other weights, which only a finished training replaces", False
        write_tensors(self.out, best[0], self._texts(best[1].step, interrupted=True))
        return f"the best weights so far are in {self.out}", True

    def _conclude(self, trainer: Trainer) -> Result:
        best = self.store.load("best", Best)
        recipe = self.decisions.recipe
        assert recipe is not None
        if best is None:
            raise UserError(f"{self.store.path} has no best.safetensors any more. {KIND.remedy}")
        weights, share = best[0], 1.0
        with self.store.fitting("best"):
            step, after = best[1].step, self._judged(weights)
        came, trained = self.loaded.model.state_dict(), trainer.averaged()
        for number, less in enumerate(choose.SHARES):
            self.progress("mixing the trained weights with the untrained", number, len(choose.SHARES))
            mixed = choose.mixed(came, trained, less)
            scores = self._judged(mixed)
            rank = _rank(scores, self.before)
            if not rank[0] and rank < _rank(after, self.before):
                weights, share, step, after = mixed, less, trainer.done, scores
        change = holdout.improvement(self.before, after)
        refused = holdout.gate(after, self.before)
        improved = holdout.is_improvement(change, self.before)
        verdict = _verdict(improved, refused, change.value, self.out)
        shape = network_shape(self.loaded.model)
        result = Result(
            written=improved and not refused,
            verdict=verdict,
            recipe=recipe,
            rows=holdout.rows({name: shape.share(tokens) for name, tokens in self.schedules.items()}, self.before, after),
            change=change,
            best_step=step,
            trained_share=share,
            photos=len(self.photos),
            held_out=len(self.held_out),
            seconds=time.monotonic() - self.began,
            images_per_second=self.trained_on / self.training_seconds if self.training_seconds else None,
            output=self.teacher.form.output,
        )
        if share < 1:
            self.say(
                f"note: the weights are {100 * share:.0f} % of the way from the untrained to the trained ones, where the held-out photos are answered best "
                "among those that keep the unpruned network"
            )
        elif step < recipe.steps:
            self.say(
                f"note: after step {step} of {recipe.steps} the held-out photos were answered worse, or the unpruned network lost too much: its "
                "weights are kept"
            )
        if self.first:
            if result.written:
                _check_place(self.out, "move it away, and run the same command again, which ends with the same weights")
                write_tensors(self.out, weights, self._texts(step, share))
                result.sha256 = sha256_file(self.out)
            self.decisions.result = result
            self._decide()
            self.store.clear_states()
        return result

    def _judged(self, weights: dict[str, torch.Tensor]) -> dict[str, Scores]:
        """The held-out photos, answered with these weights."""
        students = self._students()
        students.model.load_state_dict(weights)
        return self.hold_out.judge(students)

    def _texts(self, step: int, share: float = 1.0, *, interrupted: bool = False) -> dict[str, str]:
        """The header of the checkpoint: where it comes from."""
        recipe = self.decisions.recipe
        assert recipe is not None
        made: dict[str, object] = {
            "model": self.loaded.name,
            "from_weights_sha256": self.loaded.weights_sha256,
            "method": self.request.method,
            "budgets": list(self.schedules),
            "step": step,
            "steps": recipe.steps,
            "trained_share": share,
            "seed": recipe.seed,
            **({"interrupted": True} if interrupted else {}),
        }
        return {_MADE: json.dumps(made), **self.configuration}


def _configuration(loaded: LoadedModel) -> dict[str, str]:
    """Of the header: how the network is loaded.

    Raises:
        UserError: an argument of timm's that no file can state.
    """
    if loaded.name == REFERENCE:
        return {}
    names = loaded.class_names
    if names is not None and (known := imagenet_names(loaded.model)) is not None and names.names == known.names:
        names = None  # their number says as much
    try:
        return {CONFIG: json.dumps(to_config(loaded.name, loaded.arguments, loaded.preprocessing, names), allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the header of the weights cannot state how {loaded.name} is made ({error}): give plain model_kwargs"
        ) from error


@contextmanager
def join_processes(request: Request, patience_s: float = 120, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Joins the processes that `torchrun` started, if it did: NCCL between GPUs, gloo between CPUs.

    Args:
        request: of the training.
        patience_s: how long to wait for the others.
        say: called with a note where there are any.

    Raises:
        UserError: they do not come, or what the environment says of them is wrong.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    gpu = request.device != "cpu" and torch.cuda.is_available()
    try:
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        rank, count = int(os.environ["RANK"]), int(of := os.environ["WORLD_SIZE"])
        if not 0 <= rank < count:
            raise ValueError(f"RANK is {rank} of a WORLD_SIZE of {count}")
        if count > 1:
            say(f"RANK and WORLD_SIZE are set: waiting up to {patience_s:.0f} s for all of {of} processes")
        if address := os.environ.get("MASTER_ADDR"):  # PyTorch tries for minutes to find one that there is not
            _in_thread(lambda: socket.getaddrinfo(address, None))
        patience = timedelta(seconds=patience_s if rank == 0 else patience_s / 2)  # a client tries again once after its timeout
        store, rank, world_size = _in_thread(lambda: next(iter(rendezvous("env://", timeout=patience))))
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=world_size)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise UserError(
            f"RANK and WORLD_SIZE are set, and the other processes cannot be joined ({one_line(error)}): begin with torchrun, "
            "or unset both to train in one process"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise UserError(
                f"another process of this training ended ({one_line(error)}): run the same command again to continue"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _in_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises. It waits inside a library that is deaf to signals: an interruption leaves it where it is."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result_of(future)


def _rank(after: Mapping[str, Scores], before: Mapping[str, Scores]) -> tuple[bool, float]:
    """What weights are chosen by, the lower the better: whether they may not be written, then the held-out loss."""
    improved = holdout.is_improvement(holdout.improvement(before, after), before)
    return not improved or bool(holdout.gate(after, before)), float(holdout.mean_loss(after).mean())


def _verdict(improved: bool, refused: str, change: float, out: Path) -> str:
    if refused:
        return f"{refused}: nothing was written. Try a lower --rate, or more photos"
    if not improved:
        return (
            f"training changed the loss on the held-out photos by {change:+.4f}, which is no clear improvement: nothing was "
            "written. Try more photos, or train longer"
        )
    return f"wrote {out}"
