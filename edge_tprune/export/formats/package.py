"""Writes what was chosen as a directory that another program takes, and proves it by running it before it is handed over.

Every package holds model.onnx (weights inside), model.json (names, shapes, preprocessing), labels.txt, golden.png and golden.json (an image
and the answer to it) and README.md; each format adds its own. It appears at its place whole or not at all.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from msgspec.json import encode as encode_json
from msgspec.json import format as format_json
from msgspec.structs import replace
from onnx import helper
from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact, Budget
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.bundle.predictor import Predictor
from edge_tprune.documents import LARGEST_BYTES, InvalidDocument, decode
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.export.formats import proof
from edge_tprune.export.formats.cpp_loader import CppLoader
from edge_tprune.export.formats.deepstream import DeepStream
from edge_tprune.export.formats.graphs import add_top_k, fold_preprocessing, opset, read_graph
from edge_tprune.export.formats.isaac_ros import IsaacRos
from edge_tprune.export.formats.onnx_file import OnnxFile
from edge_tprune.export.formats.python_loader import PythonLoader
from edge_tprune.export.formats.request import (
    FORMAT,
    GOLDEN_ANSWER,
    GOLDEN_IMAGE,
    LABELS,
    ONNXRUNTIME,
    Description,
    ExportRequest,
    Format,
    Package,
    TensorDescription,
)
from edge_tprune.export.formats.triton import Triton
from edge_tprune.export.graph import MAX_TOPK
from edge_tprune.files import (
    check_free_space,
    check_movable,
    check_replaceable,
    check_text_path,
    clear_write_errors,
    directory_mode,
    in_use,
    read_regular,
    remove_stale,
    sha256_file,
    sync_directory,
    sync_tree,
    temporary_names,
)
from edge_tprune.placings import note_placing
from edge_tprune.text import is_text, printable
from edge_tprune.version import __version__

_MOVED = ".old"  #: how the name of an export ends that waits for the new one to take its place

FORMATS: dict[str, Format] = {
    "onnx": OnnxFile(),
    "python": PythonLoader(),
    "cpp": CppLoader(),
    "triton": Triton(),
    "deepstream": DeepStream(),
    "isaac-ros": IsaacRos(),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was proved."""

    path: Path
    files: tuple[str, ...]  #: relative to it
    difference: float  #: of the outputs for the golden image from those of the bundle's graph
    about: Description


def export_package(bundle: Bundle, request: ExportRequest) -> Exported:
    """Exports one budget of an opened bundle.

    Raises:
        UserError: an unknown format, a directory that is there, a graph that the format or the target cannot hold.
        NegativeAnswer: the bundle fails its golden check, or the exported graph does not answer as the bundle's.
    """
    if request.format not in FORMATS:
        raise UserError(
            f"unknown format {request.format!r}.{did_you_mean(request.format, FORMATS)} Known: {', '.join(FORMATS)}"
        )
    if request.name is not None and not request.name.strip():
        raise UserError("--name is empty: give the model a name, or leave it out")
    form = FORMATS[request.format]
    budget = bundle.budget(request.budget)
    artifact = choose_graph(budget, request)
    name = request.name or f"{bundle.name}-{budget.name}".replace("/", "-")
    if not is_text(name):
        raise UserError(f"--name {name}: it is not UTF-8 text. Choose another")
    form.check(request, bundle, artifact, name)
    target = form.place(request, name)
    _restore(target)
    _check_place(target, form.about, request.force)
    with proof.open_reference(bundle, budget.name, artifact) as reference, _staging(target) as folder:
        check_movable(target, folder)
        model = read_graph(bundle, artifact)
        bundle.check_unchanged()
        check_free_space(folder, model.ByteSize())
        if request.frame is not None:
            fold_preprocessing(model, bundle.manifest.preprocessing, request.frame, request.channel_order)
        if request.top_k is not None:
            add_top_k(model, request.top_k)
        form.change_graph(model, bundle)
        (folder / form.graph).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(folder / form.graph))
        about = _describe(bundle, budget, artifact, request, model, name, sha256_file(folder / form.graph))
        package = Package(
            folder=folder,
            request=request,
            bundle=bundle,
            budget=budget,
            artifact=artifact,
            name=name,
            about=about,
            labels=tuple(printable(" ".join(label.split())) for label in reference.labels),  # one a line, and shown as it is
        )
        difference = _write_golden(package, form, reference)
        about = replace(about, golden_difference=difference)
        if package.labels:
            package.write(LABELS, "".join(f"{label}\n" for label in package.labels))
        form.write(package)
        files = {file.relative_to(folder).as_posix(): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}
        about = replace(about, sha256=files)
        package.write(form.about, _text_of(about).decode())
        _move(folder, target, form.about if request.force else None)
    return Exported(target, tuple(sorted([*files, form.about])), difference, about)


