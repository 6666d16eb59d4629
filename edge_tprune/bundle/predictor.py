"""Budgets of a bundle, ready to answer an application's images: `edge_tprune.open`. The agent measures through this very class.

    with edge_tprune.open("bundles/deit-s", budget=0.65) as model:
        scores = model(frame)                        # (classes,) of one image, (n, classes) of a list
        for label, probability in model.top(scores, 5):
            print(label, probability)

No torch. Images are prepared by `edge_tprune.models.preprocess` with pillow and numpy, which gives the bits of timm's transform.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.divergence import log_softmax
from edge_tprune.bundle.engines import prepare
from edge_tprune.bundle.fallback import Fallback
from edge_tprune.bundle.golden import check_golden
from edge_tprune.bundle.guard import Guard
from edge_tprune.bundle.manifest import KIND
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import NegativeAnswer, UserError, missing_package
from edge_tprune.models.images import eight_bit_rgb, read_image
from edge_tprune.runtime.engine import Engine, EngineInfo, Stages, default_threads, open_engine
from edge_tprune.runtime.tensorrt.builder import Progress
from edge_tprune.runtime.tensorrt.cache import Warn
from edge_tprune.text import one_line

if TYPE_CHECKING:
    from PIL import Image

ChannelOrder = Literal["rgb", "bgr"]
Frame: TypeAlias = "np.ndarray | Image.Image | str | os.PathLike[str]"
"""One image: of Pillow, a file's name, or an array: uint8 (H, W, 3) as a camera gives it, or float32 (C, H, W) that is prepared already."""

_TIMES = 1000  #: of inferences, kept for `latency_ms`


