"""CUDA through NVIDIA's `cuda-python`: the runtime API, call by call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import NO_DEVICE, NO_DRIVER, NO_MEMORY, Cuda, CudaError, Device

_WAITS = {0: "auto", 1: "spin", 2: "yield", 4: "block"}


class CudaPython(Cuda):
    """The first GPU through `cuda-python`."""

    name = "cuda-python"

    def __init__(self) -> None:
        self._runtime = import_runtime()
        driver = self._call("cudaDriverGetVersion")
        if driver == 0:
            raise UserError(NO_DRIVER)
        built_for = self._call("cudaRuntimeGetVersion")
        try:
            self._call("cudaGetDeviceCount")
        except CudaError as error:
            if "cudaErrorInsufficientDriver" not in str(error):
                raise
            raise UserError(
                f"the CUDA driver is too old: it serves CUDA {_version(driver)}, and cuda-python here needs {_version(built_for)}. "
                f"Update the driver (on a Jetson: JetPack), or run: pip install 'cuda-python=={driver // 1000}.*'"
            ) from error
        self._call("cudaSetDeviceFlags", self._runtime.cudaDeviceScheduleSpin)
        self._call("cudaSetDevice", 0)
        self.wait = _WAITS.get(self._call("cudaGetDeviceFlags") & 7, "auto")
        properties = self._call("cudaGetDeviceProperties", 0)
        self.device = Device(
            name=bytes(properties.name).split(b"\0")[0].decode(errors="replace"),
            sm=f"{properties.major}.{properties.minor}",
            integrated=bool(properties.integrated),
            memory_bytes=int(properties.totalGlobalMem),
            driver=_version(driver),
        )

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        return int(self._call("cudaMemGetInfo")[0])

    def allocate(self, count: int) -> int:
        """`count` bytes of device memory; the address."""
        return int(self._call("cudaMalloc", count))

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call("cudaFree", address)

    def allocate_host(self, shape: tuple[int, ...], mapped: bool) -> tuple[np.ndarray, int]:
        """A float32 array in page-locked memory and its address on the device (0 where not mapped)."""
        flags = self._runtime.cudaHostAllocMapped if mapped else self._runtime.cudaHostAllocDefault
        count = int(np.prod(shape))
        host = int(self._call("cudaHostAlloc", count * 4, flags))
        array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(host)).reshape(shape)
        return array, int(self._call("cudaHostGetDevicePointer", host, 0)) if mapped else 0

    def free_host(self, array: np.ndarray) -> None:
        """Gives page-locked memory back."""
        self._call("cudaFreeHost", array.ctypes.data)

    def copy_to_device(self, address: int, array: np.ndarray, stream: Any) -> None:
        """Enqueues a copy from page-locked memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to_host(self, array: np.ndarray, address: int, stream: Any) -> None:
        """Enqueues a copy into page-locked memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def create_stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def stream_handle(self, stream: Any) -> int:
        """The stream as other libraries take it."""
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        """Returns when everything enqueued is done."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        """Gives a stream back."""
        self._call("cudaStreamDestroy", stream)

    def create_event(self) -> Any:
        """An event that takes times."""
        return self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDefault)

    def record(self, event: Any, stream: Any) -> None:
        """Enqueues taking the time."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ns(self, begin: Any, end: Any) -> int:
        """Nanoseconds between two recorded events."""
        return round(float(self._call("cudaEventElapsedTime", begin, end)) * 1e6)

    def destroy_event(self, event: Any) -> None:
        """Gives an event back."""
        self._call("cudaEventDestroy", event)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """A graph of what `work` enqueues on `stream`."""
        self._call("cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            error, graph = self._runtime.cudaStreamEndCapture(
                stream
            )  # the stream leaves capture mode, whatever became of the work
            if error == self._runtime.cudaError_t.cudaSuccess:
                self._call("cudaGraphDestroy", graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueues a graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Gives a graph back."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """One call of the runtime API: its one result, the tuple of them, or None."""
        error, *results = getattr(self._runtime, name)(*arguments)
        codes = self._runtime.cudaError_t
        if error == codes.cudaSuccess:
            return results[0] if len(results) == 1 else tuple(results) or None
        if error == codes.cudaErrorMemoryAllocation:
            raise UserError(NO_MEMORY)
        if error == codes.cudaErrorNoDevice:
            raise UserError(NO_DEVICE)
        text = self._runtime.cudaGetErrorString(error)[1]
        raise CudaError(f"{name}: {error.name} ({bytes(text).decode(errors='replace')})")


def import_runtime() -> Any:
    """The module of runtime calls, where this version of `cuda-python` has it."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        from cuda import cudart as runtime  # before 12.6
    return runtime


def _version(number: int) -> str:
    """12060 -> "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"
