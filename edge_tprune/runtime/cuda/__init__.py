"""The little of CUDA that running an engine takes, over whichever Python binding the machine has.

`cuda-python` is NVIDIA's own and preferred; `pycuda` is what older boards have. Both do the same work behind `Cuda`; the handles they
give out (streams, events, graphs) are theirs and mean nothing to anybody else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_tprune.errors import InternalError, UserError, did_you_mean

NO_DRIVER = "there is no CUDA driver on this machine. Install NVIDIA's (on a Jetson: JetPack), or choose --runtime onnxruntime"
NO_DEVICE = (
    "the CUDA driver sees no GPU. In a container, start it with --gpus all (on a Jetson: --runtime nvidia); check nvidia-smi"
)
NO_MEMORY = "the GPU is out of memory. Close what else uses it (on a Jetson, GPU and CPU share their memory), or build with a smaller --batch"


class CudaError(InternalError):
    """A CUDA call failed for a reason that is not the person's: which call, and what CUDA says."""


@dataclass(frozen=True)
class Device:
    """The GPU that is used: always the first one."""

    name: str  #: as CUDA calls it; all Orin modules are "Orin"
    sm: str  #: compute capability, "8.7"
    integrated: bool  #: shares its memory with the CPU
    memory_bytes: int
    driver: str  #: highest CUDA version that the driver serves, "12.6"


class Cuda(ABC):
    """The first GPU. Errors are `UserError` where the person can fix them (no driver, no memory), else `CudaError`."""

    name: str  #: of the binding
    device: Device
    wait: str  #: how `synchronize` waits: "spin", "yield", "block" or "auto"

    @abstractmethod
    def free_bytes(self) -> int:
        """Device memory that is free now."""

    @abstractmethod
    def allocate(self, count: int) -> int:
        """`count` bytes of device memory; the address."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Gives device memory back."""

    @abstractmethod
    def allocate_host(self, shape: tuple[int, ...], mapped: bool) -> tuple[np.ndarray, int]:
        """A float32 array in page-locked memory and, where `mapped`, the address by which the GPU reads and writes it (else 0)."""

    @abstractmethod
    def free_host(self, array: np.ndarray) -> None:
        """Gives page-locked memory back; the array must not be used any more."""

    @abstractmethod
    def copy_to_device(self, address: int, array: np.ndarray, stream: Any) -> None:
        """Enqueues a copy from page-locked memory."""

    @abstractmethod
    def copy_to_host(self, array: np.ndarray, address: int, stream: Any) -> None:
        """Enqueues a copy into page-locked memory."""

    @abstractmethod
    def create_stream(self) -> Any:
        """A stream that does not wait for the default one."""

    @abstractmethod
    def stream_handle(self, stream: Any) -> int:
        """The stream as other libraries take it."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None:
        """Returns when everything enqueued is done."""

    @abstractmethod
    def destroy_stream(self, stream: Any) -> None:
        """Gives a stream back."""

    @abstractmethod
    def create_event(self) -> Any:
        """An event that takes times."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None:
        """Enqueues taking the time."""

    @abstractmethod
    def elapsed_ns(self, begin: Any, end: Any) -> int:
        """Nanoseconds between two recorded events (CUDA resolves about half a microsecond)."""

    @abstractmethod
    def destroy_event(self, event: Any) -> None:
        """Gives an event back."""

    @abstractmethod
    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """A graph of what `work` enqueues on `stream`, which is not executed by this call.

        Raises:
            CudaError: it cannot be captured, or the binding has no graphs. Nothing is left in capture mode.
        """

    @abstractmethod
    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueues a graph."""

    @abstractmethod
    def destroy_graph(self, graph: Any) -> None:
        """Gives a graph back."""


def open_cuda(binding: str | None = None) -> Cuda:
    """The first GPU, through the best binding that is installed.

    Args:
        binding: "cuda-python" or "pycuda"; by default the first of them that can be imported.

    Raises:
        UserError: an unknown binding, none installed, no driver or one too old, no GPU.
    """
    if binding is not None and binding not in BINDINGS:
        raise UserError(f"unknown CUDA binding {binding!r} (known: {', '.join(BINDINGS)}).{did_you_mean(binding, BINDINGS)}")
    missing: ImportError | None = None
    for opened in [BINDINGS[binding]] if binding else BINDINGS.values():
        try:
            return opened()
        except ImportError as error:
            missing = missing or error
    raise UserError(
        f"no Python binding of CUDA can be imported ({missing}). Run: pip install 'edge-tprune[cuda]' (on boards with CUDA 11: pip install pycuda)"
    ) from missing


def installed_bindings() -> list[str]:
    """Names of the bindings that can be imported here."""
    found = []
    for name, imported in _IMPORTS.items():
        try:
            imported()
        except (ImportError, UserError):
            continue
        found.append(name)
    return found


def _cuda_python() -> Cuda:
    from edge_tprune.runtime.cuda.cuda_python import CudaPython

    return CudaPython()


def _pycuda() -> Cuda:
    from edge_tprune.runtime.cuda.pycuda_binding import PyCuda

    return PyCuda()


def _import_cuda_python() -> Any:
    from edge_tprune.runtime.cuda.cuda_python import import_runtime

    return import_runtime()


def _import_pycuda() -> Any:
    from edge_tprune.runtime.cuda.pycuda_binding import import_driver

    return import_driver()


BINDINGS: dict[str, Callable[[], Cuda]] = {"cuda-python": _cuda_python, "pycuda": _pycuda}
_IMPORTS = {"cuda-python": _import_cuda_python, "pycuda": _import_pycuda}