class Predictor:
    """Budgets of a bundle in open engines, one of which answers. Several threads may call it; a context manager."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        budget: str,
        precision: str = "fp32",
        channel_order: ChannelOrder = "rgb",
    ) -> None:
        """Takes over engines that were opened.

        Args:
            bundle: the opened bundle.
            engines: budget -> its engine, opened from what `edge_tprune.bundle.engines.prepare` gave.
            budget: the one that answers first.
            precision: of their graphs.
            channel_order: of uint8 arrays.
        """
        self.bundle, self.precision = bundle, precision
        self.fallbacks: dict[str, Fallback] = {}  #: by budget: what its engine computes otherwise than asked for, and why
        self._engines = dict(engines)
        self._current = budget
        self._channel_order = channel_order
        alone = not all(engine.concurrent for engine in engines.values())
        self._turn: AbstractContextManager[Any] = Lock() if alone else nullcontext()
        self._times_ns: dict[str, deque[int]] = {name: deque(maxlen=_TIMES) for name in engines}

    @property
    def budget(self) -> str:
        """The budget that answers. Setting another one of `budgets`, by name or share, takes effect with the next call of `run`."""
        return self._current

    @budget.setter
    def budget(self, budget: float | str) -> None:
        name = find_budget(self.bundle, budget)
        if name not in self._engines:
            raise UserError(f"budget {name} is not open (open are: {', '.join(self._engines)}): name it in budgets=")
        self._current = name

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets that are open."""
        return tuple(self._engines)

    @property
    def _engine(self) -> Engine:
        return self._engines[self._current]

    def __call__(self, frames: Frame | Sequence[Frame]) -> np.ndarray:
        """The network's output for one image, or for each of several.

        Args:
            frames: one image, or a list of them (or a float32 array (n, C, H, W)); see `Frame`. Their number need not be the batch that
                the graph was built for: it runs as often as needed, and places that are left over hold zeros.

        Returns:
            float32: logits (classes,) of one image, (n, classes) of several; other outputs likewise, without or with the axis of images.

        Raises:
            UserError: an image that cannot be read, an array that is no image, or one of which the graph gives no finite numbers.
        """
        if isinstance(frames, (list, tuple)) or (isinstance(frames, np.ndarray) and frames.ndim == 4):
            return self._answer(frames)
        answer: np.ndarray = self._answer([frames])[0]  # type: ignore[list-item]  # a sequence that is neither list nor tuple is no image: said below
        return answer

    def _answer(self, frames: Sequence[Frame] | np.ndarray) -> np.ndarray:
        if not len(frames):
            raise UserError("the model was called with no image")
        size, parts = self.batch, []
        for start in range(0, len(frames), size):
            some = frames[start : start + size]
            batch = np.zeros(self.input_shape, np.float32)
            for place, frame in enumerate(some):
                batch[place] = self.preprocess(frame)
            parts.append(self.run(batch)[: len(some)])
        scores = np.concatenate(parts)
        if not np.isfinite(scores).all():
            place = int(np.flatnonzero(~np.isfinite(scores).reshape(len(scores), -1).all(1))[0])
            frame = frames[place]
            wrong = isinstance(frame, np.ndarray) and frame.dtype == np.float32 and not np.isfinite(frame).all()
            raise UserError(
                f"image {place} has NaN or infinity among its values: give finite numbers"
                if wrong
                else f"budget {self._current} in {self.precision} gives NaN or infinity for image {place}: use another precision"
            )
        return scores

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output (B, ...) of a whole prepared batch (B, C, H, W), float32 both. This is what `latency_ms` and profiles time.

        Raises:
            UserError: the batch has another shape or dtype.
        """
        budget = self._current  # another thread may set another one meanwhile
        with self._turn:
            begin_ns = time.perf_counter_ns()
            output = self._engines[budget].run(batch)
            self._times_ns[budget].append(time.perf_counter_ns() - begin_ns)
        return output

    def preprocess(self, frame: Frame) -> np.ndarray:
        """One image as the graph takes it: (C, H, W) float32. An array that is prepared already is handed back.

        Raises:
            UserError: a file that cannot be read, or an array that is no image.
        """
        if isinstance(frame, np.ndarray):
            if frame.dtype == np.float32 and frame.shape == self.input_shape[1:]:
                return frame
            frame = _to_image(frame, self._channel_order, self.input_shape[1:])
        elif isinstance(frame, (str, os.PathLike)):
            frame = read_image(Path(os.fsdecode(frame)), "Give another file")
        elif not all(hasattr(frame, name) for name in ("convert", "size", "mode")):
            raise UserError(f"an image is an array, a file's name or an image of Pillow, not {type(frame).__name__}")
        try:
            return self.bundle.manifest.preprocessing(eight_bit_rgb(frame))
        # Pillow reads files late, some of them by libraries of others.
        except (OSError, ValueError, ArithmeticError, SyntaxError, RuntimeError) as error:
            raise UserError(f"this image cannot be read: {error}. Give another") from error

    def top(self, scores: np.ndarray, count: int = 5) -> list[tuple[str, float]]:
        """The `count` classes with the highest scores as (label, probability), the most probable first; the sigmoid of a single score.

        Args:
            scores: (classes,) of one image, floating-point.
            count: how many.

        Raises:
            UserError: the graph gives no logits, or the scores are of several images, or no scores of this model.
        """
        if self.bundle.manifest.model.output.name != LOGITS:
            raise UserError(f"the graph gives {self.bundle.manifest.model.output.name}, which are no scores of classes")
        try:
            scores = np.asarray(scores)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"scores are an array of numbers ({one_line(error)}): pass one row") from error
        if scores.ndim != 1:
            raise UserError(f"scores of one image have one axis, these have shape {scores.shape}: pass one row")
        if scores.dtype.kind != "f" or len(scores) != len(self.labels) or not np.isfinite(scores).all():
            raise UserError(
                f"scores are finite floating-point numbers of the model's {len(self.labels)} classes, not {scores.dtype} {scores.shape}"
                + ("" if scores.dtype.kind != "f" or np.isfinite(scores).all() else " with NaN or infinity")
            )
        if not isinstance(count, (int, np.integer)) or count < 1:
            raise UserError(f"count is {count!r}: give a whole number from 1")
        probabilities = np.exp(log_softmax(scores))[-len(scores) :]  # of one class against its absence: two, the second its own
        best = np.argsort(-scores, kind="stable")[:count]
        return [(self.labels[i], float(probabilities[i])) for i in best]

    @property
    def labels(self) -> tuple[str, ...]:
        """What the classes are called, by index; their numbers where the bundle has no names, nothing where it gives no logits."""
        names, classes = self.bundle.manifest.class_names, self.bundle.manifest.model.classes
        return tuple(str(i) if names is None else names.title(i) for i in range(classes))

    @property
    def latency_ms(self) -> float | None:
        """Median time of `run` of the current budget, from a prepared batch in host memory to its output there, of the last 1000; None before
        the first."""
        times_ns = self._times_ns[self._current]
        return median(times_ns) / 1e6 if times_ns else None

    @property
    def last_ms(self) -> float | None:
        """Time of the current budget's last `run`; None before the first."""
        times_ns = self._times_ns[self._current]
        return times_ns[-1] / 1e6 if times_ns else None

    @property
    def batch(self) -> int:
        """Images per inference, fixed in the graph."""
        return self.bundle.batch

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(B, C, H, W)."""
        return self._engine.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(B, classes), or what else the graph gives."""
        return self._engine.output_shape

    @property
    def info(self) -> EngineInfo:
        """The runtime, its version and how it runs."""
        return self._engine.info

    @property
    def buffer(self) -> np.ndarray | None:
        """The memory (B, C, H, W) from which the engine reads, where it has such memory: write a batch there and `run` it, and it is not copied.

        For one thread at a time. None for ONNX Runtime, which reads whatever contiguous array it is given without a copy.
        """
        return self._engine.buffer

    def stages_ns(self) -> Stages | None:
        """What the device's own clock saw, as `Engine.stages_ns`."""
        return self._engine.stages_ns()

    def check(self) -> float:
        """Runs the golden images, outliers included, through every open engine, which also warms them up.

        Returns:
            How far the worst is from the golden outputs, on the ordinary images.

        Raises:
            NegativeAnswer: farther than the precision allows.
        """
        golden, kind, worst = self.bundle.golden(), self.bundle.manifest.model.output.name, 0.0
        for name, engine in self._engines.items():
            result = check_golden(engine.run, golden, name, kind, self.precision)
            if not result.passed:
                raise NegativeAnswer(
                    f"budget {name} failed its golden check on {engine.info.runtime} {engine.info.version}: {result.describe()}. "
                    f"Do not use it. {KIND.remedy}"
                )
            worst = max(worst, result.difference)
        return worst

    def close(self) -> None:
        """Frees the engines, once an inference that is under way has ended. A second call does nothing."""
        with self._turn:
            for engine in self._engines.values():
                engine.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_predictor(
    bundle: Bundle | Path | str,
    budget: float | str | None = None,
    runtime: str = "onnxruntime",
    *,
    budgets: Sequence[float | str] = (),
    precision: str | None = None,
    threads: int | None = None,
    channel_order: ChannelOrder = "rgb",
    check: bool = True,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Predictor:
    """Opens one budget of a bundle for an application.

    Args:
        bundle: its directory, whose files are hashed against the manifest; or an opened one.
        budget: its name, or the share of MACs that it stands for; may be left out where the bundle has one budget.
        runtime: "onnxruntime", "tensorrt" or "tensorrt-rtx". An engine file that is missing is built first, which can take minutes.
        budgets: others that are opened too, so that `model.budget = 0.5` can choose among them at any time. In ONNX Runtime they share one copy
            of the weights and one arena.
        precision: of the graph; by default the one that the bundle was built for first.
        threads: CPU threads of ONNX Runtime; one per physical core by default.
        channel_order: of uint8 arrays: "rgb", or "bgr" as OpenCV gives them.
        check: run the golden images first, which also warms the engine up. One that does not answer as it should is computed in higher
            precision, in part or as a whole, and refused where that does not help.
        progress: called while an engine file is built.
        warn: called with what a person should know about that, and with what was computed in higher precision and why; by default that is a
            `RuntimeWarning`, and in `Predictor.fallbacks`.

    Raises:
        UserError: no such bundle or budget, no graph for the runtime in that precision, a missing package or GPU.
        NegativeAnswer: the engine fails its golden check.
    """
    if channel_order not in get_args(ChannelOrder):
        raise UserError(f"channel_order is 'rgb' or 'bgr', not {channel_order!r}")
    if isinstance(budgets, (str, float, int)) or not isinstance(budgets, Iterable):
        raise UserError(f"budgets is a list of names or shares of MACs, not {budgets!r}")
    opened = bundle if isinstance(bundle, Bundle) else _open_bundle(bundle)
    name = find_budget(opened, budget)
    names = list(dict.fromkeys([name, *(find_budget(opened, other) for other in budgets)]))
    files = {each: prepare(opened, each, runtime, precision, progress=progress, warn=warn) for each in names}
    threads = default_threads() if threads is None else threads
    engines: dict[str, Engine] = {}
    fallbacks: dict[str, Fallback] = {}
    try:
        for each, file in files.items():
            its_precision = opened.budget(each).artifact(runtime, precision).precision
            guard = Guard(opened, each, runtime, its_precision, threads, progress=progress, warn=warn)
            open_file = partial(open_engine, runtime=runtime, threads=threads, shared=len(names) > 1)
            engines[each], fallback = guard.open(file, open_file) if check else (open_file(file), None)
            if fallback is not None:
                fallbacks[each] = fallback
                (warn or _warn)(f"budget {each}: {fallback.describe()}")
        chosen = opened.budget(name).artifact(runtime, precision).precision
        model = Predictor(opened, engines, name, chosen, channel_order)
        model.fallbacks = fallbacks
        opened.check_unchanged()
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise
    return model


def _open_bundle(path: Path | str) -> Bundle:
    try:
        return Bundle.open(path)
    except (TypeError, ValueError, OSError, RuntimeError) as error:  # what is no path: None, a NUL in it, links in a circle
        raise UserError(f"no bundle can be opened at {path!r} ({error}): give its directory") from error


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def load_predictor(
    bundle: Bundle,
    budget: str,
    file: Path,
    runtime: str,
    precision: str | None,
    threads: int,
) -> Predictor:
    """A budget from the file that `edge_tprune.bundle.engines.prepare` gave for it, not checked yet. Arguments as for `open_predictor`.

    Raises:
        UserError: the file cannot be loaded.
    """
    precision = bundle.budget(budget).artifact(runtime, precision).precision
    return Predictor(bundle, {budget: open_engine(file, runtime, threads=threads)}, budget, precision)


def find_budget(bundle: Bundle, budget: float | str | None) -> str:
    """The name of the budget that a person means by a name or a share of MACs.

    Raises:
        UserError: none, or several.
    """
    names = [entry.name for entry in bundle.budgets]
    if budget is None:
        if len(names) == 1:
            return names[0]
        raise UserError(f"bundle {bundle.path} has {len(names)} budgets: name one of {', '.join(names)}")
    if not isinstance(budget, str):
        if not isinstance(budget, (int, float, np.number)) or not 0 < budget <= 1:
            what = f"{budget:g}" if isinstance(budget, float) else f"a value of type {type(budget).__name__}"
            raise UserError(f"a budget is a name, or a share of MACs above 0 and at most 1, not {what}")
        found = [entry.name for entry in bundle.budgets if entry.requested == budget]
        if len(found) == 1:
            return found[0]
        budget = f"{budget:g}" if budget != 1 else "1.0"
    return bundle.budget(budget).name


def _to_image(array: np.ndarray, order: ChannelOrder, prepared: tuple[int, ...]) -> Image.Image:
    """The image in a camera's array."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("pillow", "host", error) from error
    if array.dtype == np.uint8 and array.ndim == 2:
        return Image.fromarray(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise UserError(
            f"an image is a uint8 array (height, width, 3) or a prepared float32 array {prepared}, not {array.dtype} {array.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(array[..., ::-1] if order == "bgr" else array))