def choose_graph(budget: Budget, request: ExportRequest) -> Artifact:
    """The graph that the target can run.

    Raises:
        UserError: there is none, naming the version that the graph needs.
    """
    artifact = budget.artifact(request.runtime, request.precision)
    if request.runtime != "onnxruntime" and (request.top_k or 0) > MAX_TOPK:
        raise UserError(f"--top-k {request.top_k} is out of range: TensorRT takes at most {MAX_TOPK}")
    if request.onnxruntime_version is None:
        return artifact
    if request.runtime != "onnxruntime":
        raise UserError(f"--onnxruntime-version is of ONNX Runtime, and this is for {request.runtime}: leave it out")
    others = [a for a in budget.artifacts if a.is_graph and a.precision == artifact.precision]
    wanted = _version(request.onnxruntime_version)
    for graph in (artifact, *others):
        if wanted >= _version(_needs(graph)):
            return graph
    raise UserError(
        f"the graph of budget {budget.name} uses operators of opset 23, which ONNX Runtime has from {_needs(artifact)} on, and the target has "
        f"{request.onnxruntime_version}: build with --runtime onnxruntime,tensorrt, which also writes graphs of opset 18"
    )


def _needs(artifact: Artifact) -> str:
    return ONNXRUNTIME[23 if artifact.form == "attention-op" else 18]


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(".")[:2])
    except ValueError as error:
        raise UserError(f"--onnxruntime-version {text!r} is no version such as 1.18") from error


