"""Where a network breaks in half precision: the first part whose numbers leave float16's range, or how large the residual stream is.

float16 ends at 65504, and from 2^k on its numbers are 2^(k-10) apart: a residual stream around 1e4, as large DINOv2 networks have it, loses
updates below 8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edge_tprune.errors import NegativeAnswer
from edge_tprune.reduction.host import PrunedViT

_END = 65504.0  # float16's largest number
_NORMS = ("norm1", "norm2", "norm")  # what enters them is the residual stream

#: By ("blocks.2.mlp.fc1", "input" or "output"), as they come; the largest absolute value, or infinity.
Peaks = dict[tuple[str, str], float]


class HalfPrecisionBreak(NegativeAnswer):
    """A graph in half precision is not the network that was asked for."""

    def __init__(self, message: str, precision: str) -> None:
        super().__init__(message)
        self.precision = precision


@torch.inference_mode()
def describe_break(exact: PrunedViT, half: PrunedViT, images: Tensor) -> str:
    """Which block of `half` breaks on images (B, 3, H, W), and by which number of the float32 network `exact`."""
    expected, found = _peaks(exact, images), _peaks(half, images)
    for place, peak in found.items():
        if not math.isfinite(peak):
            value = expected.get(place, 0.0)
            reached = f" ({value:.3g} in float32, and float16 ends at {_END:.0f})" if value > _END else ""
            return f"{_describe_place(*place)} overflows{reached}"
    stream = {place: peak for place, peak in expected.items() if place[1] == "input" and place[0].split(".")[-1] in _NORMS}
    place, peak = next((place, peak) for place, peak in stream.items() if peak >= 0.5 * max(stream.values()))
    step = 2.0 ** (math.floor(math.log2(peak)) - 10) if peak > 0 else 0.0
    return f"{_describe_place(*place)} reaches {peak:.3g}, where float16 has steps of {step:.3g}"


def _peaks(pruned: PrunedViT, images: Tensor) -> Peaks:
    found: Peaks = {}

    def largest(value: Tensor) -> float:
        return float(value.abs().max()) if bool(torch.isfinite(value).all()) else math.inf

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for side, value in (("input", inputs[0]), ("output", output)):
                found[name, side] = max(largest(value), found.get((name, side), 0.0))

        return module.register_forward_hook(note)

    leaves = [(name, part) for name, part in pruned.model.named_modules() if name and not any(True for _ in part.children())]
    handles = [watch(name, part) for name, part in leaves if not isinstance(part, (nn.Identity, nn.Dropout))]
    try:
        pruned(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _describe_place(name: str, side: str) -> str:
    """ "block 3: mlp.fc1", "block 3: the residual stream before its attention", ..."""
    parts = name.split(".")
    in_block = parts[0] == "blocks" and len(parts) > 2
    part = ".".join(parts[2:]) if in_block else name
    if side == "input":
        before = {"norm1": "the residual stream before its attention", "norm2": "the residual stream before its MLP"}
        before |= {"norm": "the residual stream after the last block", "attn.proj": "its attention"}
        part = before.get(part, f"what enters {part}")
    return f"block {int(parts[1]) + 1}: {part}" if in_block else part
