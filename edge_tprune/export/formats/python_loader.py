"""Format `python`: the graph and a loader that needs numpy, pillow and the runtime, and nothing of edge-tprune."""

from __future__ import annotations

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import ExportRequest, Format, Package

_LOADERS = {"onnxruntime": "classify_onnxruntime.py", "tensorrt": "classify_tensorrt.py"}  #: by runtime: its template
_ON_GPU = (
    "",
    "The first run builds `model.plan` for the GPU that is here, which can take minutes; another GPU or TensorRT needs it built again. On a Jetson "
    "TensorRT comes with JetPack: `sudo apt install python3-libnvinfer`, not pip.",
    "Checked: the engine is built by TensorRT-RTX's parser and builder; what runs it was checked against the names in NVIDIA's Python bindings and "
    "run with GPU calls emulated on a CPU. It has not run on a GPU.",
)


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
        if request.runtime not in _LOADERS:
            raise UserError(
                f"format python has no loader for {request.runtime}: use --runtime {' or '.join(_LOADERS)}, or --format onnx"
            )

    def write(self, package: Package) -> None:
        """The loader, what it needs, and the README."""
        package.copy_template("images.py", "images.py")
        package.copy_template(_LOADERS[package.request.runtime], "classify.py")
        on_gpu = package.request.runtime == "tensorrt"
        runtime = "tensorrt>=8.5\ncuda-python>=12\n" if on_gpu else f"onnxruntime>={package.about['onnxruntime']}\n"
        package.write("requirements.txt", f"numpy>=1.23\npillow>=10\n{runtime}")
        lines = [
            "```sh",
            "pip install -r requirements.txt",
            "python classify.py golden.png",
            "```",
            "",
            "prints the best five classes of each image. In a program: `from classify import Model`, then `Model()(image)`.",
            describe_input(package),
            describe_outputs(package),
            *(_ON_GPU if on_gpu else ()),
        ]
        write_readme(package, lines)