def _describe(
    bundle: Bundle, budget: Budget, artifact: Artifact, request: ExportRequest, model: onnx.ModelProto, name: str, sha256: str
) -> Description:
    (image,) = model.graph.input
    if (number := opset(model)) not in ONNXRUNTIME:
        known = f"{min(ONNXRUNTIME)} to {max(ONNXRUNTIME)}"
        raise UserError(
            f"{bundle.path / artifact.file} uses operators of opset {number}, and this edge-tprune exports those of opset {known}"
        )
    method = budget.method or bundle.manifest.method
    return Description(
        tool_version=__version__,
        name=name,
        model=bundle.manifest.model.name,
        method=method.name,
        budget=budget.name,
        macs_share=budget.macs_share,
        tokens_after_blocks=tuple(budget.schedule),
        precision=artifact.precision,
        bundle_fingerprint=bundle.manifest.fingerprint,
        input=_tensor(image),
        outputs=tuple(_tensor(output) for output in model.graph.output),
        opset=number,
        onnxruntime=ONNXRUNTIME[number],
        preprocessing=None if request.frame else bundle.manifest.preprocessing,
        channel_order=request.channel_order,
        classes=bundle.manifest.model.classes,
        graph_sha256=sha256,
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorDescription:
    kind = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    return TensorDescription(value.name, dtype, tuple(dim.dim_value for dim in kind.shape.dim))


def _write_golden(package: Package, form: Format, reference: Predictor) -> float:
    """Writes the golden image and the answer to it, and proves the exported graph on it; returns the difference."""
    request, shape = package.request, package.about.input.shape
    picture = proof.choose_golden_image(reference, request.frame or proof.FRAME)
    picture.save(package.folder / GOLDEN_IMAGE)
    expected = reference(picture)
    batch = np.zeros(shape, package.about.input.dtype)
    batch[0] = _prepare(package, form, picture)
    outputs = {name: output[0] for name, output in proof.run_graph(package.folder / form.graph, batch).items()}
    kind = package.bundle.manifest.model.output.name
    resized = request.frame is not None
    difference = proof.prove(outputs, expected, kind, package.artifact.precision, resized=resized)
    answer: dict[str, object] = {"image": GOLDEN_IMAGE, "output": kind}
    if kind == LOGITS:
        best = np.argsort(-expected, kind="stable")[:5]
        top = zip(best, reference.top(expected))
        answer["top"] = [{"class": int(i), "label": package.labels[i], "probability": round(p, 6)} for i, (_, p) in top]
        answer["logits"] = [float(value) for value in expected]
    else:
        answer["first_values"] = [float(value) for value in expected.ravel()[:16]]
    package.write(GOLDEN_ANSWER, json.dumps(answer, indent=1) + "\n")
    return difference


def _prepare(package: Package, form: Format, picture: Image.Image) -> np.ndarray:
    """The golden image as the exported graph takes it."""
    if package.request.frame is None:
        return form.prepare(picture, package.bundle)
    frame = np.asarray(picture)
    return frame[..., ::-1] if package.request.channel_order == "bgr" else frame


class _About(msgspec.Struct):
    format: str
    sha256: dict[str, str] | None = None  #: None: written before this was


def _check_place(target: Path, about: str, force: bool) -> None:
    """Refuses a directory that is there, unless it is an older export and may be replaced; and a path that ONNX Runtime cannot open."""
    check_text_path(target, f"--out {target}")
    if target.is_symlink():
        raise UserError(f"--out {target} is a link: give the directory itself")
    check_replaceable(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        ours = _about(target / about) is not None
        raise UserError(f"{target} exists: choose another --out{', or give --force to replace it' if ours else ''}")
    _check_contents(target, about, target)


def _about(file: Path) -> _About | None:
    """What an export says of itself; None where this is none."""
    try:
        found = decode(read_regular(file, LARGEST_BYTES), _About)
    except (OSError, InvalidDocument):
        return None
    return found if found.format == FORMAT else None


def _check_contents(folder: Path, about: str, name: Path) -> None:
    """Refuses to replace what is no export, or holds files that are not the export's own any more.

    Args:
        folder: where it lies.
        about: the description of the export, relative to it.
        name: what to call it.
    """
    found = _about(folder / about)
    if found is None:
        raise UserError(
            f"{name} exists and is no export of edge-tprune: it is not replaced. Choose another --out, or remove it"
        )
    if found.sha256 is None:
        raise UserError(
            f"{name} is an export of an older version, which does not say which files are its own: remove it, or choose another --out"
        )
    others = [
        path
        for file in sorted(folder.rglob("*"))
        if (file.is_symlink() or not file.is_dir() or (file.name != "__pycache__" and not any(file.iterdir())))
        and not (file.suffix == ".pyc" and file.parent.name == "__pycache__")
        and not _is_own(file, path := file.relative_to(folder).as_posix(), about, found.sha256)
    ]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{name} holds what the export did not write, or what was changed since: {others[0]}{more}. It is not replaced: move that away, "
            "or choose another --out"
        )


def _is_own(file: Path, path: str, about: str, sha256: Mapping[str, str]) -> bool:
    """Whether a file is as an export wrote it. The description holds no hash of itself: written again, it must be the same."""
    if file.is_symlink():
        return False
    try:
        if path == about:
            data = read_regular(file, LARGEST_BYTES)
            return data == _text_of(decode(data, Description))
        return path in sha256 and sha256_file(file) == sha256[path]
    except (OSError, InvalidDocument):  # a pipe, or a file that this user may not read, is not the export's
        return False


def _text_of(about: Description) -> bytes:
    """model.json."""
    return format_json(encode_json(about), indent=1) + b"\n"


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    prefix = _staging_prefix(target)
    with clear_write_errors(target), _parents_made(target):
        for suffix in ("", _MOVED):
            remove_stale(target.parent, temporary_names(prefix, suffix), folders=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        with in_use(folder):
            try:
                folder.chmod(directory_mode())
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _parents_made(target: Path) -> Iterator[None]:
    """Makes the directories above `target`, and removes them again where nothing comes to lie in them."""
    missing = [parent for parent in target.absolute().parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for parent in missing:  # the innermost first
            with suppress(OSError):
                parent.rmdir()
        raise


def _staging_prefix(target: Path) -> str:
    return f".{target.name}.exporting-"


def _restore(target: Path) -> None:
    """Puts an export back that another one had moved away when it was killed, before its own was in place."""
    with suppress(OSError):  # no directory yet, or one that cannot be written: which is said later
        if not target.exists():
            names = temporary_names(_staging_prefix(target), _MOVED)
            for old in [old for old in target.parent.iterdir() if names.fullmatch(old.name)][:1]:
                old.rename(target)


def _move(folder: Path, target: Path, about: str | None) -> None:
    """Renames `folder` to `target`. That is refused where files have come to lie there since `_check_place` looked.

    Args:
        folder: the new export.
        target: its place.
        about: where the export that it replaces has its description; None: it replaces none.
    """
    old = folder.with_name(f"{folder.name}{_MOVED}")
    sync_tree(folder)
    try:
        if about is not None:
            with suppress(FileNotFoundError):
                target.rename(old)
        if about is not None and old.is_dir() and any(old.iterdir()):
            _check_contents(old, about, target)
        note_placing(folder, target)
        folder.rename(target)
    except BaseException as error:
        with suppress(OSError):
            old.rename(target)
        if old.exists():
            kept = target.with_name(f"{target.name}.old-{folder.name[-8:]}")  # a name that the next export does not sweep
            with suppress(OSError):
                old.rename(kept)
            raise UserError(
                f"{target} was taken by something else in the meantime. The export that was there is in {kept if kept.exists() else old}"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(f"{target} was written by another export in the meantime: choose another --out") from error
        raise
    sync_directory(target.parent)
    if old.is_dir():
        old.rename(folder)  # under its own name it would be taken for one that is to be put back
        shutil.rmtree(folder, ignore_errors=True)
