"""The one interface to everything that can run a graph, and the door to the runtimes behind it.

A runtime is a module with `version()` and `open_engine(file, threads, shared)`; the first call imports its library, never before.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import psutil

from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.runtime.tensorrt.record import EngineRecord

E = TypeVar("E", bound="Engine")
Stages = dict[Literal["h2d", "compute", "d2h"], list[int]]  # nanoseconds of each inference

#: Name of a runtime, as in a bundle's artifacts -> the module that runs it.
RUNTIMES = {
    "onnxruntime": "edge_tprune.runtime.ort",
    "tensorrt": "edge_tprune.runtime.tensorrt.runner",
    "tensorrt-rtx": "edge_tprune.runtime.tensorrt.rtx",
}


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the record of a measurement says of an engine."""

    runtime: str
    version: str  #: the library's
    threads: int
    providers: tuple[str, ...]  #: of ONNX Runtime
    device: str | None = None  #: the GPU, from here on
    sm: str | None = None  #: its compute capability, "8.7"
    driver_cuda: str | None = None  #: the newest CUDA that its driver knows
    cuda_binding: str | None = None
    wait: str | None = None  #: how the CPU waits for the GPU
    cuda_graph: bool | None = None  #: whether compute is replayed from a CUDA graph
    cuda_graph_missing_because: str | None = None
    zero_copy: bool | None = None  #: whether the GPU reads and writes host memory directly
    engine_file_bytes: int | None = None
    scratch_bytes: int | None = None  #: device memory for activations
    device_free_before_bytes: int | None = None
    device_free_after_bytes: int | None = None
    built: EngineRecord | None = None  #: how the engine file was built


class Engine(ABC):
    """A loaded graph, ready to run. Holds threads and memory until `close()`; a context manager."""

    input_shape: tuple[int, ...]  #: (B, 3, H, W)
    output_shape: tuple[int, ...]  #: (B, classes)
    info: EngineInfo
    concurrent: bool = False  #: whether several threads may call `run` at once

    @abstractmethod
    def run(self, image: np.ndarray) -> np.ndarray:
        """Logits (B, classes) of `image` (B, 3, H, W), float32 both. Returns when the result is in host memory.

        Raises:
            UserError: `image` has another shape or dtype.
        """

    def stages_ns(self) -> Stages | None:
        """What the device's own clock saw of each inference since the last call: "h2d", "compute", "d2h", in ns.

        None where the runtime has no such clock.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Frees threads and memory. A second call does nothing."""

    @property
    def buffer(self) -> np.ndarray | None:
        """The memory (B, 3, H, W) that the engine reads: an image written there and passed to `run` is not copied. None where it reads any array."""
        return None

    def check_input(self, image: np.ndarray) -> None:
        """Refuses an image that the graph was not built for."""
        if not isinstance(image, np.ndarray):
            raise UserError(f"the graph takes an array, float32 {self.input_shape}, not {type(image).__name__}")
        if image.shape != self.input_shape or image.dtype != np.float32:
            raise UserError(f"the graph takes float32 {self.input_shape}, but the image is {image.dtype} {image.shape}")

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_engine(file: Path, runtime: str, *, threads: int, shared: bool = False) -> Engine:
    """Loads the graph `file` with `runtime` on `threads` CPU threads.

    With `shared`, several engines of one bundle take little more memory than one, where the runtime can do that (`edge_tprune.runtime.ort`).

    Raises:
        UserError: an unknown runtime or one whose package is missing, a graph it cannot load, fewer than one thread.
    """
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise UserError(f"an engine has 1 to 1024 threads, not {threads!r}")
    engine: Engine = _module(runtime).open_engine(Path(file), threads, shared=shared)
    return engine


def default_threads() -> int:
    """One per physical core, or fewer where this process may use fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [count for count in (psutil.cpu_count(logical=False), allowed) if count]
    return min(counts, default=1)


def runtime_version(runtime: str) -> str:
    """The version of `runtime`'s library, which is imported by this call.

    Raises:
        UserError: an unknown runtime or one whose package is missing.
    """
    version: str = _module(runtime).version()
    return version


def _module(runtime: str) -> Any:
    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r} (known: {', '.join(RUNTIMES)}).{did_you_mean(runtime, RUNTIMES)}")
    return importlib.import_module(RUNTIMES[runtime])
