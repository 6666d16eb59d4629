"""Accuracy of every budget, through the engine that was built, stored in the bundle.

Agreement with and divergence from the unpruned model need no labels; top-1 and top-5 do. Every comparison is paired by image and
carries a bootstrap interval, because a few hundred images do not resolve differences of a point.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import msgspec
import numpy as np

from edge_tprune.bundle.accuracy import (
    BatchAnswers,
    Evaluation,
    MeanInterval,
    Variant,
    compare_logits,
    compare_vectors,
    summarise,
)
from edge_tprune.bundle.arrays import DamagedArrays, read_arrays
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.engines import prepare
from edge_tprune.bundle.golden import Golden, check_golden
from edge_tprune.bundle.label_check import doubt_labels
from edge_tprune.bundle.manifest import KIND, Accuracy, Budget, EvaluationData, FileEntry, Manifest
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.bundle.revision import RESULTS, Revision, check_revisable, revise
from edge_tprune.errors import NegativeAnswer, UserError
from edge_tprune.files import read_regular
from edge_tprune.models.data import Dataset
from edge_tprune.runtime.engine import Engine, open_engine
from edge_tprune.statistics import mean_interval

_MOST_BYTES = 1 << 32  # of stored per-image results
_BYTES_PER_ANSWER = 32  # an image's ranks and divergence, of one variant
_ORT = "onnxruntime"

A = TypeVar("A")
B = TypeVar("B")


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    *,
    runtime: str = _ORT,
    precision: str = "fp32",
    threads: int = 2,
    budgets: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> tuple[Bundle, dict[str, Accuracy]]:
    """Runs every budget over the dataset and stores its accuracy in the bundle.

    In half precision every budget runs in float32 as well, in ONNX Runtime, and both records are stored: the half one is compared with the unpruned
    network in float32, so that it answers for rounding and reduction together, and with its own budget in float32 (`against_fp32`).

    `eval-<hash>.npz` in the bundle receives the per-image results: `labels` (N,), and per budget `top5/<name>` (N, 5) the classes ranked
    first and `kl_nats/<name>` (N,) the divergence KL(unpruned || budget); names as `Variant.label`. Of outputs other than logits instead
    `cosine_distance/<name>` (N,) from the unpruned budget's, and of embeddings `neighbour/<name>` (N,), the index of the nearest other image.

    Args:
        bundle: an opened bundle; it needs its unpruned budget, which every other is compared with.
        dataset: images, with labels or without.
        runtime: what runs the graphs. ONNX Runtime runs those that were written for TensorRT, too.
        precision: of the graphs.
        threads: CPU threads, for decoding images and for ONNX Runtime together.
        budgets: names; all by default. The unpruned one always runs.
        progress: called as (images done, of).
        warn: called with what a person should know, such as labels that can hardly be the model's.

    Returns:
        The bundle with the records, and those of this precision by budget.

    Raises:
        UserError: no unpruned budget, an unknown budget name, no graph in that precision, an unreadable image; the bundle cannot be
            written, or was rebuilt in the meantime.
        NegativeAnswer: an engine fails its golden check, or gives numbers that are not finite.
    """
    count = len(bundle.budgets) * (1 if precision == "fp32" else 2)
    check_revisable(bundle.path, len(dataset) * count * _BYTES_PER_ANSWER)
    found = judge(
        bundle,
        dataset,
        runtime=runtime,
        precision=precision,
        against_fp32=precision != "fp32",
        threads=threads,
        budgets=budgets,
        progress=progress,
        warn=warn,
    )
    there: set[str] = set()  # as the bundle is when it is revised: another evaluation may have ended meanwhile

    def change(now: Bundle) -> Revision:
        there.update(_records(now.manifest))
        return _with_results(now, found)

    stored = revise(bundle, change)
    if warn is not None and (lost := sorted(there - _records(stored.manifest).keys())):
        warn(
            f"the accuracy of {', '.join(lost)} was of other images, and is no longer in the bundle: evaluate all budgets on the same"
        )
    of_precision = {label: record for label, record in found.records.items() if precision == "fp32" or "@" in label}
    return stored, {label.partition("@")[0]: record for label, record in of_precision.items()}


def check_request(
    bundle: Bundle, *, runtime: str = _ORT, precision: str = "fp32", budgets: Sequence[str] | None = None
) -> None:
    """Refuses, before any image is read, what `evaluate` would refuse because of the bundle alone. Arguments: as for `evaluate`.

    Raises:
        UserError: no unpruned budget, an unknown budget, no graph in that precision for that runtime, a bundle that cannot be written.
    """
    check_revisable(bundle.path)
    for budget in _with_unpruned(bundle, budgets):
        if runtime != _ORT or not any(a.is_graph and a.precision == precision for a in budget.artifacts):
            budget.artifact(runtime, precision)


def judge(
    bundle: Bundle,
    dataset: Dataset,
    *,
    runtime: str = _ORT,
    precision: str | None = None,
    against_fp32: bool = False,
    threads: int = 2,
    budgets: Sequence[str] | None = None,
    interval: MeanInterval = mean_interval,
    files: Mapping[str, Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Evaluation:
    """What `evaluate` finds, without storing it; it needs neither torch nor timm.

    Args:
        bundle: as for `evaluate`.
        dataset: as for `evaluate`.
        runtime: as for `evaluate`.
        precision: as for `evaluate`; by default the one that the bundle was built for first.
        against_fp32: run every budget in float32 as well, in ONNX Runtime, and compare with those.
        threads: as for `evaluate`.
        budgets: as for `evaluate`.
        interval: of a mean over images.
        files: by label, what an engine is opened from instead of what `prepare` gives: one that fell back to a higher precision.
        progress: as for `evaluate`.
        warn: as for `evaluate`.

    Raises:
        UserError, NegativeAnswer: as `evaluate`.
    """
    chosen = _with_unpruned(bundle, budgets)
    variants = _variants(chosen, runtime, precision, against_fp32)
    baseline = chosen[0].name
    golden, kind = bundle.golden(), bundle.manifest.model.output.name
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for label, variant in variants.items():
            # Images are the unit of parallel work: one thread per engine keeps every core busy and none waiting for another.
            each = 1 if variant.runtime == _ORT else threads
            file = (files or {}).get(label) or _file(bundle, variant)
            engine = open_engine(file, variant.runtime, threads=each)
            engines[label] = stack.enter_context(engine)
            _check(bundle, variant, engine, golden)
        one_at_a_time = Lock()
        compare = compare_logits if kind == LOGITS else partial(compare_vectors, kind)

        def answer(start: int) -> BatchAnswers:
            count = min(bundle.batch, len(dataset) - start)
            images = np.zeros((bundle.batch, *bundle.manifest.preprocessing.input_size), np.float32)
            truth = np.empty(count, np.int64)
            for place in range(count):
                picture, truth[place] = dataset[start + place]
                images[place] = bundle.manifest.preprocessing(picture)
            outputs = {}
            for label, engine in engines.items():
                with nullcontext() if engine.concurrent else one_at_a_time:
                    outputs[label] = engine.run(images)[:count]
                if not np.isfinite(outputs[label]).all():
                    raise NegativeAnswer(
                        f"budget {label} gives numbers that are not finite for image {start + 1} of {dataset.name}: it overflows. "
                        "Try --precision mixed or fp32"
                    )
            return compare(outputs, truth, baseline, variants)

        parts = []
        for part in _in_order(answer, range(0, len(dataset), bundle.batch), threads):
            parts.append(part)
            if progress is not None:
                progress(min(len(parts) * bundle.batch, len(dataset)), len(dataset))
    data = EvaluationData(name=dataset.name, images=len(dataset), labelled=dataset.labelled, sha256=dataset.fingerprint)
    found = summarise(parts, variants, baseline, data, bundle.manifest.model.classes, interval)
    if warn is not None and kind == LOGITS:
        first = found.answers.top5[baseline][:, 0]
        if doubt := doubt_labels(found.answers.truth, first, bundle.manifest.class_names):
            warn(f"{doubt}. Check it; --class-map FILE gives another")
    return found


def _with_unpruned(bundle: Bundle, names: Sequence[str] | None) -> list[Budget]:
    """The unpruned budget, then the named ones."""
    unpruned = bundle.unpruned
    if unpruned is None:
        raise UserError(
            f"bundle {bundle.path} has no unpruned budget to compare with: build it again with 1.0 among its --budgets"
        )
    others = bundle.budgets if names is None else [bundle.budget(name) for name in names]
    return list({budget.name: budget for budget in (unpruned, *others)}.values())


def _variants(budgets: Sequence[Budget], runtime: str, precision: str | None, against_fp32: bool) -> dict[str, Variant]:
    """What is run, by label; the unpruned network in float32 first where all are compared with float32."""
    exact = [Variant(budget.name, _ORT, "fp32") for budget in budgets] if against_fp32 else []
    asked = [
        Variant(budget.name, runtime, precision or budget.artifact(runtime).precision, budget.name if against_fp32 else None)
        for budget in budgets
    ]
    return {variant.label: variant for variant in (*exact, *asked)}


def _file(bundle: Bundle, variant: Variant) -> Path:
    """What its engine is opened from. ONNX Runtime also runs graphs that were written for others, where it has none in that precision."""
    budget = bundle.budget(variant.budget)
    if variant.runtime == _ORT:
        graphs = [a for a in budget.artifacts if a.is_graph and a.precision == variant.precision]
        for graph in sorted(graphs, key=lambda artifact: artifact.runtime != _ORT):
            return bundle.path / graph.file
    return prepare(bundle, variant.budget, variant.runtime, variant.precision)


def _check(bundle: Bundle, variant: Variant, engine: Engine, golden: Golden) -> None:
    """The golden check, as `profile` makes it.

    Raises:
        NegativeAnswer: the engine is not the network that it should be.
    """
    if engine.input_shape != bundle.manifest.model.input.shape:
        raise NegativeAnswer(
            f"budget {variant.label}: its graph takes {engine.input_shape}, and the manifest says {bundle.manifest.model.input.shape}. "
            f"{KIND.remedy}"
        )
    kind = bundle.manifest.model.output.name
    result = check_golden(engine.run, golden, variant.budget, kind, variant.precision)
    if not result.passed:
        raise NegativeAnswer(
            f"budget {variant.label} failed its golden check on {variant.runtime}: {result.describe()}. "
            f"Nothing was evaluated. {KIND.remedy}"
        )


def _in_order(work: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`work` of each item, in order, by `threads` threads that are at most two items each ahead."""
    waiting = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        futures: list[Future[B]] = [pool.submit(work, item) for item in islice(waiting, 2 * threads)]
        try:
            while futures:
                result = futures.pop(0).result()
                futures += [pool.submit(work, item) for item in islice(waiting, 1)]
                yield result
        finally:
            for future in futures:
                future.cancel()


