"""ONNX Runtime on the CPU.

Worker threads keep their default spinning, because that is what an application gets; whoever compares engines keeps one of
them alive at a time, or the idle one's spinners slow the other down.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.errors import UserError, missing_package
from edge_tprune.runtime.engine import Engine, EngineInfo
from edge_tprune.text import first_line, is_text

_PROVIDERS = ["CPUExecutionProvider"]
_FATAL_ONLY = 4  # errors are raised as well; its own log would bring names of a foreign graph to the terminal as they are


class OrtEngine(Engine):
    """An ONNX graph in an ONNX Runtime session: `threads` intra-op threads, sequential, all graph optimisations."""

    concurrent = True

    def __init__(self, file: Path, threads: int, shared: bool = False) -> None:
        ort = _import()
        if not file.is_file():
            raise UserError(f"{file} does not exist")
        if not is_text(file):
            raise UserError(f"ONNX Runtime opens no file whose path is not UTF-8 text: rename {file}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _FATAL_ONLY
        if shared:
            _share_arena(ort)
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.disable_prepacking", "1")
            # The last level copies the patch embedding's weights into another order; memory patterns make the arena hold one more block per graph.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.enable_mem_pattern = False
        try:
            self._session: Any = ort.InferenceSession(str(file), options, providers=_PROVIDERS)
        except Exception as error:  # its exception types share no base, and none of them is public
            remedy = f". Give fewer --threads than {threads}, or raise the limit (ulimit -u)" if "pthread" in str(error) else ""
            raise UserError(f"ONNX Runtime {ort.__version__} cannot load {file}: {first_line(error)}{remedy}") from error
        if shared:
            _return_freed_memory()
        self._file = file
        self._input, self.input_shape = _tensor(file, "input", self._session.get_inputs())
        self._output, self.output_shape = _tensor(file, "output", self._session.get_outputs())
        self.info = EngineInfo(
            runtime="onnxruntime",
            version=ort.__version__,
            threads=threads,
            providers=tuple(self._session.get_providers()),
        )

    def run(self, image: np.ndarray) -> np.ndarray:
        """Logits (B, classes) of `image` (B, 3, H, W), float32 both.

        Raises:
            UserError: ONNX Runtime loaded the graph, but cannot compute it.
        """
        self.check_input(image)
        session = self._session  # kept alive until it has answered, whatever another thread closes meanwhile
        if session is None:
            raise UserError("the engine is closed: open it again")
        try:
            logits: np.ndarray = session.run([self._output], {self._input: image})[0]
        except MemoryError:
            raise
        except Exception as error:  # its exception types share no base, and none of them is public
            raise UserError(f"ONNX Runtime {self.info.version} cannot run {self._file}: {first_line(error)}") from error
        return logits

    def close(self) -> None:
        """Drops the session, which joins its threads and frees its memory."""
        self._session = None


def open_engine(file: Path, threads: int, shared: bool = False) -> Engine:
    """The graph `file` in a session of its own.

    With `shared`, weights are read where the bundle's one weight file is mapped into memory, which all sessions share, instead of from a copy in the
    order that the CPU's kernels like best; and all such sessions take their working memory from one arena. What each adds is what ONNX Runtime
    keeps of a graph's nodes: about 2 MB for 200 of them.
    """
    return OrtEngine(file, threads, shared)


def version() -> str:
    """The installed ONNX Runtime's version."""
    return str(_import().__version__)


def _import() -> Any:
    # Its official builds would write a database below the home directory and send events from a thread of their own.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        if importlib.util.find_spec("onnxruntime") is None:
            raise missing_package("onnxruntime", "ort") from error
        cause: BaseException | None = error
        while cause is not None:  # Ctrl-C while its compiled part loads comes out as an ImportError
            if isinstance(cause, KeyboardInterrupt) or "KeyboardInterrupt" in str(cause):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__
        raise UserError(f"onnxruntime is installed but cannot be imported ({error}). Install it again") from error
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    return onnxruntime


@lru_cache(maxsize=1)
def _share_arena(ort: Any) -> None:
    """One arena of this process for all sessions that ask for it; it cannot be made twice."""
    kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(kind, None)


def _return_freed_memory() -> None:
    """Gives what loading a graph took and freed back to the system, where the C library can (glibc)."""
    with suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no library of no name
        ctypes.CDLL(None).malloc_trim(0)


def _tensor(file: Path, role: str, tensors: list[Any]) -> tuple[str, tuple[int, ...]]:
    """Name and static shape of the one float32 input or output."""
    if len(tensors) != 1:
        raise UserError(f"{file} has {len(tensors)} {role}s; an image model has one")
    tensor = tensors[0]
    if tensor.type != "tensor(float)" or not all(isinstance(size, int) for size in tensor.shape):
        raise UserError(f"{file}: {role} {tensor.name!r} is {tensor.type} {tensor.shape}; it must be float32 of static shape")
    return tensor.name, tuple(tensor.shape)
