"""CUDA through `pycuda`, where a board has it instead of `cuda-python`: the driver API. It has no CUDA graphs."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import NO_DEVICE, NO_DRIVER, NO_MEMORY, Cuda, CudaError, Device

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PyCuda(Cuda):
    """The first GPU through `pycuda`, in the context that all CUDA libraries of the process share."""

    name = "pycuda"
    wait = "auto"  # the shared context's flags are not pycuda's to set

    def __init__(self) -> None:
        self._driver = import_driver()
        try:
            self._driver.init()
            if self._driver.Device.count() == 0:
                raise UserError(NO_DEVICE)
            device = self._driver.Device(0)
            self._context = device.retain_primary_context()
        except self._driver.Error as error:
            raise UserError(f"CUDA cannot be started: {error}. {NO_DEVICE}") from error
        self._context.push()
        atexit.register(self._pop)  # pycuda aborts a process that ends with a context on its stack
        major, minor = device.compute_capability()
        version = self._driver.get_driver_version()
        self.device = Device(
            name=device.name(),
            sm=f"{major}.{minor}",
            integrated=bool(device.get_attribute(self._driver.device_attribute.INTEGRATED)),
            memory_bytes=int(device.total_memory()),
            driver=f"{version // 1000}.{version % 1000 // 10}",
        )
        self._memory: dict[int, Any] = {}  # address -> what owns it

    def _pop(self) -> None:
        with suppress(Exception):
            self._context.pop()

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        return int(self._try(self._driver.mem_get_info)[0])

    def allocate(self, count: int) -> int:
        """`count` bytes of device memory; the address."""
        allocation = self._try(self._driver.mem_alloc, count)
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._try(self._memory.pop(address).free)

    def allocate_host(self, shape: tuple[int, ...], mapped: bool) -> tuple[np.ndarray, int]:
        """A float32 array in page-locked memory and its address on the device (0 where not mapped)."""
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        array = self._try(self._driver.pagelocked_empty, shape, np.float32, mem_flags=flags)
        self._memory[array.ctypes.data] = array.base
        return array, int(array.base.get_device_pointer()) if mapped else 0

    def free_host(self, array: np.ndarray) -> None:
        """Gives page-locked memory back."""
        self._try(self._memory.pop(array.ctypes.data).free)

    def copy_to_device(self, address: int, array: np.ndarray, stream: Any) -> None:
        """Enqueues a copy from page-locked memory."""
        self._try(self._driver.memcpy_htod_async, address, array, stream)

    def copy_to_host(self, array: np.ndarray, address: int, stream: Any) -> None:
        """Enqueues a copy into page-locked memory."""
        self._try(self._driver.memcpy_dtoh_async, array, address, stream)

    def create_stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._try(self._driver.Stream, _NON_BLOCKING)

    def stream_handle(self, stream: Any) -> int:
        """The stream as other libraries take it."""
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        """Returns when everything enqueued is done."""
        self._try(stream.synchronize)

    def destroy_stream(self, stream: Any) -> None:
        """Nothing: pycuda destroys a stream with its last reference."""

    def create_event(self) -> Any:
        """An event that takes times."""
        return self._try(self._driver.Event)

    def record(self, event: Any, stream: Any) -> None:
        """Enqueues taking the time."""
        self._try(event.record, stream)

    def elapsed_ns(self, begin: Any, end: Any) -> int:
        """Nanoseconds between two recorded events."""
        return round(float(self._try(end.time_since, begin)) * 1e6)

    def destroy_event(self, event: Any) -> None:
        """Nothing: pycuda destroys an event with its last reference."""

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """Not offered by pycuda."""
        raise CudaError("pycuda has no CUDA graphs; cuda-python has")

    def launch(self, graph: Any, stream: Any) -> None:
        """Not offered by pycuda."""
        raise CudaError("pycuda has no CUDA graphs; cuda-python has")

    def destroy_graph(self, graph: Any) -> None:
        """Nothing: there are none."""

    def _try(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except self._driver.MemoryError as error:
            raise UserError(NO_MEMORY) from error
        except self._driver.Error as error:
            raise CudaError(f"pycuda: {error}") from error


def import_driver() -> Any:
    """The module of driver calls.

    Raises:
        ImportError: pycuda is not installed.
        UserError: it is, and the driver's library is not.
    """
    try:
        from pycuda import driver
    except ImportError as error:
        if "libcuda" in str(error):
            raise UserError(NO_DRIVER) from error
        raise
    return driver
