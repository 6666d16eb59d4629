"""Format `onnx`: one self-contained file."""

from __future__ import annotations

from pathlib import Path

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import ExportRequest, Package


def place(request: ExportRequest, name: str) -> Path:
    """The directory that is written."""
    return request.out


def check(request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:
    """Every graph fits."""


def write(package: Package) -> None:
    """The README."""
    lines = [
        "`model.onnx` holds the graph and its weights. In Python:",
        "",
        "```python",
        "import numpy as np",
        "import onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        f"image = np.zeros({tuple(package.input['shape'])}, np.{package.input['dtype']})",
        f'outputs = session.run(None, {{"{package.input["name"]}": image}})',
        "```",
        "",
        describe_input(package),
        describe_outputs(package),
    ]
    write_readme(package, lines)
