"""Format `cpp`: the graph, and a program in C++17 that needs ONNX Runtime's C API alone, or TensorRT and CUDA."""

from __future__ import annotations

from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import GOLDEN_IMAGE, ExportRequest, Format, Package

_FRAME = "golden.ppm"
_RUNTIMES = ("onnxruntime", "tensorrt")
_BUILD_PLAN = (
    "trtexec --onnx=model.onnx --saveEngine=model.plan --stronglyTyped  # before TensorRT 10: --fp16 instead, if the graph is"
)
_NEEDS_GPU = "Needs TensorRT 8.5 or newer and CUDA: headers and libraries. An engine file runs only on the GPU and TensorRT that built it."
_CHECKED_GPU = (
    "",
    "Tested: a compiler's front end accepted the program, with headers made from the Python bindings of TensorRT and CUDA. It was neither linked nor run.",
)


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
        if request.runtime not in _RUNTIMES:
            raise UserError(
                f"format cpp has no program for {request.runtime}: use --runtime {' or '.join(_RUNTIMES)}, or --format onnx"
            )

    def write(self, package: Package) -> None:
        """The program, the golden image as it reads it, and the README."""
        runtime = package.request.runtime
        package.copy_template("frames.h", "frames.h")
        package.copy_template(f"classify_{runtime}.cc", "classify.cc")
        package.copy_template(f"CMakeLists_{runtime}.txt", "CMakeLists.txt")
        with Image.open(package.folder / GOLDEN_IMAGE) as image:
            image.save(package.folder / _FRAME)
        needs = f"Needs ONNX Runtime {package.about.onnxruntime} or newer: headers and library."
        on_gpu = runtime == "tensorrt"
        lines = [
            "```sh",
            *([_BUILD_PLAN] if on_gpu else []),
            f"cmake -B build -D{runtime.upper()}_ROOT=/path/to/{runtime} && cmake --build build",
            f"./build/classify {_FRAME}",
            "```",
            "",
            f"It prints the best classes of each frame. {_NEEDS_GPU if on_gpu else needs}",
            describe_input(package),
            describe_outputs(package),
            *(_CHECKED_GPU if on_gpu else ()),
        ]
        write_readme(package, lines)
