"""Writes a bundle into an empty directory: per budget its graphs, each proved to be its network, then golden data and the manifest."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
import torch

from edge_tprune.bundle.golden import allowed_arrays, image_differences, outlier_arrays
from edge_tprune.bundle.manifest import (
    GOLDEN,
    KIND,
    Artifact,
    Budget,
    FileEntry,
    Manifest,
    Method,
    Model,
    OutputType,
    TensorType,
    artifact_key,
)
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.bundle.parity import Parity
from edge_tprune.errors import InternalError, UserError
from edge_tprune.export.calibration import calibrate, check_layers, host, outputs_of
from edge_tprune.export.graph import INPUT, SharedWeights, export, save
from edge_tprune.export.integer_parity import IntegerJudge
from edge_tprune.export.outliers import OutlierProof, answers, make_outliers
from edge_tprune.export.parity import prove_equal, prove_near
from edge_tprune.export.settings import BudgetSettings, BuildSettings, GraphSettings
from edge_tprune.export.steadiness import GOLDEN_BATCHES, ProofImages, choose_images, choosing_modules
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.reduction.own import is_own
from edge_tprune.reduction.precision import DEFAULT, INTEGERS, precision
from edge_tprune.runtime.engine import open_engine
from edge_tprune.version import __version__

Progress = Callable[[str, int, int], None]

_GRAPHS, _WEIGHTS = "onnx", "weights.bin"


@contextmanager
def _own_method(name: str) -> Iterator[None]:
    """Around a proof: where it fails for a method of a person's own, that is to blame."""
    try:
        yield
    except InternalError as error:
        if is_own(registry.method(name)):
            raise UserError(
                f"method {name}: {error}. Which tokens of an image it keeps must not depend on the other images of a batch, and all that it computes "
                "must be the same in ONNX"
            ) from error
        raise


@dataclass(frozen=True)
class _Writer:
    loaded: LoadedModel
    settings: BuildSettings
    folder: Path
    proof: ProofImages
    weights: SharedWeights
    progress: Callable[[str], None]
    judge: IntegerJudge | None  #: of INT8 graphs
    outliers: OutlierProof
    allowed: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  #: of ordinary images (`Golden.allowed`)

    def write_budget(self, budget: BudgetSettings, expected: np.ndarray) -> Budget:
        """Writes and proves all graphs of a budget, against PyTorch's outputs (batches, B, ...): its entry in the manifest."""
        artifacts, parity = [], {}
        # By file: runtimes that read the same form share the graph, and the proof that it is right.
        proved: dict[str, Parity] = {}
        modules = {DEFAULT: budget.module}
        for graph in self.settings.graphs:
            self.progress(f"budget {budget.name}")
            name = graph.file_name(budget.name)
            if name not in proved:
                proved[name] = self._write_graph(budget, graph, modules, expected)
            parity[artifact_key(graph.runtime, graph.precision)] = proved[name]
            entry = FileEntry.of(self.folder / _GRAPHS / name)
            artifacts.append(
                Artifact(
                    runtime=graph.runtime,
                    precision=graph.precision,  # type: ignore[arg-type]  # names of `PRECISIONS`
                    form=graph.form.name,
                    file=f"{_GRAPHS}/{name}",
                    sha256=entry.sha256,
                    bytes=entry.bytes,
                )
            )
        return _describe_budget(self.settings, budget, parity, artifacts)

    def _write_graph(
        self, budget: BudgetSettings, graph: GraphSettings, modules: dict[str, PrunedViT], expected: np.ndarray
    ) -> Parity:
        """One graph and how it was proved. `modules` of the budget by precision: made when the first graph needs one."""
        file = self.folder / _GRAPHS / graph.file_name(budget.name)
        if graph.precision == INTEGERS:
            assert self.judge is not None
            module = self.judge.calibration.module(budget, graph.form.inputs, graph.form.integers)
            self._save(module, graph, file)
            found = self.judge.prove(file, budget, module, graph.form.inputs)
            self.outliers.add_graph(budget.name, file, budget.module, module)
            self._allow(budget.name, file, module, expected)
            return found
        if graph.precision not in modules:
            modules[graph.precision] = host(self.loaded.model, self.settings, budget, precision(graph.precision))
        module = modules[graph.precision]
        self._save(module, graph, file)
        images = self.proof.batches.numpy()
        if graph.precision == DEFAULT:
            with _own_method(budget.module.method):
                found = prove_equal(file, budget.name, images, expected, self.settings.output)
        else:
            found = prove_near(file, budget.name, images, expected, (budget.module, module))
        self.outliers.add_graph(budget.name, file, budget.module, module)
        return msgspec.structs.replace(found, images_left_out_for_near_ties=self.proof.left_out)

    def _allow(self, name: str, file: Path, module: PrunedViT, expected: np.ndarray) -> None:
        """Records how far integers may move the golden images' outputs: twice what they do here, in ONNX Runtime and in PyTorch."""
        images = self.proof.batches[:GOLDEN_BATCHES]
        with open_engine(file, "onnxruntime", threads=torch.get_num_threads()) as engine:
            found = np.stack([engine.run(batch) for batch in images.numpy()])
        simulated = outputs_of(module, images.flatten(0, 1)).reshape(found.shape)
        moved = [image_differences(each, expected[:GOLDEN_BATCHES], module.output, INTEGERS) for each in (found, simulated)]
        allowed = (2 * np.maximum(*moved)).astype(np.float32)
        self.allowed[name, INTEGERS] = np.maximum(self.allowed.get((name, INTEGERS), 0.0), allowed)

    def _save(self, module: PrunedViT, graph: GraphSettings, file: Path) -> None:
        model = export(module, graph.form, self.settings.batch, self.loaded.preprocessing.input_size)
        self.weights.externalise(model)
        save(model, file)


