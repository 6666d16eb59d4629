"""What an engine became: precision and fused attention, so that a slow budget explains itself.

On the GPU that runs it TensorRT's inspector tells. Away from it, an engine file of TensorRT-RTX still holds its kernels as source text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge_tprune.runtime.tensorrt.record import EngineDescription

Layer = Mapping[str, Any]
"""A layer in the inspector's JSON. Its keys differ between versions of TensorRT; what is absent is unknown."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_FUSED = re.compile(r"mha|flash", re.IGNORECASE)
#: In engine files of TensorRT-RTX: of any compiled kernel, and once for every attention that became one kernel (seen in 1.7).
_ANY_KERNEL, _FUSED_KERNEL = b"__myln_", b"struct _gemm_mha_v2_params_t"
_HALF, _SINGLE = re.compile(r"half|fp16|float16", re.IGNORECASE), re.compile(r"float|fp32", re.IGNORECASE)


def describe_engine(layers: Sequence[Layer]) -> EngineDescription:
    """Sums up the inspector's layers.

    Args:
        layers: in execution order.
    """
    precisions = [kind for layer in layers if (kind := _precision(layer)) is not None]
    fused = [(index, layer) for index, layer in enumerate(layers) if _is_fused_attention(layer)]
    blocks = {block for index, _ in fused if (block := _block_before(layers, index)) is not None}
    return EngineDescription(
        layers=len(layers),
        fp16_layers_percent=100.0 * precisions.count("fp16") / len(precisions) if precisions else None,
        fused_attention=len(fused),
        fused_attention_blocks=tuple(sorted(blocks)),
    )


def describe_engine_file(data: bytes) -> EngineDescription | None:
    """What an engine file tells without the GPU it is for.

    None where it holds no source text, as those of TensorRT itself, or text of another kind than known.
    """
    if _ANY_KERNEL not in data:
        return None
    fused = data.count(_FUSED_KERNEL)
    return EngineDescription(layers=None, fp16_layers_percent=None, fused_attention=fused, fused_attention_blocks=None)


def _precision(layer: Layer) -> str | None:
    """ "fp16" or "fp32" where all floating-point outputs are, "mixed" where they differ, None where there are none."""
    seen = set()
    for tensor in layer.get("Outputs", ()):
        text = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "")
        if _HALF.search(text):
            seen.add("fp16")
        elif _SINGLE.search(text):
            seen.add("fp32")
    return None if not seen else seen.pop() if len(seen) == 1 else "mixed"


def _is_fused_attention(layer: Layer) -> bool:
    """By the names that TensorRT gives such kernels: `_gemm_mha_v2_*`, `fmha_*`. ONNX names may hold "mha" too, so they do not count."""
    name = str(layer.get("Name", ""))
    return bool(_FUSED.search(str(layer.get("TacticName", "")) or (name if name.startswith("_") else "")))


def _block_before(layers: Sequence[Layer], index: int) -> int | None:
    """The block of the nearest layer at or before `index` that names one: attention follows its block's own projections."""
    for layer in reversed(layers[: index + 1]):
        names = _ONNX_LAYER.findall(str(layer.get("Metadata", ""))) or [str(layer.get("Name", ""))]
        blocks = [int(match.group(1)) for name in names if (match := _BLOCK.search(name))]
        if blocks:
            return blocks[0]
    return None


def slowest(times_ms: Mapping[str, float], count: int = 10) -> list[tuple[str, float]]:
    """The `count` layers that take longest, in ms, the longest first."""
    return sorted(times_ms.items(), key=lambda item: -item[1])[:count]
