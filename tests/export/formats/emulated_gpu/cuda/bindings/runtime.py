"""What an exported program calls of cuda-python, on the computer's own memory."""

from __future__ import annotations

import ctypes
import enum
from typing import Any

_memory: list[Any] = []


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


def cudaSetDevice(device: int) -> tuple[cudaError_t]:
    return (cudaError_t.cudaSuccess,)


def cudaStreamCreate() -> tuple[cudaError_t, int]:
    return cudaError_t.cudaSuccess, 7


def cudaStreamSynchronize(stream: int) -> tuple[cudaError_t]:
    return (cudaError_t.cudaSuccess,)


def cudaMalloc(count: int) -> tuple[cudaError_t, int]:
    _memory.append((ctypes.c_char * count)())
    return cudaError_t.cudaSuccess, ctypes.addressof(_memory[-1])


def cudaMemcpyAsync(to: int, source: int, count: int, kind: cudaMemcpyKind, stream: int) -> tuple[cudaError_t]:
    assert isinstance(kind, cudaMemcpyKind)
    ctypes.memmove(to, source, count)
    return (cudaError_t.cudaSuccess,)
