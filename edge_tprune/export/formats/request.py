"""What is asked of an export, and what a format's module is handed to write its own files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact, Budget
from edge_tprune.models.preprocess import Preprocessing

FORMAT, VERSION = "edge-tprune-export", 1
GRAPH, LABELS, ABOUT, GOLDEN_IMAGE, GOLDEN_ANSWER = "model.onnx", "labels.txt", "model.json", "golden.png", "golden.json"

#: Version of ONNX's operators -> the first ONNX Runtime that runs our graphs in it. Opset 23 is used for its `Attention` operator.
ONNXRUNTIME = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.23"}


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, and how."""

    budget: str  #: of the bundle, by name
    format: str
    out: Path
    runtime: str = "onnxruntime"  #: whose form of the graph
    precision: str | None = None  #: by default the one that the bundle was built for first
    frame: tuple[int, int] | None = None  #: (height, width) of uint8 frames whose preprocessing is folded into the graph
    channel_order: str = "rgb"  #: of such frames
    top_k: int | None = None  #: classes that the graph gives instead of logits
    name: str | None = None  #: what the model is called where it goes
    onnxruntime_version: str | None = None  #: of the target, where it is older than this machine's
    plans: tuple[tuple[str, Path], ...] = ()  #: (compute capability, engine file) of the boards that a Triton repository serves
    force: bool = False  #: replace an older export


class TensorDescription(msgspec.Struct, frozen=True):
    """An input or output of the graph."""

    name: str
    dtype: str  #: NumPy's name
    shape: tuple[int, ...]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """model.json: what the package is, for programs."""

    format: str = FORMAT
    version: int = VERSION
    tool_version: str
    name: str
    model: str
    method: str
    budget: str
    macs_share: float
    tokens_after_blocks: tuple[int, ...]
    precision: str
    bundle_fingerprint: str
    input: TensorDescription
    outputs: tuple[TensorDescription, ...]
    opset: int
    onnxruntime: str  #: the first version that runs it
    preprocessing: Preprocessing | None  #: None where it is in the graph
    channel_order: str
    classes: int
    graph_sha256: str
    #: SHA-256 of every other file of the package, by its path in it.
    sha256: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    #: Difference of the outputs for the golden image from those of the bundle's graph.
    golden_difference: float | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that is being written: its graph and its common files are in `folder` already."""

    folder: Path
    request: ExportRequest
    bundle: Bundle
    budget: Budget
    artifact: Artifact
    name: str
    about: Description
    labels: tuple[str, ...]

    def write(self, name: str, text: str) -> None:
        """A text file of the package."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def copy_template(self, template: str, name: str, words: Mapping[str, str] | None = None) -> None:
        """A file that every package of a format has alike, but for `words` that are replaced."""
        text = (Path(__file__).parent / "templates" / template).read_text(encoding="utf-8")
        for word, other in (words or {}).items():
            text = text.replace(word, other)
        self.write(name, text)


class Format(ABC):
    """One way to hand a network over."""

    graph = GRAPH  #: where the graph lies in the package
    about = ABOUT  #: where its description lies

    def place(self, request: ExportRequest, name: str) -> Path:
        """The directory that is written."""
        return request.out

    def check(self, request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:  # noqa: B027
        """Refuses, before anything is done, what the format cannot hold.

        Raises:
            UserError: saying what.
        """

    def change_graph(self, model: onnx.ModelProto, bundle: Bundle) -> None:  # noqa: B027
        """Makes the graph what the format's runtime feeds and reads."""

    def prepare(self, image: Image.Image, bundle: Bundle) -> np.ndarray:
        """One image as the format's runtime hands it to the changed graph, where that takes prepared images: (C, H, W) float32."""
        return bundle.manifest.preprocessing(image)

    @abstractmethod
    def write(self, package: Package) -> None:
        """The files that are the format's own, README included."""
