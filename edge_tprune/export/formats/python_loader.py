"""Format `python`: the graph and a loader that needs numpy, pillow and the runtime, and nothing of edge-tprune."""

from __future__ import annotations

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import ExportRequest, Format, Package

_LOADERS = {"onnxruntime": "classify_onnxruntime.py", "tensorrt": "classify_tensorrt.py"}  #: by runtime: its template
_CLASSIFY, _INFER = "classify.py", "infer.py"  #: what the program is called that prints classes, or something else
_ON_GPU = (
    "",
    "The first run builds `model.plan` for this GPU, which can take minutes; another GPU or TensorRT version needs a new one. On a Jetson, "
    "TensorRT comes with JetPack: `sudo apt install python3-libnvinfer`, not pip.",
    "Tested: the engine was built by TensorRT-RTX's parser and builder; the code that runs it was checked against the names in NVIDIA's Python bindings and "
    "run with GPU calls emulated on a CPU. It has not run on a GPU.",
)


class PythonLoader(Format):
    """The graph and a loader for Python."""

    def check(self, request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:
        """There is a loader for ONNX Runtime and one for TensorRT.

        Raises:
            UserError: for another runtime.
        """
        if request.runtime not in _LOADERS:
            raise UserError(
                f"format python has no loader for {request.runtime}: use --runtime {' or '.join(_LOADERS)}, or --format onnx"
            )

    def write(self, package: Package) -> None:
        """The loader, what it needs, and the README."""
        classes = package.bundle.manifest.model.output.name == LOGITS
        program = _CLASSIFY if classes else _INFER
        package.copy_template("images.py", "images.py")
        package.copy_template(_LOADERS[package.request.runtime], program, {_CLASSIFY: program})
        on_gpu = package.request.runtime == "tensorrt"
        runtime = "tensorrt>=8.5\ncuda-python>=12\n" if on_gpu else f"onnxruntime>={package.about.onnxruntime}\n"
        package.write("requirements.txt", f"numpy>=1.23\npillow>=10\n{runtime}")
        environment = "python3 -m venv --system-site-packages venv" if on_gpu else "python3 -m venv venv"
        lines = [
            f"Needs Python {'3.8' if on_gpu or package.about.opset <= 18 else '3.10'} or newer and the packages in `requirements.txt`; "
            "edge-tprune is not needed. In this directory:",
            "",
            "```sh",
            environment,
            "venv/bin/pip install -r requirements.txt",
            f"venv/bin/python {program} golden.png  # or your own files: photo.jpg other.png",
            "```",
            "",
            *_program(program, classes),
            describe_input(package),
            describe_outputs(package),
            *(_ON_GPU if on_gpu else ()),
        ]
        write_readme(package, lines)


def _program(program: str, classes: bool) -> list[str]:
    """What the program prints, and how it is used from another."""
    if classes:
        shows, imported, use = (
            "the best classes of each image with their probabilities",
            "best, open_image",
            "best(scores)",
        )
    else:
        shows, imported, use = "the shape and the first values of the output for each image", "open_image", "scores[0].shape"
    return [
        f"It prints {shows}. In your own program, beside these files:",
        "",
        "```python",
        f"from {program.partition('.')[0]} import Model",
        f"from images import {imported}",
        "",
        "model = Model()",
        'scores = model(open_image("golden.png"))  # a list of arrays, one per output; any Pillow image',
        f"print({use})",
        "```",
        "",
    ]