def write_bundle(loaded: LoadedModel, settings: BuildSettings, folder: Path, fingerprint: str, progress: Progress) -> Manifest:
    """Writes the bundle of `settings` into the empty directory `folder`.

    Args:
        loaded: the model.
        settings: from `decide`.
        folder: an empty directory.
        fingerprint: what the manifest says of everything that the build depends on.
        progress: called as (what, done, of) before each step.

    Raises:
        NegativeAnswer: no sample image can prove these graphs right.
        InternalError: a graph is not its network.
    """
    choosing = len(choosing_modules(settings))  # each takes about as long as a graph
    steps, done = choosing + len(settings.budgets) * len(settings.graphs), choosing

    def step(what: str) -> None:
        nonlocal done
        progress(what, done, steps)
        done += 1

    check_layers(loaded, settings.float_layers)
    judge = None
    if settings.calibration is not None:
        judge = IntegerJudge(calibrate(loaded, settings, settings.calibration, settings.float_layers, progress))
    progress("choosing images", 0, steps)
    proof = choose_images(loaded, settings, lambda tried, what: progress(what, tried, steps))
    progress("what the networks should answer", choosing, steps)
    (folder / _GRAPHS).mkdir()
    weights_file = folder / _GRAPHS / _WEIGHTS
    golden = {"input": proof.batches[:GOLDEN_BATCHES].numpy()}
    budgets = []
    with weights_file.open("wb") as stream:
        outliers = OutlierProof(make_outliers(loaded, proof.batches[0, 0], settings.batch))
        writer = _Writer(loaded, settings, folder, proof, SharedWeights(stream, _WEIGHTS), step, judge, outliers)
        modules = {budget.name: budget.module for budget in settings.budgets}
        outliers.add_budgets(modules)
        for budget, outputs in zip(settings.budgets, answers(list(modules.values()), proof.batches)):
            budgets.append(writer.write_budget(budget, outputs))
            golden[f"{settings.output}/{budget.name}"] = outputs[:GOLDEN_BATCHES]
    golden |= outlier_arrays(outliers.result(settings.output), settings.output) | allowed_arrays(writer.allowed)
    buffer = io.BytesIO()
    np.savez(buffer, **golden)  # type: ignore[arg-type]  # no array is called as its other parameter
    (folder / GOLDEN).write_bytes(buffer.getvalue())
    manifest = Manifest(
        name=f"{loaded.name}-{settings.label or settings.method}",
        tool_version=__version__,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        fingerprint=fingerprint,
        batch=settings.batch,
        model=_describe_model(loaded, settings, outputs.shape[1:]),
        preprocessing=loaded.preprocessing,
        method=Method(name=settings.method, options=dict(settings.options), blocks=settings.blocks),
        budgets=tuple(budgets),
        files={f"{_GRAPHS}/{_WEIGHTS}": FileEntry.of(weights_file), GOLDEN: FileEntry.of(folder / GOLDEN)},
        class_names=loaded.class_names if settings.output == LOGITS else None,
        quantization=None if judge is None else judge.calibration.record,
    )
    KIND.write(folder, manifest)
    return manifest


def _describe_budget(
    settings: BuildSettings, budget: BudgetSettings, parity: dict[str, Parity], artifacts: list[Artifact]
) -> Budget:
    return Budget(
        name=budget.name,
        requested=budget.schedule.requested,
        schedule=budget.schedule.tokens,
        macs=budget.module.shape.macs(budget.schedule.tokens),
        macs_share=budget.schedule.share,
        parity=parity,
        accuracy=None,
        artifacts=tuple(artifacts),
        method=_describe_method(budget) if settings.is_own(budget) else None,
        own_pattern=budget.own_pattern,
    )


def _describe_method(budget: BudgetSettings) -> Method:
    counts = (budget.module.shape.tokens, *budget.schedule.tokens)
    blocks = tuple(block for block in range(1, len(counts)) if counts[block] < counts[block - 1])
    return Method(name=budget.module.method, options=budget.module.options, blocks=blocks)


def _describe_model(loaded: LoadedModel, settings: BuildSettings, output: tuple[int, ...]) -> Model:
    shape, batch = settings.shape, settings.batch
    return Model(
        name=loaded.name,
        weights=loaded.weights,
        weights_sha256=loaded.weights_sha256,
        classes=output[-1] if settings.output == LOGITS else 0,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        tokens=shape.tokens,
        prefix_tokens=shape.prefix_tokens,
        blocks=shape.blocks,
        macs=shape.macs(),
        arguments=dict(loaded.arguments),
        input=TensorType(name=INPUT, shape=(batch, *loaded.preprocessing.input_size), dtype="float32"),
        output=OutputType(
            name=settings.output,  # type: ignore[arg-type]  # one of `OUTPUTS`
            shape=output,
            dtype="float32",
            normalized=settings.normalize,
        ),
    )
