"""The bundle: a directory with a manifest, one graph per budget, one weight file for all of them, golden inputs and outputs.

    bundle/
      manifest.json        everything below, described and hashed (schema: manifest.schema.json beside this file)
      onnx/weights.bin     the external data of every graph; graphs in fp16 and mixed share one half precision set in it
      onnx/<budget>.<form>[.<precision>].onnx
      plans/*.plan         TensorRT-RTX engines built ahead of time, each with a .json that says how
      golden.npz           input (G, B, 3, H, W) and, per budget, logits/<name> (G, B, classes), float32
      eval-<hash>.npz      per-image results, once `eval` ran

Read and verified here without torch or onnx. A bundle refers to its files by relative path only, so it can be copied anywhere.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edge_tprune.documents import UntypedDocumentKind as DocumentKind
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.files import exclusive, sha256_file, write_json
from edge_tprune.models.class_names import ClassNames

FORMAT = "edge-tprune-bundle"
VERSION = 1
MANIFEST = "manifest.json"
KIND = DocumentKind(
    noun="bundle",
    format=FORMAT,
    version=VERSION,
    make="Make one with: edge-tprune build",
    mend="Copy the bundle again, or rebuild it",
    file=MANIFEST,
    schema=Path(__file__).with_name("manifest.schema.json"),
)


@dataclass(frozen=True)
class Artifact:
    """One runnable file of one budget."""

    runtime: str  #: which runtime it is for: "onnxruntime", "tensorrt", ...
    precision: str  #: "fp32", "fp16", "mixed"
    form: str  #: how attention is written in a graph: "attention-op" or "explicit"; "plan" for an engine built ahead of time
    file: str  #: path relative to the bundle, with forward slashes
    sha256: str
    bytes: int
    target: str | None = None  #: of a plan: the GPU it is for, "sm86"
    version: str | None = None  #: of a plan: the library's that built it and can run it

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it: what does not apply is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def key(self) -> str:
        """What its budget's `parity` calls it."""
        return artifact_key(self.runtime, self.precision)


def artifact_key(runtime: str, precision: str) -> str:
    """What a budget's `parity` calls the graph for a runtime in a precision: the runtime, and the precision where it is not fp32."""
    return runtime if precision == "fp32" else f"{runtime}-{precision}"


@dataclass(frozen=True)
class Budget:
    """One pruning budget of a bundle."""

    name: str  #: unique in the bundle, usable in file names: "0.65"
    requested: float | None  #: share of the unpruned MACs that was asked for; None where a schedule was given
    schedule: tuple[int, ...]  #: tokens after each block, class token included
    macs: int  #: multiply-accumulates per image, whole network
    macs_share: float  #: of the unpruned model's
    parity: dict[str, Any]  #: how far each graph's logits are from PyTorch's in float32, by `Artifact.key`
    accuracy: dict[str, Any] | None  #: in float32; None until `eval` ran
    artifacts: tuple[Artifact, ...]
    #: In other precisions, where `eval` judged them.
    accuracy_by_precision: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def accuracy_in(self, precision: str) -> dict[str, Any] | None:
        """What `eval` found in a precision; where it did not judge that one, what it found in float32, which the record says."""
        return self.accuracy_by_precision.get(precision, self.accuracy)

    def artifact(self, runtime: str, precision: str | None = None) -> Artifact:
        """The graph that `runtime` runs or builds its engine from, in `precision`, or in the one that the bundle was built for first.

        Raises:
            UserError: there is none; naming what is there.
        """
        for artifact in self.graphs(runtime):
            if precision in (None, artifact.precision):
                return artifact
        has = ", ".join(dict.fromkeys(f"{a.runtime} in {a.precision}" for a in self.artifacts))
        wanted, way = f"runtime {runtime!r}", f"--runtime {runtime}"
        if precision is not None:
            wanted, way = f"{wanted} in {precision}", f"{way} --precision {precision}"
        raise UserError(f"budget {self.name} has no file for {wanted} (it has: {has}): build with {way}")

    def graphs(self, runtime: str) -> list[Artifact]:
        """All graphs for `runtime`; none where it was not built for."""
        return [artifact for artifact in self.artifacts if artifact.runtime == runtime and artifact.form != "plan"]

    def plan(self, precision: str, target: str, version: str) -> Artifact | None:
        """The engine that was built ahead of time for exactly this GPU and version of the library."""
        wanted = ("plan", precision, target, version)
        return next((a for a in self.artifacts if (a.form, a.precision, a.target, a.version) == wanted), None)


