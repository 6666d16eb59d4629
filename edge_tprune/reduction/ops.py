"""Static-shape operations that the methods share. Everything here exports to plain ONNX nodes with constant shapes."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, C) at `index` (B, K) -> (B, K, C), as one Gather of whole rows.

    A GatherElements would need the index repeated over all C channels and copies element by element; flattening batch and
    tokens lets one Gather move contiguous rows, and for one image the offset vanishes from the graph.
    """
    batch, tokens, channels = x.shape
    count = index.shape[1]
    if batch > 1:
        index = index + torch.arange(0, batch * tokens, tokens, device=x.device)[:, None]
    return x.reshape(batch * tokens, channels).index_select(0, index.reshape(-1)).reshape(batch, count, channels)


def gather_map(attention: Tensor, index: Tensor) -> Tensor:
    """Rows and columns of a map (B, N, N) at `index` (B, K) -> (B, K, K)."""
    rows = gather_tokens(attention, index)
    return gather_tokens(rows.transpose(1, 2), index).transpose(1, 2)


def top(scores: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the `count` highest of (B, N) scores, highest first."""
    return scores.topk(count, dim=1, largest=True, sorted=True).indices


def keep_top(x: Tensor, scores: Tensor, count: int, prefix: int) -> Tensor:
    """The `prefix` leading tokens of x (B, N, C) and the best of the others -> (B, count, C).

    Args:
        x: tokens.
        scores: (B, N - prefix), of the tokens after the prefix.
        count: tokens to leave, prefix included.
        prefix: leading tokens that always stay.
    """
    return gather_tokens(x, with_prefix(top(scores, count - prefix), prefix))


def with_prefix(index: Tensor, prefix: int) -> Tensor:
    """Indices (B, K) counted after the prefix -> (B, prefix + K) counted from the first token, prefix tokens first.

    The concatenation moves a few integers, so that the tokens themselves move once.
    """
    if prefix == 0:
        return index
    lead = torch.arange(prefix, device=index.device).expand(index.shape[0], prefix)
    return torch.cat([lead, index + prefix], dim=1)
