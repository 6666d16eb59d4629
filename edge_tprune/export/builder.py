"""Builds a bundle, or finds that an equal one is there already.

Everything is written beside its destination and moved into place at the end, so an interrupted build leaves the old bundle, or nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import onnx
import torch

from edge_tprune.bundle.bundle import Bundle, set_aside
from edge_tprune.bundle.evaluate import keep_results
from edge_tprune.bundle.golden import OUTLIERS
from edge_tprune.bundle.manifest import KIND, MANIFEST, Manifest
from edge_tprune.bundle.revision import LEFT_BEHIND, manifest_lock, work_lock
from edge_tprune.documents import LARGEST_BYTES
from edge_tprune.errors import UserError
from edge_tprune.export import migration
from edge_tprune.export.integer_parity import IntegerLoss
from edge_tprune.export.memory import bytes_needed, check_memory
from edge_tprune.export.overflow import HalfPrecisionBreak
from edge_tprune.export.settings import BuildSettings
from edge_tprune.export.writer import Progress, write_bundle
from edge_tprune.files import (
    check_free_space,
    check_movable,
    check_replaceable,
    check_text_path,
    clear_write_errors,
    directory_mode,
    files_below,
    read_regular,
    sha256_json,
    sync_directory,
    sync_tree,
    temporary_names,
    write_bytes,
)
from edge_tprune.models.loading import LoadedModel
from edge_tprune.placings import note_placing
from edge_tprune.record.document import RUN
from edge_tprune.reduction import registry
from edge_tprune.reduction.code import method_code_sha256
from edge_tprune.reduction.precision import DEFAULT
from edge_tprune.runtime.engine import runtime_version
from edge_tprune.version import __version__

_BYTES_PER_GRAPH = 2_000_000  # generously
_LAYOUT = (
    r"golden\.npz|onnx/(weights[^/]*\.bin|[^/]+\.onnx)"  # full match with the files of a bundle whose manifest cannot be read
)


@dataclass
class BuildResult:
    """What a build did."""

    bundle: Bundle
    reused: bool  #: True where an equal bundle was there already and nothing was done
    remarks: list[str] = field(default_factory=list)


def build(
    loaded: LoadedModel, settings: BuildSettings, out: Path, *, force: bool = False, progress: Progress | None = None
) -> BuildResult:
    """Builds the bundle at `out`, or finds that an equal one is there already.

    Args:
        loaded: the model.
        settings: from `edge_tprune.export.settings.decide`.
        out: the bundle's directory; an older bundle there is replaced, any other directory refused.
        force: rebuild even where an equal bundle is there.
        progress: called as (what, done, of) before each step.

    Raises:
        UserError: `out` holds something that is not a bundle, or cannot be written; more memory is needed than there is.
        NegativeAnswer: no sample image can prove these graphs right.
        InternalError: a graph whose logits differ from PyTorch's.
    """
    out = out.resolve()  # a link to a bundle stays a link: what it points to is replaced
    fingerprint = _fingerprint(loaded, settings)
    _check_place(out)
    seen = _made_of(out)
    with clear_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with work_lock(out):
            if _made_of(out) not in (seen, fingerprint):
                raise UserError(
                    f"{out} was built by another command in the meantime: repeat this one to replace it, or choose another --out"
                )
            if os.path.lexists(old := set_aside(out)):
                _check_is_bundle(old, old)
            _restore(out)
            if out.exists() and os.path.lexists(old):
                raise UserError(
                    f"{old}, which an earlier build replaced, cannot be removed: remove it, or choose another --out"
                )
            if not force and (existing := _equal_bundle(out, fingerprint)) is not None:
                return BuildResult(existing, True, [*settings.remarks, *_describe_precisions(existing, settings)])
            check_memory(bytes_needed(loaded, settings))
            runtime_version("onnxruntime")  # parity needs it: better missed now than after the first export
            with _staging(out) as staging:
                check_movable(out, staging)
                check_free_space(staging, _bytes_needed(loaded, settings))
                manifest, more = _write(loaded, settings, staging, fingerprint, progress or (lambda what, done, of: None))
                sync_tree(staging)
                with manifest_lock(out):
                    if force:  # otherwise an equal one would have been used as it is
                        manifest = _keep_results(out, manifest, staging)
                    more += _describe_lost(out, manifest)
                    _move_into_place(staging, out)
    return BuildResult(Bundle(out, manifest), False, [*settings.remarks, *more])


def _check_place(out: Path) -> None:
    """Refuses a place where something other than a bundle is, or profiles or other files in one: they would be lost.

    A damaged bundle is one that says to be one.

    Raises:
        UserError: it is no bundle, and no empty directory; or it holds what the bundle does not name.
    """
    check_text_path(out, f"--out {out}")
    check_replaceable(out)
    if out.exists():
        _check_contents(out, out)


def _check_contents(folder: Path, out: Path) -> None:
    """As `_check_place`, of a directory that is called `out` in messages."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    _check_is_bundle(folder, out)
    profile = next((Path(name).parent for name in files_below(folder) if Path(name).name == RUN), None)
    if profile is not None:
        raise UserError(f"{out} holds a profile, {profile}, which would be lost: move it away, or choose another --out")
    if (other := _foreign_file(folder)) is not None:
        raise UserError(
            f"{out} holds {other}, which is not the bundle's and would be lost: move it away, or choose another --out"
        )


