"""Format `triton`: a model of a Triton Inference Server's repository, NAME/config.pbtxt and NAME/1/model.onnx or engine files.

Triton's `model_configuration.md`: the name is the directory's; with `max_batch_size: 0`, `dims` is the whole shape, as our graphs are static;
`cc_model_filenames` picks an engine file by the GPU's compute capability.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import Artifact
from edge_tprune.bundle.outputs import LOGITS
from edge_tprune.errors import UserError
from edge_tprune.export.formats.readme import describe_input, describe_outputs, write_readme
from edge_tprune.export.formats.request import LABELS, ExportRequest, Format, Package, TensorDescription

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}
_CAPABILITY = re.compile(r"\d{1,2}\.\d")


class Triton(Format):
    """A model of a Triton repository; `--out` is the repository."""

    graph = "1/model.onnx"

    def place(self, request: ExportRequest, name: str) -> Path:
        """The model's directory within the repository."""
        return request.out / name

    def check(self, request: ExportRequest, bundle: Bundle, artifact: Artifact, name: str) -> None:
        """Names and engine files that Triton takes.

        Raises:
            UserError: a name that is no plain directory's, an engine file that is not there, a compute capability that is none.
        """
        if not _NAME.fullmatch(name):
            raise UserError(
                f"Triton refuses the name {name!r}: it is a directory's, of letters, digits, '_', '-' and '.'. Choose another --name"
            )
        if request.plans and request.runtime == "onnxruntime":
            raise UserError("--plan is of TensorRT: give --runtime tensorrt too")
        for capability, file in request.plans:
            if not _CAPABILITY.fullmatch(capability):
                raise UserError(f"--plan {capability}={file}: {capability!r} is no compute capability such as 8.7")
            if not file.is_file():
                raise UserError(f"--plan {capability}={file}: there is no such file")

    def write(self, package: Package) -> None:
        """config.pbtxt, engine files and the README."""
        plans = {capability: f"model_sm{capability.replace('.', '')}.plan" for capability, _ in package.request.plans}
        for capability, file in package.request.plans:
            shutil.copyfile(file, package.folder / "1" / plans[capability])
        package.write("config.pbtxt", _config(package, plans))
        first = (
            "`1/` holds engine files; Triton picks one by the GPU."
            if plans
            else "`1/model.onnx` runs in Triton's ONNX Runtime backend. For engine files export again with `--runtime tensorrt --plan 8.7=FILE`."
        )
        lines = [
            "```sh",
            f"tritonserver --model-repository={package.request.out.name or '.'}",
            "```",
            "",
            first,
            describe_input(package),
            describe_outputs(package),
        ]
        write_readme(package, lines)


def _config(package: Package, plans: dict[str, str]) -> str:
    """The text of config.pbtxt."""
    labelled = package.bundle.manifest.model.output.name == LOGITS and package.request.top_k is None
    lines = [
        f'name: "{package.name}"',
        f'platform: "{"tensorrt_plan" if plans else "onnxruntime_onnx"}"',
        "max_batch_size: 0",
        f"input [ {_tensor(package.about.input)} ]",
        *(f"output [ {_tensor(output, LABELS if labelled else None)} ]" for output in package.about.outputs),
        f'default_model_filename: "{next(iter(plans.values())) if plans else "model.onnx"}"',
        *(f'cc_model_filenames {{ key: "{capability}" value: "{file}" }}' for capability, file in plans.items()),
        f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if plans else 'KIND_AUTO'} }} ]",
    ]
    return "\n".join(lines) + "\n"


def _tensor(tensor: TensorDescription, labels: str | None = None) -> str:
    named = f' label_filename: "{labels}"' if labels else ""
    return f'{{ name: "{tensor.name}" data_type: {_TYPES[tensor.dtype]} dims: {list(tensor.shape)}{named} }}'
