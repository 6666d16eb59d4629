"""Ways to write attention and rotary positions into a graph; the exporter chooses one per runtime, people who call the model need not.

Shapes: B images, Q queries, N keys, H heads of d channels, side by side (B, N, H d): splitting heads is a form's business, and ONNX's
Attention operator takes them so, which saves ONNX Runtime every transpose.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from edge_tprune.models.adapter import split_heads
from edge_tprune.reduction.ops import as_rows, at_least_float32, identity
from edge_tprune.reduction.registry import ATTENTION


class Bias(NamedTuple):
    """What is added to the logits of attention."""

    keys: Tensor | None = None  #: (B, N), float32: log sizes, where attention is proportional
    pairs: Tensor | None = None  #: (1 or B, H, Q, N), float32: of every query and key, where positions are relative

    def mask(self) -> Tensor | None:
        """Both together, to broadcast over (B, H, Q, N)."""
        keys = None if self.keys is None else self.keys[:, None, None]
        if self.pairs is None or keys is None:
            return self.pairs if keys is None else keys
        return self.pairs + keys


class Attended(NamedTuple):
    """What attention gives."""

    result: Tensor  #: (B, Q, H d), of the type of v
    attention: Tensor | None = None  #: (B, H, Q, N), float32 at least, where it was asked for
    class_row: Tensor | None = None  #: (B, H, N), likewise, where it comes at no cost; the host recomputes it otherwise


class AttentionForm(Protocol):
    """How attention is written."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Bias
    ) -> Attended:
        """q (B, Q, H d), k and v (B, N, H d); `needs`: the evidence that the block's reducer reads."""
        ...


def fused_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Bias) -> Attended:
    """PyTorch's fused kernel; the explicit form where the map itself is wanted."""
    if ATTENTION in needs:
        return explicit_attention(q, k, v, heads, scale, needs, bias)
    q, k, v = (split_heads(t, heads).transpose(1, 2) for t in (q, k, v))
    mask = bias.mask()
    mask = None if mask is None else mask.to(q.dtype)
    result = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return Attended(result.transpose(1, 2).flatten(2))


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, needs: frozenset[str], bias: Bias
) -> Attended:
    """matmul, softmax, matmul, with the scale on q: the pattern that TensorRT's fused kernels recognise. Softmax and map are float32."""
    attention = attention_map(q, k, heads, scale, bias)
    # Only a map that nothing reads lets the kernels fuse, and half precision has rounded its logits: no class row is taken from it.
    return Attended(weighted_values(attention, v, heads), attention if ATTENTION in needs else None)


def attention_map(q: Tensor, k: Tensor, heads: int, scale: float, bias: Bias) -> Tensor:
    """Queries (B, Q, H d) and keys (B, N, H d) -> softmax over keys, (B, H, Q, N), float32 at least."""
    q, k = (split_heads(t, heads).transpose(1, 2) for t in (q * scale, k))
    logits, mask = at_least_float32(q @ k.transpose(-2, -1)), bias.mask()
    return (logits if mask is None else logits + mask).softmax(-1)


def weighted_values(attention: Tensor, v: Tensor, heads: int) -> Tensor:
    """A map (B, H, Q, N) times values (B, N, H d) -> (B, Q, H d), of the type of v."""
    return (attention.to(v.dtype) @ split_heads(v, heads).transpose(1, 2)).transpose(1, 2).flatten(2)


def class_row(q: Tensor, k: Tensor, heads: int, scale: float, bias: Bias) -> Tensor:
    """The class token's row of the map, (B, H, N), recomputed from q and k so that the block stays fused."""
    # In float32 from the product on: a score that half precision rounded would tie with its neighbours. One product over all channels,
    # where each head's query is 0 outside the head: so the keys stay as they are laid out.
    query, key = at_least_float32(q[:, :1]), at_least_float32(k)
    own = identity(heads, key).repeat_interleave(k.shape[2] // heads, 1) * scale
    logits = (query * own) @ key.transpose(1, 2)
    if bias.keys is not None:
        logits = logits + as_rows(bias.keys)
    if bias.pairs is not None:
        logits = logits + bias.pairs[:, :, 0]
    return logits.softmax(-1)


def rotate(x: Tensor, table: Tensor, heads: int, half: bool) -> Tensor:
    """Rotary positions on queries or keys (Su et al., arXiv 2104.09864), as timm's `apply_rot_embed_cat`.

    Args:
        x: (B, N, H d).
        table: (1 or B, N, 1 or H, 2 d): sine and cosine, joined.
        heads: H.
        half: channel i pairs with i + d/2; otherwise 2i with 2i + 1.
    """
    parts = split_heads(x, heads)
    sine, cosine = table.chunk(2, -1)
    if half:
        first, second = parts.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-parts[..., 1::2], parts[..., ::2]], -1).reshape(parts.shape)
    return (parts * cosine + turned * sine).flatten(2).to(x.dtype)
