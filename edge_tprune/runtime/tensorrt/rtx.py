"""TensorRT-RTX, TensorRT for consumer GPUs: the same runner over another library, which compiles an engine's kernels as it is loaded."""

from __future__ import annotations

from functools import partial

from edge_tprune.runtime.tensorrt import runner

open_engine = partial(runner.open_engine, runtime="tensorrt-rtx")
version = partial(runner.version, runtime="tensorrt-rtx")
