"""Format `cpp`: the graph, and a program in C++14 that needs ONNX Runtime's C API alone."""

from __future__ import annotations

from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import GOLDEN_IMAGE, ExportRequest, Format, Package

_FRAME = "golden.ppm"


class CppLoader(Format):
    """A program and its CMakeLists.txt."""

    def check(self, request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:
        """The program takes frames and prints classes.

        Raises:
            UserError: the graph does not prepare frames itself, or gives no classes.
        """
        if bundle.manifest.model.output.name != LOGITS:
            raise UserError(
                f"format cpp prints classes, and this graph gives {bundle.manifest.model.output.name}: use --format onnx"
            )
        if request.frame is None or request.channel_order != "rgb":
            raise UserError(
                "format cpp leaves resizing and normalisation to the graph: give --fold-preprocessing (without --bgr)"
            )
        if request.runtime != "onnxruntime":
            raise UserError(f"format cpp has no program for {request.runtime}: leave --runtime out, or use --format onnx")

    def write(self, package: Package) -> None:
        """The program, the golden image as it reads it, and the README."""
        package.copy_template("classify.cc", "classify.cc")
        package.copy_template("CMakeLists.txt", "CMakeLists.txt")
        with Image.open(package.folder / GOLDEN_IMAGE) as image:
            image.save(package.folder / _FRAME)
        lines = [
            "```sh",
            "cmake -B build -DONNXRUNTIME_ROOT=/path/to/onnxruntime && cmake --build build",
            f"./build/classify {_FRAME}",
            "```",
            "",
            f"prints the best five classes of each frame. Needs ONNX Runtime {package.about['onnxruntime']} or newer: headers and library.",
            describe_input(package),
            describe_outputs(package),
        ]
        write_readme(package, lines)
