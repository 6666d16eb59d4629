"""Prints what the network says of images: python classify.py golden.png cat.jpg. Needs numpy, pillow, tensorrt and cuda-python, and nothing of edge-tprune.

The first run builds model.plan for this GPU, which can take minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from images import FOLDER, prepare, read_description, run_program
from PIL import Image

try:
    from cuda.bindings import runtime as cuda
except ImportError:
    from cuda import cudart as cuda  # cuda-python before 12.6

LOGGER = trt.Logger(trt.Logger.WARNING)


def call(name: str, *arguments: Any) -> Any:
    """One call of the CUDA runtime, and its result."""
    error, *results = getattr(cuda, name)(*arguments)
    if error != cuda.cudaError_t.cudaSuccess:
        raise SystemExit(f"{name}: {error.name}")
    return results[0] if results else None


def build(graph: Path, precision: str) -> bytes:
    """The engine file of a graph. Its types are those of the graph where this TensorRT has strongly typed networks."""
    builder = trt.Builder(LOGGER)
    kinds, flag = trt.NetworkDefinitionCreationFlag, 0
    if hasattr(kinds, "STRONGLY_TYPED"):
        flag |= 1 << int(kinds.STRONGLY_TYPED)
    if hasattr(kinds, "EXPLICIT_BATCH"):
        flag |= 1 << int(kinds.EXPLICIT_BATCH)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, LOGGER)
    if not parser.parse(graph.read_bytes()):
        raise SystemExit(f"TensorRT {trt.__version__} cannot read {graph}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if precision != "fp32" and not hasattr(kinds, "STRONGLY_TYPED"):
        config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit(f"TensorRT {trt.__version__} could not build an engine of {graph}: see its messages above")
    return bytes(plan)


class Model:
    """The network in an execution context. `model(image)` gives its outputs for one image of Pillow."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.description = read_description(folder)
        plan = folder / "model.plan"
        if not plan.exists():
            plan.write_bytes(build(folder / "model.onnx", self.description["precision"]))
        call("cudaSetDevice", 0)
        self.runtime = trt.Runtime(LOGGER)
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.engine is None:
            raise SystemExit(f"{plan} is of another TensorRT or GPU: delete it, and it is built again")
        self.context, self.stream = self.engine.create_execution_context(), call("cudaStreamCreate")
        self.arrays, self.addresses = {}, {}
        for name in (self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)):
            array = np.zeros(tuple(self.engine.get_tensor_shape(name)), trt.nptype(self.engine.get_tensor_dtype(name)))
            self.arrays[name], self.addresses[name] = array, call("cudaMalloc", array.nbytes)
            self.context.set_tensor_address(name, int(self.addresses[name]))

    def __call__(self, image: Image.Image) -> list[np.ndarray]:
        """The graph's outputs for one image, without their axis of images."""
        given, kinds = self.description["input"]["name"], cuda.cudaMemcpyKind
        names = [output["name"] for output in self.description["outputs"]]
        self.arrays[given][0] = prepare(image, self.description)
        self._copy(given, kinds.cudaMemcpyHostToDevice)
        if not self.context.execute_async_v3(int(self.stream)):
            raise SystemExit("TensorRT could not run the network: see its messages above")
        for name in names:
            self._copy(name, kinds.cudaMemcpyDeviceToHost)
        call("cudaStreamSynchronize", self.stream)
        return [self.arrays[name][0].copy() for name in names]

    def _copy(self, name: str, kind: Any) -> None:
        array, there = self.arrays[name], self.addresses[name]
        ends = (there, array.ctypes.data) if kind == cuda.cudaMemcpyKind.cudaMemcpyHostToDevice else (array.ctypes.data, there)
        call("cudaMemcpyAsync", *ends, array.nbytes, kind, self.stream)


if __name__ == "__main__":
    run_program(Model)