class Bundle:
    """An opened bundle. `Bundle.open(path)` checks format, schema, paths and hashes before anything is used."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Opens and checks the bundle at `path`; with `verify`, every file is hashed against the manifest.

        Raises:
            UserError: not a bundle, a newer format, a damaged manifest, a missing or changed file, a path that leaves the bundle.
        """
        path = Path(path)
        manifest = KIND.read(path)
        bundle = cls(path, manifest)
        for name in bundle.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise UserError(f"bundle {path}: its manifest names {name!r}, which lies outside the bundle. Do not use it")
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Hashes every file against the manifest.

        Raises:
            UserError: naming the first file that is missing or was changed.
        """
        for name, entry in self.files.items():
            file = self.path / name
            if not file.is_file():
                raise UserError(f"bundle {self.path}: {name} is missing. Copy the bundle again, or rebuild it")
            if file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
                raise UserError(
                    f"bundle {self.path}: {name} is corrupt (its SHA-256 is not the one in {MANIFEST}). "
                    "Copy the bundle again, or rebuild it with --force"
                )

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Relative path -> {"sha256", "bytes"} of every file that belongs to the bundle, graphs included."""
        files: dict[str, dict[str, Any]] = dict(self.manifest["files"])
        for budget in self.manifest["budgets"]:
            for artifact in budget["artifacts"]:
                files[artifact["file"]] = {"sha256": artifact["sha256"], "bytes": artifact["bytes"]}
        return files

    @property
    def name(self) -> str:
        """The bundle's name: model and method, as the builder recorded them."""
        return str(self.manifest["name"])

    @property
    def batch(self) -> int:
        """Images per inference, fixed in the graphs."""
        return int(self.manifest["batch"])

    @cached_property
    def class_names(self) -> ClassNames | None:
        """What the model's classes are called; None where the builder did not know it."""
        record = self.manifest["model"].get("class_names")
        return None if record is None else ClassNames.from_json(record)

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """All budgets, in the order they were asked for."""
        return tuple(
            Budget(
                name=entry["name"],
                requested=entry["requested"],
                schedule=tuple(entry["schedule"]),
                macs=entry["macs"],
                macs_share=entry["macs_share"],
                parity=entry["parity"],
                accuracy=entry["accuracy"],
                artifacts=tuple(Artifact(**artifact) for artifact in entry["artifacts"]),
                accuracy_by_precision=entry.get("accuracy_by_precision", {}),
            )
            for entry in self.manifest["budgets"]
        )

    def budget(self, name: str) -> Budget:
        """The budget called `name`."""
        for budget in self.budgets:
            if budget.name == name:
                return budget
        names = [b.name for b in self.budgets]
        raise UserError(f"no budget {name!r} in {self.path} (it has: {', '.join(names)}).{did_you_mean(name, names)}")

    @property
    def unpruned(self) -> Budget | None:
        """The budget that removes nothing, if the bundle has one."""
        tokens = self.manifest["model"]["tokens"]
        return next((b for b in self.budgets if all(count == tokens for count in b.schedule)), None)

    def golden(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Golden input (G, B, 3, H, W) and per budget the logits (G, B, classes) PyTorch gave for it, float32.

        Raises:
            UserError: the file could become larger than it is.
        """
        with np.load(self.path / "golden.npz", allow_pickle=False) as data:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in data.zip.infolist()):
                raise UserError(
                    f"bundle {self.path}: golden.npz is compressed, so nobody knows how large it becomes. Rebuild the bundle"
                )
            return data["input"], {b.name: data[f"logits/{b.name}"] for b in self.budgets}

    def reload(self) -> None:
        """Makes `budgets` say again what the manifest does, after it was changed."""
        self.__dict__.pop("budgets", None)

    def save_manifest(self) -> None:
        """Writes the manifest back, atomically, after checking it against the schema."""
        KIND.check(self.manifest, self.path)
        write_json(self.path / MANIFEST, self.manifest)


LOCK_SECONDS = 10


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps two builds from writing the bundle at `path` at the same time.

    Raises:
        UserError: another build is at work on it.
    """
    with exclusive(path, "build", LOCK_SECONDS):
        yield