def _is_bundle(folder: Path) -> bool:
    """Whether a directory says to be one; what it holds may be damaged."""
    said = b""
    with suppress(OSError):
        said = read_regular(folder / MANIFEST, LARGEST_BYTES)
    return KIND.begins.match(said) is not None


def _check_is_bundle(folder: Path, out: Path) -> None:
    if not _is_bundle(folder):
        raise UserError(f"{out} exists and is not a bundle: choose another --out, or remove it")


def _foreign_file(out: Path) -> str | None:
    """A file in a bundle's directory that no bundle has; one that this bundle does not name, where its manifest can be read."""
    own, ours = {MANIFEST}, f"{LEFT_BEHIND}|{_LAYOUT}"
    with suppress(UserError):
        own.update(KIND.read(out).all_files)
        ours = LEFT_BEHIND
    return next((name for name in files_below(out) if name not in own and not re.fullmatch(ours, name)), None)


def _write(
    loaded: LoadedModel, settings: BuildSettings, staging: Path, fingerprint: str, progress: Progress
) -> tuple[Manifest, list[str]]:
    """The bundle, and what to say of it.

    A network that fp16 breaks is written in mixed, which keeps the residual stream in float32; one that loses too much in INT8 with a few layers in float.
    """
    remarks: list[str] = []
    given = len(settings.float_layers)
    while True:
        try:
            return write_bundle(loaded, settings, staging, fingerprint, progress), remarks
        except HalfPrecisionBreak as broken:
            if broken.precision != "fp16":
                raise
            remarks.append(f"{str(broken).partition('. Try')[0]}. Its graphs are in mixed instead")
            graphs = [replace(graph, precision="mixed") if graph.precision == "fp16" else graph for graph in settings.graphs]
            settings = replace(settings, graphs=tuple(dict.fromkeys(graphs)))
        except IntegerLoss as lost:
            layers = lost.choose_float_layers(len(settings.float_layers) - given)
            if not layers:
                raise
            remarks.append(f"{str(lost).partition('. The layers')[0]}. {_stay_float(layers)}")
            settings = replace(settings, float_layers=(*settings.float_layers, *layers))
        shutil.rmtree(staging)
        staging.mkdir()
        staging.chmod(directory_mode())


def _stay_float(layers: Sequence[str]) -> str:
    return f"{', '.join(layers)} {'stays' if len(layers) == 1 else 'stay'} in float instead"


def _describe_precisions(bundle: Bundle, settings: BuildSettings) -> list[str]:
    """Where an equal build had to take another precision than the one that was asked for."""
    there = {artifact.precision for artifact in bundle.budgets[0].artifacts}
    missing = [graph.precision for graph in settings.graphs if graph.precision not in there]
    remarks = [f"this network does not survive {missing[0]}: its graphs are in mixed instead"] if missing else []
    quantization = bundle.manifest.quantization
    kept = [] if quantization is None else [name for name in quantization.float_layers if name not in settings.float_layers]
    return [*remarks, *([f"in int8 this network loses too much: {_stay_float(kept)}"] if kept else [])]


