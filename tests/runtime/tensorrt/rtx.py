"""NVIDIA's parser and builder, from the TensorRT-RTX wheels, which need no GPU. Importing this skips a test where they are not installed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import onnx
import pytest

trt = pytest.importorskip(
    "tensorrt_rtx_bindings",
    reason="TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
    exc_type=ImportError,  # bindings without their library
)


@lru_cache(maxsize=1)
def builder() -> Any:
    return trt.Builder(trt.Logger(trt.Logger.ERROR))


@dataclass(frozen=True)
class Parsed:
    """A graph as TensorRT reads it."""

    network: Any
    parser: Any  # holds the network's weights

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Parsed:
        network = builder().create_network(0)
        parser = trt.OnnxParser(network, builder().logger)
        assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return cls(network, parser)

    def layers(self) -> list[tuple[str, str, list[Any], list[Any]]]:
        """(kind, name, inputs, outputs) of every layer."""
        found = []
        for layer in (self.network.get_layer(i) for i in range(self.network.num_layers)):
            inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
            outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
            found.append((layer.type.name, layer.name, [t for t in inputs if t is not None], outputs))
        return found

    def build(self) -> bytes:
        config = builder().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        plan = builder().build_serialized_network(self.network, config)
        assert plan is not None, "the builder refused what the parser took"
        return bytes(plan)
