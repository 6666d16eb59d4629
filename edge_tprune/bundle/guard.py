"""What is done about an engine that fails its golden check: the block at fault is named, and precision is raised step by step until one passes.

The block is found by bisection. Graphs that end after a block (`edge_tprune.bundle.graph_edit.cut_after`) run as engines of the same runtime, and what
they give is held against ONNX Runtime on the CPU, which computes half precision in float32. Its graph is the engine's own, if that passes the
golden check there, else the budget's in float32.

Steps: the block in float32, the norms, attention, the residual stream (`mixed`), everything. Each includes those before it. None is taken silently:
`Fallback` says what was tried and what runs now.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from edge_tprune.bundle import graph_edit
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.engines import engine_of, graph_source, prepare
from edge_tprune.bundle.external_data import external_files
from edge_tprune.bundle.fallback import PASSED, Fallback, FallbackStep
from edge_tprune.bundle.golden import TOLERANCE, Golden, GoldenResult, check_golden
from edge_tprune.bundle.graph_file import GraphFile
from edge_tprune.bundle.manifest import KIND, Artifact
from edge_tprune.errors import EdgeTPruneError, NegativeAnswer, UserError
from edge_tprune.files import clear_write_errors, write_bytes
from edge_tprune.runtime import ort
from edge_tprune.runtime.engine import Engine, open_engine
from edge_tprune.runtime.tensorrt.builder import Progress
from edge_tprune.runtime.tensorrt.cache import Warn, cache_root

_ORT, _FP32, _INT8 = "onnxruntime", "fp32", "int8"
# Of `token_distance`, of a block that computes what it should. In fp16 rounding moves the reference model's tokens by less than 0.001.
_LIMITS = {"fp32": 0.001, "int8": 0.3}
_HALF_LIMIT = 0.02
_AFTER = "after the last block"


@dataclass(frozen=True)
class Guard:
    """One budget in one runtime and precision, whose engine failed its golden check."""

    bundle: Bundle
    budget: str
    runtime: str
    precision: str
    threads: int
    tolerance: float = TOLERANCE
    cache: Path | None = None  #: where engine files and edited graphs are kept; by default the user's cache
    progress: Progress | None = None
    warn: Warn | None = None

    def open(self, file: Path, open_file: Callable[[Path], Engine]) -> tuple[Engine, Fallback | None]:
        """An engine that passed its golden check, and what it took.

        Args:
            file: what `edge_tprune.bundle.engines.prepare` gave.
            open_file: opens an engine.

        Raises:
            NegativeAnswer: it fails, and no higher precision helps.
        """
        golden = self.bundle.golden()
        engine = open_file(file)
        try:
            result = self._check_run(engine.run, self.precision, golden)
            if result.passed:
                return engine, None
            info = engine.info
        except BaseException:
            engine.close()
            raise
        engine.close()
        fallback, other = self.fall_back(result)
        if other is None:
            raise NegativeAnswer(
                f"budget {self.budget} failed its golden check on {info.runtime} {info.version}: {fallback.describe()}. "
                f"Do not use it. {KIND.remedy}"
            )
        return open_file(other), fallback

    def fall_back(self, failed: GoldenResult) -> tuple[Fallback, Path | None]:
        """Names the block at fault and raises precision until an engine passes.

        Args:
            failed: what the check found.

        Returns:
            What was done, and what to open the engine from; None where nothing helped.
        """
        golden = self.bundle.golden()
        try:
            graph = GraphFile.parse((self.bundle.path / self.artifact.file).read_bytes())
        except (EdgeTPruneError, ValueError, OSError) as error:
            step = FallbackStep(what=self.precision, outcome=f"could not be done ({error})")
            return self._fallback(failed, f"not known ({error})", [step], None), None
        try:
            block, fault = self._find_fault(graph, golden.batches[failed.worst_batch], golden)
        except (EdgeTPruneError, ValueError) as error:
            block, fault = None, f"not known ({error})"
        steps: list[FallbackStep] = []
        for what, make in self._steps(graph, block, fault):
            try:
                made = make()
                result = None if made is None else self._check(made[0], made[1], golden)
            except (EdgeTPruneError, ValueError) as error:
                steps.append(FallbackStep(what=what, outcome=f"could not be done ({error})"))
                continue
            if made is None or result is None:
                steps.append(FallbackStep(what=what, outcome="nothing to change in this graph"))
                continue
            steps.append(FallbackStep(what=what, outcome=PASSED if result.passed else result.describe()))
            if result.passed:
                return self._fallback(failed, fault, steps, what), made[0]
        if not steps:
            steps.append(FallbackStep(what=self.precision, outcome="there is no higher precision"))
        return self._fallback(failed, fault, steps, None), None

    def _fallback(self, failed: GoldenResult, fault: str, steps: list[FallbackStep], now: str | None) -> Fallback:
        return Fallback(precision=self.precision, failure=failed.describe(), fault=fault, steps=tuple(steps), now=now)

    @property
    def artifact(self) -> Artifact:
        """The graph that the engine was made from."""
        return self.bundle.budget(self.budget).artifact(self.runtime, self.precision)

    def _check(self, file: Path, precision: str, golden: Golden) -> GoldenResult:
        with open_engine(file, self.runtime, threads=self.threads) as engine:
            return self._check_run(engine.run, precision, golden)

    def _check_run(self, run: Callable[[np.ndarray], np.ndarray], precision: str, golden: Golden) -> GoldenResult:
        return check_golden(run, golden, self.budget, self.bundle.manifest.model.output.name, precision, self.tolerance)

    # The block at fault

    def _find_fault(self, graph: GraphFile, batch: np.ndarray, golden: Golden) -> tuple[int | None, str]:
        """The first block, counted from 1, whose tokens are not those of a right engine; and where the fault lies, in words."""
        reference = self._reference(golden)
        if reference is None:
            return None, "not known (no graph of this budget answers rightly in ONNX Runtime here)"
        right = GraphFile.parse(reference.read_bytes())
        limit = _LIMITS.get(self.precision, _HALF_LIMIT)
        blocks = len(graph_edit.block_ends(graph))

        with self._folder("probes-") as name:
            folder = Path(name)

            def is_near(block: int) -> bool:
                file = self._engine_file(graph_edit.cut_after(graph, block), folder, block, folder)
                expected_file = self._write(graph_edit.cut_after(right, block), folder)
                with open_engine(file, self.runtime, threads=self.threads) as engine:
                    found = engine.run(batch)
                with ort.open_engine(expected_file, self.threads) as engine:
                    expected = engine.run(batch)
                # Graphs for ONNX Runtime hold tokens as rows (B N, C).
                found, expected = (tokens.reshape(len(batch), -1, tokens.shape[-1]) for tokens in (found, expected))
                return token_distance(found, expected) <= limit

            block = first_wrong(blocks, is_near)
        return (None, _AFTER) if block is None else (block, f"block {block} of {blocks}")

    def _reference(self, golden: Golden) -> Path | None:
        """A graph of this budget that passes the golden check in ONNX Runtime: the engine's own, else one in float32."""
        exact = [a for a in self.bundle.budget(self.budget).artifacts if a.is_graph and a.precision == _FP32]
        for artifact in (self.artifact, *sorted(exact, key=lambda a: a.runtime != _ORT)):
            file = self.bundle.path / artifact.file
            with ort.open_engine(file, self.threads) as engine:
                if self._check_run(engine.run, artifact.precision, golden).passed:
                    return file
        return None

    # Higher precision

    def _steps(
        self, graph: GraphFile, block: int | None, fault: str
    ) -> Iterator[tuple[str, Callable[[], tuple[Path, str] | None]]]:
        """What to try, in order: its name, and what makes an engine file (and the precision it is checked in); None where nothing changes."""
        if self.precision == _FP32:
            return
        parts: list[tuple[str, set[int]]] = []
        if block is not None:
            parts.append((f"block {block} in float32", graph_edit.block_nodes(graph, block)))
        elif fault == _AFTER:
            rest = set(range(graph_edit.block_ends(graph)[-1] + 1, len(graph.nodes)))
            parts.append(("what follows the last block in float32", rest))
        if self.precision != _INT8:
            parts.append(("norms in float32", graph_edit.norm_nodes(graph)))
            parts.append(("attention in float32", graph_edit.attention_nodes(graph)))
        chosen: frozenset[int] = frozenset()
        for what, places in parts:
            before, chosen = chosen, chosen | places
            yield what, partial(self._raise, graph, chosen, before)
        if self.precision != "mixed":
            stream = None if self.precision == _INT8 else chosen | graph_edit.stream_nodes(graph)
            yield "mixed", partial(self._other, graph, "mixed", stream, chosen)
        yield _FP32, partial(self._other, graph, _FP32, frozenset(range(len(graph.nodes))), chosen)

    def _other(
        self, graph: GraphFile, precision: str, places: frozenset[int] | None, before: frozenset[int]
    ) -> tuple[Path, str] | None:
        """The bundle's own graph in a precision; where it has none, the edited one, if the edit leads there."""
        if any(a.precision == precision for a in self.bundle.budget(self.budget).graphs(self.runtime)):
            file = prepare(
                self.bundle, self.budget, self.runtime, precision, cache=self.cache, progress=self.progress, warn=self.warn
            )
            return file, precision
        if places is None:
            raise UserError(f"the bundle has no graph in {precision} for {self.runtime}: build with --precision {precision}")
        return self._raise(graph, places, before)

    def _raise(self, graph: GraphFile, places: frozenset[int], before: frozenset[int]) -> tuple[Path, str] | None:
        """The engine file of the graph with some of its nodes in float32; None where that is the graph of the step before."""
        edited, previous = (self._edit(graph, chosen) for chosen in (places, before))
        if edited == previous:
            return None
        folder = (self.cache or cache_root()) / "fallback"
        return self._engine_file(edited, folder, len(graph_edit.block_ends(graph)), self.cache), self.precision

    def _edit(self, graph: GraphFile, places: frozenset[int]) -> GraphFile:
        if self.precision == _INT8:
            return graph_edit.without_integers(graph, places)
        return graph_edit.in_float(graph, places)

    # Files

    def _engine_file(self, graph: GraphFile, folder: Path, blocks: int, cache: Path | None) -> Path:
        """What to open an engine of a graph with so many blocks from."""
        file = self._write(graph, folder)
        budget = self.bundle.budget(self.budget)
        source = replace(
            graph_source(self.bundle, budget, self.artifact),
            graph=file,
            graph_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            blocks=blocks,
            schedule=budget.schedule[:blocks],
        )
        return engine_of(source, self.runtime, cache=cache, progress=self.progress, warn=self.warn)

    def _write(self, graph: GraphFile, folder: Path) -> Path:
        """A file of the graph, with its weight files beside it: links where the file system has them, else copies."""
        data = graph.encode()
        weights = {name: self.bundle.path / PurePosixPath(self.artifact.file).parent / name for name in external_files(data)}
        entries = [self.bundle.files[file.relative_to(self.bundle.path).as_posix()].sha256 for file in weights.values()]
        place = folder / hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()[:16]
        name = f"{Path(self.artifact.file).name.removesuffix('.onnx')}.{hashlib.sha256(data).hexdigest()[:16]}.onnx"
        with clear_write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            for weight, file in weights.items():
                _link(file, place / weight)
            write_bytes(place / name, data)
        return place / name

    def _folder(self, prefix: str) -> tempfile.TemporaryDirectory[str]:
        root = self.cache or cache_root()
        with clear_write_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(prefix=prefix, dir=root)


