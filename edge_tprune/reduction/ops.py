"""Static-shape operations that the methods share. Everything here exports to a few plain ONNX nodes with constant shapes.

On small batches a reduction's price is the *number* of its nodes, not their arithmetic: each costs a few microseconds of dispatch on a CPU
and a kernel launch on a GPU. So prefix tokens are kept by a bonus on their scores instead of by cutting and concatenating, and
whole rows move in one Gather.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, ...) at `index` (B, K) -> (B, K, C), as one Gather of whole rows; what lies behind the tokens is flattened to C.

    A GatherElements would need the index repeated over all C channels and copies element by element. Written as a table's look-up, because
    that takes an index of any shape: nothing but the rows moves, and for one image the index is used as it is.
    """
    batch, tokens = x.shape[:2]
    if batch > 1:
        index = index + torch.arange(0, batch * tokens, tokens, device=x.device)[:, None]
    return functional.embedding(index, x.reshape(batch * tokens, math.prod(x.shape[2:])))


def identity(size: int, like: Tensor) -> Tensor:
    """The identity (size, size), of the type and on the device of `like`.

    Written as a comparison: ONNX has no operation for `torch.eye`, and the exporter would trace the whole network again to replace it.
    """
    place = torch.arange(size, device=like.device)
    return (place[:, None] == place).to(like.dtype)


def prefix_bonus(tokens: int, prefix: int) -> Tensor:
    """What to add to scores (B, tokens) so that the prefix tokens rank first, in their order: (tokens,) float32.

    For scores from 0 to less than 1000; the sum stays within half precision's range.
    """
    bonus = torch.zeros(tokens)
    bonus[:prefix] = 1000.0 * torch.arange(prefix, 0, -1)
    return bonus


def top(scores: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the `count` highest of (B, N) scores, highest first."""
    return scores.topk(count, dim=1, largest=True, sorted=True).indices


_LONG = 256
"""Rows of this many channels are brought to unit length by an RMS norm, one node that ONNX Runtime spreads over threads: two thirds of the time
that a length and a division take. Shorter ones are not: for those it is the slower."""
_LEAST_SQUARE = 2e-8
"""Added to a long row's mean square: a row of root mean square 0.01 is short by 1e-4. Of 1e-8 and less the exporter's optimiser would make 0, and
the graph a NaN of a zero vector."""


def unit(x: Tensor) -> Tensor:
    """(..., D) to unit length; a zero vector stays zero."""
    width = x.shape[-1]
    if width >= _LONG:
        return functional.rms_norm(x, (width,), x.new_full((width,), width**-0.5), _LEAST_SQUARE)
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp_min(1e-6)


def as_rows(row: Tensor) -> Tensor:
    """Values (B, N) shaped to meet each row of a (B, K, N); those of one image do as they are."""
    return row if len(row) == 1 else row[:, None]


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, where it is of a narrower type."""
    return x if x.dtype == torch.float64 else x.float()