def _bytes_needed(loaded: LoadedModel, settings: BuildSettings) -> int:
    """Of the bundle, from above."""
    weights: int = sum(parameter.numel() for parameter in loaded.model.parameters())
    halves = any(graph.precision != DEFAULT for graph in settings.graphs)
    return weights * (6 if halves else 4) + len(settings.graphs) * len(settings.budgets) * _BYTES_PER_GRAPH


def _fingerprint(loaded: LoadedModel, settings: BuildSettings) -> str:
    return sha256_json(
        {
            "format": KIND.version,
            "outliers": OUTLIERS,
            "versions": [__version__, torch.__version__, onnx.__version__],
            "code": [method_code_sha256(registry.any_method(name)) for name in settings.methods],
            "model": [loaded.name, loaded.weights, loaded.weights_sha256, dict(loaded.arguments)],
            "class_names": msgspec.to_builtins(loaded.class_names),
            "preprocessing": msgspec.to_builtins(loaded.preprocessing),
            "method": [settings.method, dict(settings.options), settings.blocks],
            "budgets": [
                [b.name, b.schedule.requested, b.schedule.tokens, b.module.method, b.module.options] for b in settings.budgets
            ],
            "output": [settings.output, settings.normalize],
            "batch": settings.batch,
            "graphs": [[graph.runtime, graph.precision] for graph in settings.graphs],
            "calibration": None
            if settings.calibration is None
            else [settings.calibration.fingerprint, settings.float_layers, migration.WORTH],
        }
    )


def _made_of(out: Path) -> str | None:
    """The fingerprint of the bundle there; None where there is none that can be read."""
    try:
        return KIND.read(out).fingerprint
    except (UserError, OSError):
        return None


def _equal_bundle(out: Path, fingerprint: str) -> Bundle | None:
    with suppress(UserError):  # whatever is wrong with what lies there, building it again puts it right
        existing = Bundle.open(out)
        if existing.manifest.fingerprint == fingerprint:
            return existing
    return None


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    prefix = f".{out.name}.building-"
    names = temporary_names(prefix)
    for stale in list(out.parent.iterdir()):
        if names.fullmatch(stale.name):  # of a build that was killed; the lock says that none is running
            shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    try:
        staging.chmod(directory_mode())
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _keep_results(out: Path, manifest: Manifest, staging: Path) -> Manifest:
    """Puts what `eval` found of an equal bundle there into the new one: its manifest."""
    existing = _equal_bundle(out, manifest.fingerprint)
    if existing is None:
        return manifest
    kept = keep_results(existing, manifest)
    for name, data in kept.files.items():
        write_bytes(staging / name, data)
    KIND.write(staging, kept.manifest)
    return kept.manifest


def _describe_lost(out: Path, manifest: Manifest) -> list[str]:
    """What `eval` found of the bundle that is replaced, and the new one does not have."""
    try:
        old = KIND.read(out)
    except (UserError, OSError):  # none there, or a damaged one
        return []
    known, lost = ([b.name for b in each.budgets if b.accuracy or b.accuracy_by_precision] for each in (manifest, old))
    lost = [name for name in lost if name not in known]
    if not lost:
        return []
    return [f"the accuracy of {', '.join(lost)} was of the bundle that was replaced: run edge-tprune eval again"]


def _move_into_place(staging: Path, out: Path) -> None:
    """In place of the older bundle there, if nothing else has come to lie in it since the build began."""
    _check_place(out)
    old = set_aside(out)
    try:
        if out.exists():
            out.rename(old)
            _check_contents(old, out)  # what came in the last moment
        note_placing(staging, out)
        staging.rename(out)
    except BaseException as error:
        _restore(out)
        if old.exists():
            raise UserError(
                f"{out} was taken by something else in the meantime. The bundle that was there is in {old}"
            ) from error
        raise
    sync_directory(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _restore(out: Path) -> None:
    """Puts an old bundle back that a build was killed over; sweeps it where the new one made it into place.

    Where something else lies there now, the old one stays where it is.
    """
    old = set_aside(out)
    if not old.exists():
        return
    with suppress(OSError):
        out.rmdir()  # an empty directory is nobody's
    if not out.exists():
        old.rename(out)
    elif _is_bundle(out):
        shutil.rmtree(old, ignore_errors=True)