def first_wrong(blocks: int, is_near: Callable[[int], bool]) -> int | None:
    """The first block, counted from 1, after which a network is wrong, by bisection; None where it is right after the last one.

    Args:
        blocks: of the network.
        is_near: whether it is right after a block. A fault stays visible in all blocks that follow it.
    """
    right, wrong = 0, blocks
    if is_near(blocks):
        return None
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if is_near(middle):
            right = middle
        else:
            wrong = middle
    return wrong


def token_distance(found: np.ndarray, expected: np.ndarray) -> float:
    """How far tokens are from those of a right network: of each expected token the nearest found one, relative to its length; the median over
    tokens, of the image that is farthest. Infinite where a number is not finite.

    The nearest one, because rounding may change which tokens a stage keeps, and in which order.

    Args:
        found: (B, N, C).
        expected: (B, M, C).
    """
    if not np.isfinite(found).all():
        return float("inf")
    worst = 0.0
    for tokens, wanted in zip(found.astype(np.float64), expected.astype(np.float64)):
        squares = np.square(wanted).sum(1)
        apart = squares[:, None] + np.square(tokens).sum(1) - 2 * wanted @ tokens.T
        nearest = np.sqrt(apart.min(1).clip(0) / np.maximum(squares, np.finfo(np.float64).tiny))
        worst = max(worst, float(np.median(nearest)))
    return worst


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # another file system, or one without links
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as stream:
            shutil.copyfile(source, stream.name)
        Path(stream.name).replace(target)
