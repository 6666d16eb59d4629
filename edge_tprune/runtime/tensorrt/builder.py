"""One builder for TensorRT 8.5 to 11 and TensorRT-RTX: from an ONNX graph to an engine file, and what the parsed network says about itself.

What a version offers is probed, never concluded from its number. Precision is the graph's own: the network is strongly typed wherever the
library knows that; before (8.5, 8.6) the FP16 flag is set and every layer that the graph wants in FP32 is held there. FP32 means FP32:
TF32, which TensorRT allows by default, is off.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_tprune.errors import UserError
from edge_tprune.runtime.tensorrt.library import Library, TensorRTLog, rtx_targets
from edge_tprune.runtime.tensorrt.record import EngineSettings, NetworkDescription, NetworkTensor

#: (what is being done, steps done, steps in all). Called from the build's threads.
Progress = Callable[[str, int, int], None]

_SKIPPED = re.compile(r"insufficient.*tactic|skipping tactic.*(memory|insufficient)|tactic.*insufficient memory", re.IGNORECASE)
_NO_MEMORY = re.compile(
    r"out ?of ?memory|outofmemory|bad_alloc|memory allocation|cudaErrorMemoryAllocation|insufficient memory", re.IGNORECASE
)
_NODE = re.compile(r'name: "([^"]+)" op_type: "([^"]+)"')
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
#: Layers that the parser adds to broadcast, reshape and compute static shapes; they say nothing about the network.
_PLUMBING = {"CONSTANT", "SHUFFLE", "SLICE", "CAST", "SQUEEZE", "UNSQUEEZE", "IDENTITY", "SHAPE"}
_INTEGERS = {"QUANTIZE", "DEQUANTIZE"}  # become part of the layers around them


class BuildError(UserError):
    """TensorRT could not make an engine of a graph: why, and the way out."""


@dataclass
class BuiltEngine:
    """An engine file's content, and what building it was like."""

    data: bytes
    seconds: float
    typing: str  #: "strong", or "fp16 flag" where the library has no strong typing
    network: NetworkDescription
    skipped_tactics: int  #: how many tactics there was no memory for
    warnings: list[str] = field(default_factory=list)
    timing_cache: bytes | None = None


class Network:
    """An ONNX graph as TensorRT's parser understands it. Keeps what must outlive the build together."""

    def __init__(self, library: Library, graph: Path) -> None:
        """Parses `graph`, whose external weights lie beside it.

        Raises:
            BuildError: the graph cannot be parsed; names the node.
        """
        trt = library.module
        self.library, self.log = library, TensorRTLog(trt)
        self.builder = trt.Builder(self.log.logger)
        kinds = trt.NetworkDefinitionCreationFlag.__members__
        flags = [kinds[name] for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in kinds]
        self.strongly_typed = "STRONGLY_TYPED" in kinds or not hasattr(trt.BuilderFlag, "FP16")
        self.network = self.builder.create_network(sum(1 << int(flag) for flag in flags))
        self._parser = trt.OnnxParser(self.network, self.log.logger)
        if not graph.is_file():
            raise BuildError(f"{graph} does not exist")
        if not self._parser.parse_from_file(str(graph)):
            raise BuildError(f"{library.runtime} {library.version} cannot parse {graph}: {self._first_parse_error()}")

    def _first_parse_error(self) -> str:
        if not self._parser.num_errors:
            return self.log.why()
        error = self._parser.get_error(0)
        text = " ".join(str(error.desc()).split())
        number = error.node()
        if number < 0:
            return text
        if not hasattr(error, "node_name"):  # before 10: the log holds the node itself
            named = next((match for line in self.log.errors if (match := _NODE.search(line))), None)
            return f"node {number}{f' {named[1]} ({named[2]})' if named else ''}: {text}"
        return f"node {error.node_name()} ({error.node_operator()}): {text}"

    def layers(self) -> list[Any]:
        """Every layer, in order."""
        return [self.network.get_layer(index) for index in range(self.network.num_layers)]

    def describe(self, blocks: int) -> NetworkDescription:
        """What the parser made of the graph of a network with so many blocks."""
        layers = self.layers()
        operations: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for layer in layers:
            if layer.type.name not in _PLUMBING and layer.num_outputs:
                operations[layer.type.name.lower()][_dtype(layer.get_output(0))] += 1
        return NetworkDescription(
            layers=len(layers),
            inputs=tuple(_tensor(self.network.get_input(i)) for i in range(self.network.num_inputs)),
            outputs=tuple(_tensor(self.network.get_output(i)) for i in range(self.network.num_outputs)),
            tokens_after_blocks=tuple(_tokens(layers, block) for block in range(blocks)),
            operations={kind: dict(counts) for kind, counts in sorted(operations.items())},
            attention=tuple(_attention(layers, blocks)),
        )

    def compile(
        self,
        precision: str,
        settings: EngineSettings,
        *,
        target: str | None = None,
        timing_cache: bytes | None = None,
        blocks: int = 0,
        progress: Progress | None = None,
    ) -> BuiltEngine:
        """Builds the engine.

        Args:
            precision: of the graph: "fp32", "fp16", "mixed" or "int8".
            settings: limits.
            target: the GPU to build for ahead of time, one of `rtx_targets`; the one at hand by default.
            timing_cache: measured tactics of earlier builds on this device; b"" to start one, None to go without.
            blocks: of the network, for `describe`.
            progress: called where the library reports it.

        Raises:
            BuildError: no engine came out, or a setting that this library does not have.
        """
        config = self._config(precision, settings, target)
        found = self.describe(blocks)
        cache_warnings = _attach_timing_cache(config, timing_cache)
        monitor = _monitor(self.library.module, progress)  # held here: the library does not hold it
        if monitor is not None and hasattr(config, "progress_monitor"):
            config.progress_monitor = monitor
        begin = time.perf_counter()
        data = self.builder.build_serialized_network(self.network, config)
        seconds = time.perf_counter() - begin
        if data is None:
            raise BuildError(self._why_no_engine())
        skipped = [text for text in self.log.warnings if _SKIPPED.search(text)]
        return BuiltEngine(
            data=bytes(data),
            seconds=seconds,
            typing="strong" if self.strongly_typed else "fp16 flag",
            network=found,
            skipped_tactics=len(skipped),
            warnings=[*cache_warnings, *_advice(skipped)],
            timing_cache=None if timing_cache is None else _detach_timing_cache(config),
        )

    def _config(self, precision: str, settings: EngineSettings, target: str | None) -> Any:
        trt = self.library.module
        config = self.builder.create_builder_config()
        if settings.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb * 10**6)
        if settings.optimization_level is not None:
            if not hasattr(config, "builder_optimization_level"):
                raise BuildError(f"{self.library.runtime} {self.library.version} has no optimisation level: leave it out")
            config.builder_optimization_level = settings.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector could not say what became of the graph
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)
        if not self.strongly_typed and precision != "fp32":
            config.set_flag(trt.BuilderFlag.FP16)
            if precision == "int8":
                if not getattr(self.builder, "platform_has_fast_int8", True):
                    raise BuildError(
                        f"{self.library.runtime} {self.library.version}: this GPU has no INT8. Use --precision fp16"
                    )
                config.set_flag(trt.BuilderFlag.INT8)
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            for layer in self.layers():
                if (
                    layer.type.name not in _PLUMBING | _INTEGERS
                    and layer.num_outputs
                    and layer.get_output(0).dtype == trt.float32
                ):
                    layer.precision = trt.float32
        if rtx_targets(self.library):
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, (target or "current").upper()), 0)
        return config

    def _why_no_engine(self) -> str:
        why, name = self.log.why(), f"{self.library.runtime} {self.library.version}"
        if any(_NO_MEMORY.search(text) for text in self.log.errors):
            return f"{name} ran out of memory while building ({why}). {MEMORY_WAY_OUT}"
        if "FP32 GEMM is not supported" in why:
            return f"{name} has no FP32 matrix products for this GPU: build the bundle with --precision fp16 or mixed"
        return f"{name} could not build an engine: {why}"


