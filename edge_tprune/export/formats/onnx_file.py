"""Format `onnx`: one self-contained file."""

from __future__ import annotations

from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import Format, Package


class OnnxFile(Format):
    """One self-contained file."""

    def write(self, package: Package) -> None:
        """The README."""
        lines = [
            "`model.onnx` holds the graph and its weights. In Python:",
            "",
            "```python",
            "import numpy as np",
            "import onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("model.onnx")',
            f"image = np.zeros({tuple(package.about.input.shape)}, np.{package.about.input.dtype})",
            f'outputs = session.run(None, {{"{package.about.input.name}": image}})',
            "```",
            "",
            describe_input(package),
            describe_outputs(package),
        ]
        write_readme(package, lines)
