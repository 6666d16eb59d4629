"""The bundle: a directory with a manifest, one graph per budget, one weight file for all of them, golden inputs and outputs.

    bundle/
      manifest.json        everything below, described and hashed (types: `edge_tprune.bundle.manifest`)
      onnx/weights.bin     the external data of every graph; graphs in fp16 and mixed share one half precision set in it, those in int8 one of integers
      onnx/<budget>.<form>[.<precision>].onnx
      engines/*.plan       engine files of TensorRT-RTX built ahead of time, each with a .json that says how
      golden.npz           input (G, B, 3, H, W) and, per budget, <output>/<name> (G, B, ...), float32: logits/0.65; the same of outlier images,
                           outlier and outlier/<output>/<name>, and how far each may be off, outlier/allowed/<precision>/<name> (G, B)
      eval-<hash>.npz      per-image results, once `eval` ran

Read and verified here without torch or onnx. A bundle refers to its files by relative path only, so it can be copied anywhere. An opened bundle
never changes; `edge_tprune.bundle.revision` writes a new manifest and gives a new one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from edge_tprune.bundle.external_data import external_files
from edge_tprune.bundle.golden import Golden, read_golden
from edge_tprune.bundle.manifest import GOLDEN, KIND, MANIFEST, Budget, FileEntry, Manifest
from edge_tprune.bundle.outputs import LOGITS, RANKS
from edge_tprune.errors import UserError
from edge_tprune.files import open_regular, read_regular, sha256_file, sha256_json
from edge_tprune.text import count_of

_LARGEST_GRAPH = 1 << 28  # bytes; weights lie outside
MOST_BUDGETS = 1000
_ATTEMPTS, _ATTEMPT_SECONDS = 10, 0.1  # to open a bundle that a build is just moving into place


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `Bundle.open(path)` checks types, ranges, paths and hashes before anything is used."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Opens and checks the bundle at `path`; with `verify`, every file is hashed against the manifest.

        Raises:
            UserError: not a bundle, a newer format, a damaged manifest, one that does not name what its graphs need, a missing or changed
                file, a path that leaves the bundle.
        """
        path = Path(path)
        for attempt in range(_ATTEMPTS):
            manifest = None
            try:
                manifest = KIND.read(path)
                bundle = cls(path, manifest)
                check_manifest(path, manifest)
                if verify:
                    bundle.verify()
                return bundle
            except UserError:
                if attempt == _ATTEMPTS - 1 or not _is_being_replaced(path, manifest):
                    raise
                time.sleep(_ATTEMPT_SECONDS)
        raise AssertionError("unreachable")

    def verify(self) -> None:
        """Hashes every file against the manifest, and looks into the graphs for the weight files that they need.

        Raises:
            UserError: naming the first file that is missing, was changed, or is needed and not listed.
        """
        for name, entry in self.files.items():
            try:
                with open_regular(self.path / name) as stream:
                    size = stream.seek(0, 2)
                intact = size == entry.bytes and sha256_file(self.path / name) == entry.sha256
            except FileNotFoundError as error:
                raise UserError(f"bundle {self.path}: {name} is missing. {KIND.remedy}") from error
            except OSError as error:
                raise UserError(f"bundle {self.path}: {name} cannot be read: {error.strerror}. {KIND.remedy}") from error
            if not intact:
                raise UserError(
                    f"bundle {self.path}: {name} is corrupt (its SHA-256 is not the one in {MANIFEST}). {KIND.remedy} with --force"
                )
        for name in sorted({a.file for budget in self.budgets for a in budget.artifacts if a.is_graph}):
            for needed in self._weight_files(name):
                if needed not in self.files:
                    raise UserError(
                        f"bundle {self.path}: {name} takes weights from {needed}, which {MANIFEST} does not list. Do not use it"
                    )

    def _weight_files(self, graph: str) -> set[str]:
        """The files that a graph takes weights from, by path relative to the bundle."""
        try:
            locations = external_files(read_regular(self.path / graph, _LARGEST_GRAPH))
        except (OSError, ValueError) as error:
            raise UserError(f"bundle {self.path}: {graph} is not an ONNX graph ({error}). {KIND.remedy}") from error
        return {(PurePosixPath(graph).parent / location).as_posix() for location in locations}

    @property
    def files(self) -> dict[str, FileEntry]:
        """By relative path: every file that belongs to the bundle, graphs included."""
        return self.manifest.all_files

    @property
    def name(self) -> str:
        """The bundle's name: model and method, as the builder recorded them."""
        return self.manifest.name

    @property
    def batch(self) -> int:
        """Images per inference, fixed in the graphs."""
        return self.manifest.batch

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """All budgets, in the order they were asked for."""
        return self.manifest.budgets

    def budget(self, name: str) -> Budget:
        """The budget called `name`."""
        return self.manifest.budget(name)

    @property
    def unpruned(self) -> Budget | None:
        """The budget that removes nothing, if the bundle has one."""
        return self.manifest.unpruned

    @cached_property
    def identity(self) -> str:
        """What results of this bundle are results of: a hash of the build, its graphs, weights and golden data. Accuracy and engine files
        that were added later do not count."""
        manifest = self.manifest
        graphs = {a.file: a.sha256 for budget in manifest.budgets for a in budget.artifacts if a.is_graph}
        fixed = {name: entry.sha256 for name, entry in manifest.files.items() if name == GOLDEN or name.endswith(".bin")}
        return sha256_json([manifest.fingerprint, {**graphs, **fixed}])

    def check_unchanged(self) -> None:
        """Makes sure that what was just read at `path` is of this bundle: a build may have put another in its place.

        Raises:
            UserError: it has, or the bundle is gone.
        """
        now = _identify_file(self.path / MANIFEST)  # before it is read
        if now is not None and now == self.__dict__.get("_read"):
            return
        if Bundle.open(self.path, verify=False).identity != self.identity:
            raise UserError(f"bundle {self.path} was rebuilt in the meantime. Run the command again")
        self.__dict__["_read"] = now  # a profile asks before every turn

    def golden(self) -> Golden:
        """The golden images and outputs.

        Raises:
            UserError: they are damaged.
        """
        return read_golden(self.path, self.manifest)


