"""What a bundle's `manifest.json` says: the types of its entries, and what must hold between them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from edge_tprune.bundle.outputs import OutputKind
from edge_tprune.bundle.parity import Parity
from edge_tprune.documents import (
    Batch,
    Count,
    Distance,
    DocumentKind,
    FileName,
    Name,
    OptionValue,
    Percent,
    Sha256,
    Share,
    Whole,
)
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.files import sha256_file
from edge_tprune.models.class_names import ClassNames
from edge_tprune.models.preprocess import Preprocessing
from edge_tprune.statistics import Interval

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
EXACT = "exact"  #: the budget of the unpruned network with exact savings alone
ENGINE_FILE = "engine"  #: the form of an artifact that is an engine file, not a graph

Precision = Literal["fp32", "fp16", "mixed", "int8"]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a file must be to be the one that was written."""

    sha256: Sha256
    bytes: Whole

    @classmethod
    def of(cls, file: Path) -> FileEntry:
        """What a file is now."""
        return cls(sha256=sha256_file(file), bytes=file.stat().st_size)


class TensorType(msgspec.Struct, frozen=True, kw_only=True):
    """The input of every graph."""

    name: Name
    shape: tuple[Count, ...]
    dtype: str


class OutputType(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The output of every graph; its name says what it is.

    Logits (B, classes); an embedding (B, D); features (B, C, H, W), a vector for every patch; tokens (B, N, C), prefix tokens included.
    """

    name: OutputKind
    shape: tuple[Count, ...]
    dtype: str
    normalized: bool = False  #: whether an embedding is brought to unit length


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The unpruned network."""

    name: str
    weights: str  #: where the weights came from: a file's name, "pretrained", "reference" or "random"
    weights_sha256: Sha256
    classes: Whole  #: 0 where the graphs do not give logits
    parameters: Count
    tokens: Count  #: before the first block, prefix tokens included
    prefix_tokens: Whole
    blocks: Count
    macs: Count  #: per image
    input: TensorType
    output: OutputType
    arguments: dict[str, object] = {}  #: beside its name, what timm was asked for: num_classes, img_size, ...


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are reduced."""

    name: str
    options: dict[str, OptionValue]
    blocks: tuple[Count, ...]  #: that remove tokens at any budget, counted from 1


class EvaluationData(msgspec.Struct, frozen=True, kw_only=True):
    """The images that accuracy was judged on."""

    name: str
    images: Count
    labelled: bool
    sha256: Sha256


class RangeRule(msgspec.Struct, frozen=True, kw_only=True):
    """How the ranges of layers were found, for one integer type."""

    name: str  #: "min-max", "percentile", "entropy", "mean-square"
    distances: dict[str, Distance]  #: by rule: how far its networks were from float32, in nats or cosine distance


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """How the INT8 graphs were calibrated."""

    data: EvaluationData
    watched: Count  #: photos on which the layers' inputs were watched
    chosen_on: Count  #: photos on which the rules competed
    judged: Count  #: photos on which each graph was judged; `Parity.images`
    rules: dict[str, RangeRule]  #: by integer type of the layers' inputs
    float_layers: tuple[str, ...]  #: that stayed floats
    migrated: tuple[str, ...] = ()  #: norms whose scales were moved into the layers that read them


class ImageBits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One bit per image, the first image in the highest bit of the first byte; base64."""

    agrees: str | None = None  #: whether the top-1, or of embeddings the nearest neighbour, is the unpruned model's
    top1_right: str | None = None


class Fp32Comparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A budget in another precision beside itself in float32; the fields are those of `Accuracy`."""

    agreement_percent: Interval | None = None
    kl_nats: Interval | None = None
    max_abs_logit_difference: Distance | None = None
    cosine_distance: Interval | None = None


class ClassCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Top-1 by class, of the classes that have images: five equally long lists."""

    classes: tuple[Whole, ...]  #: in ascending order
    images: tuple[Count, ...]
    unpruned_right: tuple[Whole, ...]  #: images on which the unpruned model is right
    lost: tuple[Whole, ...]  #: ... and this budget is not
    gained: tuple[Whole, ...]  #: images on which only this budget is right

    def __post_init__(self) -> None:
        if len({len(self.classes), len(self.images), len(self.unpruned_right), len(self.lost), len(self.gained)}) != 1:
            raise ValueError("the lists of counts by class differ in length")
        if list(self.classes) != sorted(set(self.classes)):
            raise ValueError("classes are not in ascending order, each once")
        if any(lost > right or right + gained > images for images, right, lost, gained in self.rows):
            raise ValueError("a class has more answers than images")

    @property
    def rows(self) -> list[tuple[int, int, int, int]]:
        """(images, unpruned_right, lost, gained) of each class."""
        return list(zip(self.images, self.unpruned_right, self.lost, self.gained))


class Accuracy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `eval` found of one budget. Changes, agreement, divergence and distance are against the unpruned model.

    Without labels top-1 and top-5 are null. Logits have an agreement (same top-1) and a KL divergence. Embeddings have an agreement (same
    nearest neighbour among the images: recall@1) and a cosine distance; with labels their top-1 is that of the nearest neighbour's class.
    Features and tokens have a cosine distance, the mean over the patches.
    """

    data: EvaluationData
    images: Count
    runtime: str
    precision: str
    evaluated_utc: str
    top1_percent: Percent | None
    top1_change_points: Interval | None
    top5_percent: Percent | None
    top5_change_points: Interval | None
    agreement_percent: Interval | None = None
    kl_nats: Interval | None = None
    cosine_distance: Interval | None = None
    per_image: ImageBits | None = None
    per_class: ClassCounts | None = None  #: with labels
    against_fp32: Fp32Comparison | None = None

    def __post_init__(self) -> None:
        for bits in () if self.per_image is None else (self.per_image.agrees, self.per_image.top1_right):
            if bits is not None and len(base64.b64decode(bits, validate=True)) != -(-self.images // 8):
                raise ValueError(f"there is not one bit for each of {self.images} images")


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of one budget that a runtime runs: a graph, or an engine file that was built ahead of time."""

    runtime: str  #: "onnxruntime", "tensorrt", "tensorrt-rtx"
    precision: Precision
    form: str  #: how attention is written in a graph: "attention-op" or "explicit"; or `ENGINE_FILE`
    file: Name  #: path relative to the bundle, with forward slashes
    sha256: Sha256
    bytes: Count
    target: str | None = None  #: of an engine file: the GPU it is for, "sm86"
    version: str | None = None  #: of an engine file: the library's that built it and can run it

    @property
    def is_graph(self) -> bool:
        """Whether it is an ONNX graph."""
        return self.form != ENGINE_FILE

    @property
    def key(self) -> str:
        """What its budget's `parity` calls it."""
        return artifact_key(self.runtime, self.precision)


def artifact_key(runtime: str, precision: str) -> str:
    """What a budget's `parity` calls the graph for a runtime: the runtime, and the precision where it is not fp32."""
    return runtime if precision == "fp32" else f"{runtime}-{precision}"


def split_label(label: str, precisions: str | None) -> tuple[str, str | None]:
    """The budget that a label of results means ("0.65", "0.65@int8") and its precision: without one the first of `precisions` ("fp32,int8")."""
    name, _, own = label.partition("@")
    return name, own or (precisions or "").partition(",")[0] or None


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One pruning budget."""

    name: FileName  #: unique, usable in file names: "0.65"
    requested: Share | None  #: share of the unpruned MACs that was asked for; null where a schedule was given
    schedule: Annotated[tuple[Count, ...], Meta(min_length=1)]  #: tokens after each block, prefix tokens included
    macs: Count  #: multiply-accumulates per image, whole network
    macs_share: Share  #: of the unpruned model's
    parity: dict[str, Parity]  #: by `Artifact.key`
    accuracy: Accuracy | None  #: in float32; null until `eval` ran
    artifacts: Annotated[tuple[Artifact, ...], Meta(min_length=1)]
    accuracy_by_precision: dict[Annotated[str, Meta(pattern=r"^(fp16|mixed|int8)\Z")], Accuracy] = {}
    method: Method | None = None  #: its own, where it differs from the bundle's
    own_pattern: bool = False  #: whether the schedule is what the method's own pattern gives for the share, with exact savings

    def accuracy_in(self, precision: str) -> Accuracy | None:
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
        if precision not in (None, *get_args(Precision)):
            raise UserError(
                f"no precision {precision!r}.{did_you_mean(str(precision), get_args(Precision))} Known: {', '.join(get_args(Precision))}"
            )
        has = ", ".join(dict.fromkeys(f"{a.runtime} in {a.precision}" for a in self.artifacts))
        wanted, way = f"runtime {runtime!r}", f"--runtime {runtime}"
        if precision is not None:
            wanted = f"{wanted} in {precision}"
            if runtime == "onnxruntime" and precision in ("fp16", "mixed"):
                raise UserError(
                    f"budget {self.name} has no file for {wanted} (it has: {has}): graphs in half precision are for TensorRT, because a CPU gains "
                    f"nothing from them. Build with --runtime tensorrt --precision {precision}, or use fp32 or int8"
                )
            way = f"{way} --precision {precision}"
        raise UserError(f"budget {self.name} has no file for {wanted} (it has: {has}): build with {way}")

    def graphs(self, runtime: str) -> list[Artifact]:
        """All graphs for `runtime`; none where it was not built for."""
        return [artifact for artifact in self.artifacts if artifact.runtime == runtime and artifact.is_graph]

    def engine_file(self, precision: str, target: str, version: str) -> Artifact | None:
        """The engine file that was built ahead of time for exactly this GPU and version of the library."""
        wanted = (ENGINE_FILE, precision, target, version)
        return next((a for a in self.artifacts if (a.form, a.precision, a.target, a.version) == wanted), None)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `manifest.json` says."""

    name: Name  #: model and method
    tool_version: str
    created_utc: str
    fingerprint: Sha256  #: hash of everything that the build depends on; an equal one makes a rebuild a no-op
    batch: Batch  #: images per inference, fixed in the graphs
    model: Model
    preprocessing: Preprocessing
    method: Method
    budgets: Annotated[tuple[Budget, ...], Meta(min_length=1)]
    files: dict[str, FileEntry]  #: by relative path: everything that belongs to the bundle and is not an artifact
    class_names: ClassNames | None = None
    quantization: Quantization | None = None  #: of INT8 graphs

    @property
    def all_files(self) -> dict[str, FileEntry]:
        """By relative path: every file that belongs to the bundle, artifacts included."""
        artifacts = (artifact for budget in self.budgets for artifact in budget.artifacts)
        return dict(self.files) | {a.file: FileEntry(sha256=a.sha256, bytes=a.bytes) for a in artifacts}

    @property
    def unpruned(self) -> Budget | None:
        """The budget that removes nothing, if there is one."""
        return next((b for b in self.budgets if all(count == self.model.tokens for count in b.schedule)), None)

    def budget(self, name: str) -> Budget:
        """The budget called `name`.

        Raises:
            UserError: there is none; naming those that are there.
        """
        for budget in self.budgets:
            if budget.name == name:
                return budget
        names = [b.name for b in self.budgets]
        raise UserError(f"no budget {name!r} (there are: {', '.join(names)}).{did_you_mean(name, names)}")


def _from_version_1(document: dict[str, object]) -> dict[str, object]:
    """Version 1 called engine files plans."""
    budgets = document.get("budgets")
    for budget in budgets if isinstance(budgets, list) else []:
        artifacts = budget.get("artifacts") if isinstance(budget, dict) else None
        for artifact in artifacts if isinstance(artifacts, list) else []:
            if isinstance(artifact, dict) and artifact.get("form") == "plan":
                artifact["form"] = ENGINE_FILE
    return document


KIND = DocumentKind(
    noun="bundle",
    format="edge-tprune-bundle",
    version=2,
    make="Make one with: edge-tprune build",
    remedy="Copy the bundle again, or rebuild it",
    schema=Manifest,
    file=MANIFEST,
    convert=_from_version_1,
)
