"""Scale migration: a norm gives channels of like ranges, and the layers that read it take the scales into their weights.

    W x + b  =  (W diag(s)) ((x - d) / s)  +  (b + W d)

x is a norm's output (..., C); s > 0 and d are (C,). The norm's weight and bias take scale and shift, so that in floats nothing changes but rounding,
and the graph has no more operators. It is for norms where few channels are so large that one range leaves the others hardly any integers. Xiao et al.,
"SmoothQuant", ICML 2023, equation 3; the shift is that of Wei et al., "Outlier Suppression+", EMNLP 2023, equation 3.

    d_j = the middle of the range of channel j,  s_j = (half its width)^a

What the inputs gain the weights lose. So a is searched (Lin et al., "AWQ", MLSys 2024, equation 5) by the square error of the layers' outputs that is
to be expected where rounding errors are independent and uniform within a step:

    step_x^2 / 12  sum_oj (W_oj s_j)^2   +   sum_o step_o^2 / 12  sum_j E((x_j - d_j)^2) / s_j^2
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_tprune.reduction.quantization import WEIGHT_LIMIT, quantizable

WORTH = 0.1
"""A norm is changed where the expected error falls to this share. What is behind a smaller gain is not seen in a network's answers: on DeiT-Tiny, where
no norm gains so much, changing all of them left the divergence from float32 as it was (docs/precision-and-engines.md)."""

_READERS = {
    "norm1": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.gate"),
    "norm2": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
}  # all that read a norm of their block, by timm's names, where norms come before layers
_POWERS = (0.25, 0.5, 0.75, 1.0)
_LEAST = 0.01  # of the mean half width: a channel that hardly varied on these photos may vary more on others
_STEPS = 255


@dataclass(frozen=True)
class Channels:
    """What a layer read, by channel, over all tokens; each (C,)."""

    low: Tensor
    high: Tensor
    mean: Tensor  #: float64, as differences of large numbers are needed
    square: Tensor  #: mean of the squares, likewise


@dataclass(frozen=True)
class Migration:
    """What becomes of a norm."""

    readers: tuple[str, ...]  #: names of layers
    scale: Tensor  #: s, (C,)
    shift: Tensor  #: d, (C,); 0 where no bias can take it


def find_migrations(model: nn.Module, seen: Mapping[str, Channels]) -> dict[str, Migration]:
    """The norms that are worth it, by name.

    Args:
        model: in float32.
        seen: what each layer read, by name.
    """
    found = {name: _search(model, name, readers, seen[readers[0]]) for name, readers in _norms(model)}
    return {name: migration for name, migration in found.items() if migration is not None}


def _norms(model: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Norms that nothing but quantizable layers reads, and these layers, by name."""
    layers = quantizable(model)
    for block, module in model.get_submodule("blocks").named_children():
        if "Post" in type(module).__name__:  # its norms come after the layers
            continue
        for part, known in _READERS.items():
            readers = tuple(name for name in (f"blocks.{block}.{reader}" for reader in known) if name in layers)
            if readers and isinstance(getattr(getattr(module, part, None), "weight", None), Tensor):
                yield f"blocks.{block}.{part}", readers


def _search(model: nn.Module, name: str, readers: tuple[str, ...], seen: Channels) -> Migration | None:
    layers = [quantizable(model)[reader] for reader in readers]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    zero, one = torch.zeros_like(seen.low), torch.ones_like(seen.low)
    has_biases = all(isinstance(getattr(part, "bias", None), Tensor) for part in (model.get_submodule(name), *layers))
    shift = (seen.low + seen.high) / 2 if has_biases else zero
    limit = torch.maximum(seen.high - shift, shift - seen.low)
    if not limit.any():  # constants
        return None
    limit = limit.clamp_min(_LEAST * float(limit.mean()))
    candidates = [Migration(readers, limit**power, shift) for power in _POWERS]
    errors = [expected_error(weight, seen, candidate.scale, shift) for candidate in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    return candidates[best] if errors[best] <= WORTH * expected_error(weight, seen, one, zero) else None


def expected_error(weight: Tensor, seen: Channels, scale: Tensor, shift: Tensor) -> float:
    """Of all outputs of a layer together, the mean square of what 8 bits change: the module's formula.

    Args:
        weight: (out, in).
        seen: what the layer reads.
        scale: s, (in,).
        shift: d, (in,).
    """
    scaled = weight * scale
    low, high = float(((seen.low - shift) / scale).min()), float(((seen.high - shift) / scale).max())
    step = (max(high, 0.0) - min(low, 0.0)) / _STEPS
    steps = scaled.abs().amax(1) / WEIGHT_LIMIT
    square = (seen.square - 2 * shift * seen.mean + shift.square()) / scale.square()
    return float(step**2 * scaled.square().sum() + steps.square().sum() * square.sum()) / 12


@torch.no_grad()
def migrate(model: nn.Module, migrations: Mapping[str, Migration]) -> nn.Module:
    """A copy of a network with scales and shifts moved; all other parameters are shared with it."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, dict(shared))
    for name, moved in migrations.items():
        norm: Any = made.get_submodule(name)
        norm.weight = _parameter(norm.weight / moved.scale)
        if isinstance(getattr(norm, "bias", None), Tensor):
            norm.bias = _parameter((norm.bias - moved.shift) / moved.scale)
        for reader in moved.readers:
            layer: Any = made.get_submodule(reader)
            if layer.bias is not None:
                layer.bias = _parameter(layer.bias + layer.weight @ moved.shift)
            layer.weight = _parameter(layer.weight * moved.scale)
    return made


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