def _with_results(bundle: Bundle, found: Evaluation) -> Revision:
    """The bundle with these results beside what else was judged on the same images."""
    manifest = bundle.manifest
    images = next(iter(found.records.values())).data.sha256
    kept = {label: record for label, record in _records(manifest).items() if record.data.sha256 == images}
    kept = {label: record for label, record in kept.items() if label not in found.records}
    arrays = {**_arrays(bundle, kept), **found.arrays}
    data = _packed(arrays)
    digest = sha256(data).hexdigest()
    files = {name: entry for name, entry in manifest.files.items() if not name.startswith(RESULTS)}
    name = f"{RESULTS}{digest[:12]}.npz"
    files[name] = FileEntry(sha256=digest, bytes=len(data))
    records = {**kept, **found.records}
    budgets = []
    for budget in manifest.budgets:
        halves = {label.partition("@")[2]: record for label, record in records.items() if label.startswith(f"{budget.name}@")}
        budgets.append(msgspec.structs.replace(budget, accuracy=records.get(budget.name), accuracy_by_precision=halves))
    return Revision(msgspec.structs.replace(manifest, files=files, budgets=tuple(budgets)), {name: data})


def keep_results(before: Bundle, manifest: Manifest) -> Revision:
    """The manifest of a bundle that was built again, with what `eval` found of the one before, where all their files are the same."""
    results = {name: entry for name, entry in before.manifest.files.items() if name.startswith(RESULTS)}
    if _inputs(before.manifest) != _inputs(manifest) or not results:
        return Revision(manifest)
    found = {budget.name: budget for budget in before.budgets}
    budgets = [
        msgspec.structs.replace(
            budget, accuracy=found[budget.name].accuracy, accuracy_by_precision=found[budget.name].accuracy_by_precision
        )
        for budget in manifest.budgets
    ]
    files = {name: read_regular(before.path / name, _MOST_BYTES) for name in results}
    return Revision(msgspec.structs.replace(manifest, budgets=tuple(budgets), files={**manifest.files, **results}), files)