def _identify_file(file: Path) -> tuple[int, ...] | None:
    """Numbers that are others once a file was replaced by another one; None where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def set_aside(path: Path) -> Path:
    """Where the old bundle waits for the moment in which a new one is moved into its place."""
    return path.parent / f".{path.name}.replaced"


def _is_being_replaced(path: Path, manifest: Manifest | None) -> bool:
    """Whether what went wrong may be that another bundle took the place of this one while it was read."""
    if manifest is None:
        return set_aside(path.resolve()).exists()
    try:
        return KIND.read(path) != manifest
    except UserError:
        return True


def check_manifest(path: Path, manifest: Manifest) -> None:
    """What must hold between the entries of a manifest, beyond the types of each.

    Raises:
        UserError: naming what does not.
    """
    why = _contradiction(manifest)
    if why is not None:
        raise UserError(f"bundle {path}: {MANIFEST}: {why}. {KIND.remedy}")


def _contradiction(manifest: Manifest) -> str | None:
    for name in manifest.all_files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or name in ("", ".", MANIFEST):
            return f"it names {name!r}, which lies outside the bundle"
    if GOLDEN not in manifest.files:
        return f"it does not list {GOLDEN}"
    model = manifest.model
    if model.input.shape != (manifest.batch, *manifest.preprocessing.input_size):
        return f"graphs take {model.input.shape}, and images are prepared as {(manifest.batch, *manifest.preprocessing.input_size)}"
    if model.prefix_tokens >= model.tokens:
        return f"{model.prefix_tokens} of its {model.tokens} tokens are prefix tokens"
    if (model.output.name == LOGITS) != (model.classes > 0):
        return f"graphs give {model.output.name} and there are {model.classes} classes"
    if len(model.output.shape) != RANKS[model.output.name] or model.output.shape[0] != manifest.batch:
        return f"graphs take {count_of(manifest.batch, 'image')} and give {model.output.name} of shape {model.output.shape}"
    if model.output.name == LOGITS and model.output.shape[1] != model.classes:
        return f"graphs give logits of shape {model.output.shape} and there are {model.classes} classes"
    if manifest.class_names is not None and len(manifest.class_names.names) != model.classes:
        return f"there are {len(manifest.class_names.names)} class names for {model.classes} classes"
    if len(manifest.budgets) > MOST_BUDGETS:
        return f"it has {len(manifest.budgets)} budgets, more than {MOST_BUDGETS}"
    names: set[str] = set()
    hashes: dict[str, str] = {}
    for budget in manifest.budgets:
        if budget.name in names:
            return f"budget {budget.name} is there twice"
        names.add(budget.name)
        if len(budget.schedule) != model.blocks:
            return f"budget {budget.name} has {len(budget.schedule)} token counts for {model.blocks} blocks"
        for artifact in budget.artifacts:
            if artifact.is_graph and artifact.key not in budget.parity:
                return f"budget {budget.name} has a graph for {artifact.key}, and no parity of it"
            if hashes.setdefault(artifact.file, artifact.sha256) != artifact.sha256 or artifact.file in manifest.files:
                return f"{artifact.file} is there twice"
    return None