MEMORY_WAY_OUT = (
    "Close other programs, give the board swap, or limit the workspace: edge-tprune engines BUNDLE --workspace-mb 512"
)


def _dtype(tensor: Any) -> str:
    name = str(tensor.dtype.name)
    return _DTYPES.get(name, name.lower())


def _tensor(tensor: Any) -> NetworkTensor:
    return NetworkTensor(name=tensor.name, shape=tuple(tensor.shape), dtype=_dtype(tensor))


def _tokens(layers: list[Any], block: int) -> int | None:
    """How many tokens the MLP of `block` works on, where its layers agree."""
    prefix = f"model.blocks.{block}.mlp"
    seen = {
        layer.get_output(0).shape[1]
        for layer in layers
        if layer.name.startswith(prefix) and layer.type.name not in _PLUMBING and len(layer.get_output(0).shape) == 3
    }
    return int(seen.pop()) if len(seen) == 1 else None


def _attention(layers: list[Any], blocks: int) -> list[str | None]:
    """Per block, how its attention is written."""
    consumers: defaultdict[str, list[Any]] = defaultdict(list)
    for layer in layers:
        for index in range(layer.num_inputs):
            if (tensor := layer.get_input(index)) is not None:
                consumers[tensor.name].append(layer)
    found: list[str | None] = [None] * blocks
    block = None
    for layer in layers:
        if match := _BLOCK.search(layer.name):
            block = int(match.group(1))
        if block is None or block >= blocks:
            continue
        if layer.type.name.startswith("ATTENTION"):
            found[block] = "operator"
        elif layer.type.name == "SOFTMAX":
            output = layer.get_output(0)
            if len(output.shape) != 4 or output.shape[2] != output.shape[3]:
                continue  # the class token's row that a reduction looks at
            users = consumers[output.name]
            while len(users) == 1 and users[0].type.name in ("SHUFFLE", "CAST"):
                users = consumers[users[0].get_output(0).name]
            found[block] = "fusable" if len(users) == 1 else "map is used"
    return found


def _monitor(trt: Any, progress: Progress | None) -> Any:
    """The library's progress monitor, where it has one (10 and later)."""
    if progress is None or not hasattr(trt, "IProgressMonitor"):
        return None
    tell = progress

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(phase_name, step + 1, self.steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _attach_timing_cache(config: Any, blob: bytes | None) -> list[str]:
    """Gives the build its timing cache; returns a warning where the library refuses it, and starts an empty one."""
    if blob is None:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT-RTX takes one, and says that it does nothing with it
        for data in dict.fromkeys((blob, b"")):
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return ["the timing cache was refused and a new one begun"] if data != blob else []
    return ["the library takes no timing cache"]


def _detach_timing_cache(config: Any) -> bytes | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cache = config.get_timing_cache()
        return None if cache is None else bytes(cache.serialize())


def _advice(skipped: list[str]) -> list[str]:
    if not skipped:
        return []
    return [
        f"{len(skipped)} tactics were left out for lack of memory, so the engine may be slower than it could be ({skipped[0]}). "
        "Close other programs and build again: edge-tprune engines BUNDLE --force"
    ]
