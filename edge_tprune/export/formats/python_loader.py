"""Format `python`: the graph and a loader that needs numpy, pillow and the runtime, and nothing of edge-tprune."""

from __future__ import annotations

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import ExportRequest, Format, Package


class PythonLoader(Format):
    """The graph and a loader for Python."""

    def check(self, request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:
        """The loader prints classes.

        Raises:
            UserError: the graph gives none, or its runtime has no loader.
        """
        if bundle.manifest.model.output.name != LOGITS:
            raise UserError(
                f"format python prints classes, and this graph gives {bundle.manifest.model.output.name}: use --format onnx"
            )
        if request.runtime != "onnxruntime":
            raise UserError(f"format python has no loader for {request.runtime}: use --runtime onnxruntime, or --format onnx")

    def write(self, package: Package) -> None:
        """The loader, what it needs, and the README."""
        package.copy_template("images.py", "images.py")
        package.copy_template("classify_onnxruntime.py", "classify.py")
        package.write("requirements.txt", f"numpy>=1.23\npillow>=10\nonnxruntime>={package.about['onnxruntime']}\n")
        lines = [
            "```sh",
            "pip install -r requirements.txt",
            "python classify.py golden.png",
            "```",
            "",
            "prints the best five classes of each image. In a program: `from classify import Model`, then `Model()(image)`.",
            describe_input(package),
            describe_outputs(package),
        ]
        write_readme(package, lines)
