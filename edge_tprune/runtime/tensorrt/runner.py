"""TensorRT 8.5 to 11 and TensorRT-RTX: one runner, because all of them run an engine by named tensors and `execute_async_v3`.

What differs between the versions is asked of the library (is the attribute there?), never concluded from its version number.

One inference is: copy the image into page-locked memory, H2D, compute, D2H, wait, copy the logits out. Where GPU and CPU share their
memory the page-locked buffers are mapped and the engine reads and writes them directly: no transfers. Compute is replayed from a CUDA
graph where it can be captured. Every stage is timed by events on the GPU's own clock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import Cuda, CudaError, open_cuda
from edge_tprune.runtime.engine import Engine, EngineInfo, Stages
from edge_tprune.runtime.tensorrt.library import Library, TensorRTLog, load, unserved
from edge_tprune.runtime.tensorrt.record import read_record

_TIMES = 20_000  # inferences whose times are kept: a program may never ask for them


class TensorRTEngine(Engine):
    """An engine file in an execution context of its own, on the first GPU."""

    _engine: Any = None
    _context: Any = None
    _graph: Any = None

    def __init__(self, file: Path, library: Library, threads: int, *, graph: bool = True, binding: str | None = None) -> None:
        """Loads `file`.

        Args:
            file: the engine file; its record, where one lies beside it, becomes part of `info`.
            library: what built it.
            threads: for the record; the GPU needs none.
            graph: replay compute from a CUDA graph where that works.
            binding: of CUDA; the preferred one that is installed by default.

        Raises:
            UserError: no GPU, not enough memory, or an engine file that this library or GPU cannot run.
        """
        if not file.is_file():
            raise UserError(f"{file} does not exist")
        self._open = ExitStack()
        try:
            self._load(file, library, threads, graph, open_cuda(binding))
        except BaseException:
            self._open.close()
            raise

    def _load(self, file: Path, library: Library, threads: int, graph: bool, cuda: Cuda) -> None:
        trt = library.module
        self._module, self._cuda, self._log = trt, cuda, TensorRTLog(trt)
        free_before = cuda.free_bytes()
        self._stream = self._keep(cuda.create_stream(), cuda.destroy_stream)
        runtime = trt.Runtime(self._log.logger)
        data = file.read_bytes()
        self._engine = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            remedy = unserved(library, cuda.device.sm) or (
                "Engine files run only on the GPU and with the version they were built for: build it here with edge-tprune engines BUNDLE"
            )
            raise UserError(
                f"{library.runtime} {library.version} cannot load {file} on this {cuda.device.name} (SM {cuda.device.sm}): {self._log.why()}. "
                f"{remedy}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise UserError(f"there is no memory left to run {file}: {self._log.why()}")
        self._open.callback(self._forget)
        self._input, self.input_shape = _tensor(file, trt, self._engine, "INPUT")
        self._output, self.output_shape = _tensor(file, trt, self._engine, "OUTPUT")
        self._zero_copy = cuda.device.integrated
        self._host_in, self._device_in = self._buffer(self.input_shape)
        self._host_out, self._device_out = self._buffer(self.output_shape)
        self._context.set_tensor_address(self._input, self._device_in)
        self._context.set_tensor_address(self._output, self._device_out)
        self._stages: Stages = {"h2d": [], "compute": [], "d2h": []}
        self._events = [self._keep(cuda.create_event(), cuda.destroy_event) for _ in range(len(self._stages) + 1)]
        no_graph: str | None = "switched off"
        self._enqueue()  # the first inference allocates and initialises, which no graph may hold
        cuda.synchronize(self._stream)
        if graph:
            no_graph = self._capture()
        self.info = EngineInfo(
            runtime=library.runtime,
            version=library.version,
            threads=threads,
            providers=(),
            device=cuda.device.name,
            sm=cuda.device.sm,
            driver_cuda=cuda.device.driver,
            cuda_binding=cuda.name,
            wait=cuda.wait,
            cuda_graph=self._graph is not None,
            cuda_graph_missing_because=no_graph,
            zero_copy=self._zero_copy,
            engine_file_bytes=len(data),
            scratch_bytes=_scratch_bytes(self._engine),
            device_free_before_bytes=free_before,
            device_free_after_bytes=cuda.free_bytes(),
            built=read_record(file),
        )

    def _keep(self, handle: Any, release: Callable[[Any], None]) -> Any:
        self._open.callback(release, handle)
        return handle

    def _buffer(self, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        """(page-locked array, the address that the engine uses)."""
        array, address = self._cuda.allocate_host(shape, self._zero_copy)
        self._open.callback(self._cuda.free_host, array)
        if not self._zero_copy:
            address = self._keep(self._cuda.allocate(array.nbytes), self._cuda.free)
        array[...] = 0
        return array, address

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream_handle(self._stream)):
            raise CudaError(f"TensorRT could not run the engine: {self._log.why()}")

    def _capture(self) -> str | None:
        """Captures compute as a graph; returns why there is none, or None."""
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._cuda.stream_handle(self._stream)):
            return "TensorRT says that this engine cannot be captured"
        try:
            graph = self._cuda.capture(self._stream, self._enqueue)
        except CudaError as error:
            return str(error)
        self._graph = self._keep(graph, self._cuda.destroy_graph)
        return None

    def run(self, image: np.ndarray) -> np.ndarray:
        """Logits (B, classes) of `image` (B, 3, H, W), float32 both."""
        self.check_input(image)
        if self._engine is None:
            raise UserError("the engine is closed: open it again")
        cuda, stream, events = self._cuda, self._stream, self._events
        if image is not self._host_in:
            self._host_in[...] = image
        cuda.record(events[0], stream)
        if not self._zero_copy:
            cuda.copy_to_device(self._device_in, self._host_in, stream)
        cuda.record(events[1], stream)
        if self._graph is None:
            self._enqueue()
        else:
            cuda.launch(self._graph, stream)
        cuda.record(events[2], stream)
        if not self._zero_copy:
            cuda.copy_to_host(self._host_out, self._device_out, stream)
        cuda.record(events[3], stream)
        cuda.synchronize(stream)
        for index, times in enumerate(self._stages.values()):
            times.append(cuda.elapsed_ns(events[index], events[index + 1]))
            if len(times) >= 2 * _TIMES:
                del times[:_TIMES]
        logits: np.ndarray = self._host_out.copy()
        return logits

    @property
    def buffer(self) -> np.ndarray | None:
        """The page-locked memory that is copied to the device, or that the GPU reads itself where it shares memory with the CPU."""
        return None if self._engine is None else self._host_in

    def stages_ns(self) -> Stages:
        """H2D, compute and D2H of each inference since the last call (of the last 20,000 at least), by events on the GPU, in ns.

        With zero-copy memory (`info`) nothing is transferred: H2D and D2H are then the distance of two events with nothing between.
        """
        stages, self._stages = self._stages, {"h2d": [], "compute": [], "d2h": []}
        return stages

    def layers(self) -> list[dict[str, object]]:
        """What the engine consists of, by TensorRT's inspector: name, type, tensors with their data types, tactic, ONNX nodes.

        An engine that was built without details gives names only.
        """
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        found = json.loads(inspector.get_engine_information(self._module.LayerInformationFormat.JSON))["Layers"]
        return [layer if isinstance(layer, dict) else {"Name": layer} for layer in found]

    def layer_times_ms(self, image: np.ndarray, runs: int = 20) -> dict[str, float]:
        """Median time of each layer over `runs` inferences, in ms, in execution order.

        Layers are timed one by one in a context of their own: their sum exceeds the time of an undisturbed inference.
        """
        self.check_input(image)
        times: defaultdict[str, list[float]] = defaultdict(list)

        class Profiler(self._module.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self, module: Any) -> None:
                module.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name].append(ms)

        profiler = Profiler(self._module)
        context = self._engine.create_execution_context()
        if context is None:
            raise UserError(f"there is no memory left to time layers: {self._log.why()}")
        context.set_tensor_address(self._input, self._device_in)
        context.set_tensor_address(self._output, self._device_out)
        self._host_in[...] = image
        if not self._zero_copy:
            self._cuda.copy_to_device(self._device_in, self._host_in, self._stream)
        for number in range(runs + 1):
            if number == 1:
                context.profiler = profiler  # the first inference initialises
            context.execute_async_v3(self._cuda.stream_handle(self._stream))
            self._cuda.synchronize(self._stream)
        return {name: median(values) for name, values in times.items()}

    def close(self) -> None:
        """Frees the engine and everything on the device."""
        self._open.close()

    def _forget(self) -> None:
        self._graph = self._context = self._engine = None  # the library frees what nothing refers to


def open_engine(file: Path, threads: int, shared: bool = False, runtime: str = "tensorrt") -> Engine:
    """The engine file in a context of its own. Engine files hold their weights: `shared` changes nothing."""
    return TensorRTEngine(file, load(runtime), threads)


def version(runtime: str = "tensorrt") -> str:
    """The installed library's version."""
    return load(runtime).version


def _tensor(file: Path, trt: Any, engine: Any, mode: str) -> tuple[str, tuple[int, ...]]:
    """Name and static shape of the one float32 input or output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    names = [name for name in names if engine.get_tensor_mode(name) == getattr(trt.TensorIOMode, mode)]
    if len(names) != 1:
        raise UserError(f"{file} has {len(names)} {mode.lower()}s; an image model has one")
    shape, kind = tuple(engine.get_tensor_shape(names[0])), engine.get_tensor_dtype(names[0])
    if kind != trt.float32 or min(shape) < 1:
        raise UserError(f"{file}: {mode.lower()} {names[0]!r} is {kind} {shape}; it must be float32 of static shape")
    return names[0], shape


def _scratch_bytes(engine: Any) -> int:
    """Device memory that one context takes for activations."""
    size = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if size is None else size)
