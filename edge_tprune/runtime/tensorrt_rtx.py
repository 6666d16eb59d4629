"""TensorRT-RTX, TensorRT for consumer GPUs: the same runner over another library, which compiles an engine's kernels as it is loaded."""

from __future__ import annotations

from functools import partial

from edge_tprune.runtime import tensorrt

open_engine = partial(tensorrt.open_engine, runtime="tensorrt-rtx")
version = partial(tensorrt.version, runtime="tensorrt-rtx")
