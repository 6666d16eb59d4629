"""TensorRT or TensorRT-RTX as it is installed here: its module, version, log and, for TensorRT-RTX, the GPUs it builds for."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from edge_tprune.errors import UserError, missing_package
from edge_tprune.text import one_line

#: Runtime -> the modules that may hold it. TensorRT-RTX's has another name when its two wheels are installed without their umbrella.
MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_ERROR, _WARNING = 1, 2  # ILogger.Severity, the same in every version


@dataclass(frozen=True)
class Library:
    """One flavour of TensorRT, imported."""

    runtime: str  #: "tensorrt" or "tensorrt-rtx"
    module: Any
    version: str


def load(runtime: str) -> Library:
    """Imports TensorRT or TensorRT-RTX.

    Raises:
        UserError: it is not installed, or its libraries cannot be loaded.
    """
    for name in MODULES[runtime]:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise UserError(f"{runtime} is installed but cannot be imported ({one_line(error)}). Install it again") from error
        return Library(runtime, module, str(module.__version__))
    if runtime == "tensorrt-rtx":
        raise missing_package("tensorrt_rtx", "rtx")
    raise UserError(
        "TensorRT's Python module is not installed. On a Jetson it comes with JetPack: sudo apt install python3-libnvinfer, and make the "
        "virtual environment with --system-site-packages (it is for the system's Python only); elsewhere: pip install tensorrt"
    )


class TensorRTLog:
    """A TensorRT logger (`logger`) that keeps errors and warnings instead of printing them."""

    def __init__(self, module: Any) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        keep = self._keep

        class Logger(module.ILogger):  # type: ignore[misc]  # the base is known at run time only
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                keep(int(severity), message)

        self.logger = Logger()

    def _keep(self, severity: int, message: str) -> None:
        if severity <= _WARNING:
            (self.errors if severity <= _ERROR else self.warnings).append(" ".join(message.split()))

    def why(self) -> str:
        """The first error, which is the cause; later ones follow from it."""
        return self.errors[0] if self.errors else "it gave no reason"


def rtx_targets(library: Library) -> list[str]:
    """The GPUs that engines can be built for ahead of time: ["sm75", ...]; none where the library builds for the GPU at hand only."""
    known = getattr(library.module, "ComputeCapability", None)
    names = [] if known is None else list(known.__members__)
    return [name.lower() for name in names if name.startswith("SM")]


def unserved(library: Library, sm: str) -> str | None:
    """What is to be said of `library` on a GPU of compute capability `sm` ("8.7") that is not among its targets; None where it is."""
    targets = rtx_targets(library)
    if not targets or target_of(sm) in targets:
        return None
    return f"{library.runtime} {library.version} is made for {', '.join(targets)}, and this GPU is {target_of(sm)}: use --runtime tensorrt"


def target_of(sm: str) -> str:
    """ "8.6" -> "sm86"."""
    return f"sm{sm.replace('.', '')}"