def _inputs(manifest: Manifest) -> dict[str, str]:
    """Path -> SHA-256 of what results depend on, and the budgets' names."""
    graphs = {f"{budget.name}: {a.file}": a.sha256 for budget in manifest.budgets for a in budget.artifacts if a.is_graph}
    return graphs | {name: entry.sha256 for name, entry in manifest.files.items() if not name.startswith(RESULTS)}


def _records(manifest: Manifest) -> dict[str, Accuracy]:
    """The records that a bundle holds, by label."""
    records = {}
    for budget in manifest.budgets:
        if budget.accuracy is not None:
            records[budget.name] = budget.accuracy
        records |= {f"{budget.name}@{precision}": record for precision, record in budget.accuracy_by_precision.items()}
    return records


def _arrays(bundle: Bundle, labels: Iterable[str]) -> dict[str, np.ndarray]:
    """The per-image results that a bundle holds of these labels."""
    wanted = set(labels)
    before = next((name for name in bundle.manifest.files if name.startswith(RESULTS)), None)
    if before is None or not wanted:
        return {}
    try:
        arrays = read_arrays(bundle.path / before, _MOST_BYTES)
    except DamagedArrays as error:
        raise UserError(f"bundle {bundle.path}: {before} is damaged: {error}. {KIND.remedy}") from error
    return {name: array for name, array in arrays.items() if name.partition("/")[2] in wanted}


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    return buffer.getvalue()
