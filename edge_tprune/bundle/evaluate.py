"""Accuracy of every budget, through the engine that was built, stored in the bundle.

Agreement with and divergence from the unpruned model need no labels; top-1 and top-5 do. Every comparison is paired by image and
carries a bootstrap interval, because a few hundred images do not resolve differences of a point.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.bundle.bundle import Budget, Bundle
from edge_tprune.bundle.divergence import divergence, log_softmax
from edge_tprune.bundle.engines import prepare
from edge_tprune.errors import UserError
from edge_tprune.files import write_bytes
from edge_tprune.models.data import Dataset, batches
from edge_tprune.models.preprocess import Preprocess
from edge_tprune.runtime.engine import open_engine
from edge_tprune.statistics import Interval, mean_interval

_CHUNK = 32  # images one engine works through before the next: idle engines' threads then rarely spin against the busy one


@dataclass(frozen=True)
class Judged:
    """What every budget answered. One that ran in float32 and in another precision goes by <budget> and <budget>@<precision>."""

    records: dict[str, dict[str, Any]]  #: per budget, the `accuracy` record
    labels: np.ndarray  #: (N,) class of each image, -1 where unknown
    top5: dict[str, np.ndarray]  #: per budget (N, 5): the classes ranked first
    kl_nats: dict[str, np.ndarray]  #: per budget (N,): KL(unpruned || budget)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The per-image results by the names that they are stored under."""
        top5 = {f"top5/{name}": values for name, values in self.top5.items()}
        return {"labels": self.labels, **top5, **{f"kl_nats/{name}": values for name, values in self.kl_nats.items()}}


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    *,
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    threads: int = 2,
    budgets: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs every budget over the dataset and stores its accuracy in the bundle.

    In half precision every budget runs in float32 as well, in ONNX Runtime, and both records are stored: the half one is compared with the unpruned
    network in float32, so that it answers for rounding and reduction together, and with its own budget in float32 (`against_fp32`).

    `eval-<hash>.npz` in the bundle receives the per-image results: `labels` (N,), and per budget `top5/<name>` (N, 5) the classes ranked
    first and `kl_nats/<name>` (N,) the divergence KL(unpruned || budget); names as in `Judged`.

    Args:
        bundle: an opened bundle; it needs its unpruned budget, which every other is compared with.
        dataset: images, with labels or without.
        runtime: what runs the graphs. ONNX Runtime runs those that were written for TensorRT, too.
        precision: of the graphs.
        threads: for each engine.
        budgets: names; all by default. The unpruned one always runs.
        progress: called as (images done, of).

    Returns:
        Per budget name, the record that the manifest now holds for this precision. Its `per_image` has a bit per image (base64, first image
        first): `agrees` with the unpruned model, and with labels `top1_right`.

    Raises:
        UserError: no unpruned budget, an unknown budget name, no graph in that precision, an unreadable image.
    """
    rounded = precision != "fp32"
    found = judge(
        bundle,
        dataset,
        runtime=runtime,
        precision=precision,
        against_fp32=rounded,
        threads=threads,
        budgets=budgets,
        progress=progress,
    )
    _store(bundle, found)
    if not rounded:
        return found.records
    return {name.partition("@")[0]: record for name, record in found.records.items() if "@" in name}


def judge(
    bundle: Bundle,
    dataset: Dataset,
    *,
    runtime: str = "onnxruntime",
    precision: str | None = None,
    against_fp32: bool = False,
    threads: int = 2,
    budgets: Sequence[str] | None = None,
    interval: Callable[[np.ndarray], Interval] = mean_interval,
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """What `evaluate` finds, without storing it; it needs neither torch nor timm.

    Args:
        bundle: as for `evaluate`.
        dataset: as for `evaluate`.
        runtime: as for `evaluate`.
        precision: as for `evaluate`; by default the one that the bundle was built for first.
        against_fp32: run every budget in float32 as well, in ONNX Runtime, and compare with those.
        threads: as for `evaluate`.
        budgets: as for `evaluate`.
        interval: of the mean of one value per image.
        progress: as for `evaluate`.

    Raises:
        UserError: as for `evaluate`.
    """
    baseline = bundle.unpruned
    if baseline is None:
        raise UserError(f"bundle {bundle.path} has no unpruned budget to compare with: build it with 1.0 among --budgets")
    chosen = bundle.budgets if budgets is None else tuple(bundle.budget(name) for name in budgets)
    chosen = (baseline, *(b for b in chosen if b.name != baseline.name))
    transform = Preprocess.from_record(bundle.manifest["preprocessing"])
    classes = bundle.manifest["model"]["classes"]
    contestants = {
        f"{b.name}@{precision}" if against_fp32 else b.name: _Contestant(bundle, b, runtime, precision) for b in chosen
    }
    if against_fp32:
        contestants = {b.name: _Contestant(bundle, b, "onnxruntime", "fp32") for b in chosen} | contestants
    ranked: dict[str, list[np.ndarray]] = {name: [] for name in contestants}
    kl_nats: dict[str, list[np.ndarray]] = {name: [] for name in contestants}
    rounding: dict[str, list[np.ndarray]] = {name: [] for name in contestants}
    worst_logit = dict.fromkeys(contestants, 0.0)
    labels: list[np.ndarray] = []
    done = 0
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(open_engine(one.file(), one.runtime, threads=threads))
            for name, one in contestants.items()
        }
        for images, truth in batches(dataset, transform, max(bundle.batch, _CHUNK // bundle.batch * bundle.batch), threads):
            labels.append(truth)
            answers: dict[str, np.ndarray] = {}
            for name, engine in engines.items():  # the unpruned one comes first, then all others in float32
                logits = answers[name] = _run(engine.run, images, bundle.batch)
                probabilities = log_softmax(logits)
                ranked[name].append(_top(logits, min(5, classes)))
                kl_nats[name].append(divergence(log_softmax(answers[baseline.name]), probabilities))
                if "@" in name:
                    exact = answers[contestants[name].budget.name]
                    rounding[name].append(divergence(log_softmax(exact), probabilities))
                    worst_logit[name] = max(worst_logit[name], float(np.abs(logits - exact).max()))
            done += len(images)
            if progress is not None:
                progress(done, len(dataset))
    truth = np.concatenate(labels)
    top5 = {name: np.concatenate(parts) for name, parts in ranked.items()}
    kl = {name: np.concatenate(parts) for name, parts in kl_nats.items()}
    records = {}
    for name, one in contestants.items():
        records[name] = {
            "data": {"name": dataset.name, "images": len(truth), "labelled": dataset.labelled, "sha256": dataset.fingerprint},
            "images": len(truth),
            "runtime": one.runtime,
            "precision": one.precision or one.budget.artifact(one.runtime).precision,
            "evaluated_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **_compare(top5[name], top5[baseline.name], kl[name], truth if dataset.labelled else None, classes, interval),
        }
        if "@" in name:
            same = top5[name][:, 0] == top5[one.budget.name][:, 0]
            records[name]["against_fp32"] = {
                "agreement_percent": interval(100.0 * same).to_json(),
                "kl_nats": interval(np.concatenate(rounding[name])).to_json(),
                "max_abs_logit_difference": worst_logit[name],
            }
    return Judged(records, truth, top5, kl)


@dataclass(frozen=True)
class _Contestant:
    bundle: Bundle
    budget: Budget
    runtime: str
    precision: str | None

    def file(self) -> Path:
        """What its engine is opened from."""
        if self.runtime == "onnxruntime" and self.precision is not None:
            runnable = [a for a in self.budget.artifacts if a.form != "plan" and a.precision == self.precision]
            for graph in sorted(runnable, key=lambda artifact: artifact.runtime != self.runtime):
                return self.bundle.path / graph.file
        return prepare(self.bundle, self.budget.name, self.runtime, self.precision)


def _run(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int) -> np.ndarray:
    """Logits of any number of images through a graph of fixed batch; the last batch is filled up with zeros."""
    logits = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        if len(part) < batch:
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            logits.append(run(filled)[: len(part)])
        else:
            logits.append(run(part))
    return np.concatenate(logits)


def _top(logits: np.ndarray, count: int) -> np.ndarray:
    """Classes (N, count) by descending logit; ties go to the lower class, so results do not depend on the sort."""
    return np.asarray(np.argsort(-logits, axis=1, kind="stable")[:, :count].astype(np.int32))


def _compare(
    top5: np.ndarray,
    base: np.ndarray,
    kl: np.ndarray,
    truth: np.ndarray | None,
    classes: int,
    interval: Callable[[np.ndarray], Interval],
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "top1_percent": None,
        "top1_change_points": None,
        "top5_percent": None,
        "top5_change_points": None,
        "agreement_percent": interval(100.0 * (top5[:, 0] == base[:, 0])).to_json(),
        "kl_nats": interval(kl).to_json(),
        "per_image": {"agrees": _bits(top5[:, 0] == base[:, 0])},
    }
    if truth is not None:
        for key, width in (("top1", 1), ("top5", 5)):
            if width >= classes:
                continue  # always right: says nothing
            right = 100.0 * (top5[:, :width] == truth[:, None]).any(1)
            right_base = 100.0 * (base[:, :width] == truth[:, None]).any(1)
            if key == "top1":
                record["per_image"]["top1_right"] = _bits(right > 0)
            record[f"{key}_percent"] = float(right.mean())
            record[f"{key}_change_points"] = interval(right - right_base).to_json()
    return record


def _bits(flags: np.ndarray) -> str:
    """One bit per image, first image first, as base64: profiles carry it, so that any two budgets can be paired image by image."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def _store(bundle: Bundle, found: Judged) -> None:
    buffer = io.BytesIO()
    arrays = found.arrays
    before = next((name for name in bundle.manifest["files"] if name.startswith("eval-")), None)
    images = next(iter(found.records.values()))["data"]["sha256"]
    # What else was judged on the same images stays.
    stored = {name: record for name, record in _stored(bundle).items() if record["data"]["sha256"] == images}
    kept = stored.keys() - found.records.keys()
    if before is not None and kept:
        with np.load(bundle.path / before, allow_pickle=False) as old:
            arrays |= {key: old[key] for key in old.files if key.partition("/")[2] in kept}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    # Under a new name, then the manifest, then the old one goes: whenever this ends, the manifest names a file that is whole.
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    name = f"eval-{digest[:12]}.npz"
    write_bytes(bundle.path / name, buffer.getvalue())
    if before is not None:
        del bundle.manifest["files"][before]
    bundle.manifest["files"][name] = {"sha256": digest, "bytes": len(buffer.getvalue())}
    records = {**stored, **found.records}
    for entry in bundle.manifest["budgets"]:
        entry["accuracy"] = records.get(entry["name"])
        others = {label.partition("@")[2]: r for label, r in records.items() if label.startswith(f"{entry['name']}@")}
        entry.pop("accuracy_by_precision", None)
        if others:
            entry["accuracy_by_precision"] = others
    bundle.reload()
    bundle.save_manifest()
    if before is not None and before != name:
        (bundle.path / before).unlink(missing_ok=True)


def _stored(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """The records that a bundle holds, by the names of `Judged`."""
    records = {}
    for budget in bundle.budgets:
        if budget.accuracy is not None:
            records[budget.name] = budget.accuracy
        records |= {f"{budget.name}@{precision}": record for precision, record in budget.accuracy_by_precision.items()}
    return records
