"""A timm network taken apart where tokens can be removed: one adapter per family, all with the interface below.

A block is cut in three: queries, keys and values; the attention product, which the host computes; the MLP. A reducer may sit before the
first, or between the second and the third; one between attention map and values has queries and keys made of the tokens before it, values of
those after it. An adapter calls the given model's own modules in timm's own order and holds no weights itself, so a
network that is hosted with nothing removed gives timm's own numbers.

Shapes: B images, N tokens with prefix tokens first, C channels, H heads of d channels; heads lie side by side (B, N, H d).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers import AttentionPoolLatent, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from edge_tprune.errors import UserError
from edge_tprune.schedule import BlockShape, NetworkShape

LOGITS, EMBEDDING, FEATURES, TOKENS = OUTPUTS = ("logits", "embedding", "features", "tokens")
"""What a network can give: logits (B, classes); an embedding (B, D), the head's input; features (B, C, H, W), a vector for each patch of
the image; tokens (B, N, C), the same with the prefix tokens, as timm's `forward_features` gives them."""


#: timm's methods in whose place a pruned network has its own.
_REPLACED = ("forward", "forward_features", "forward_intermediates")


@dataclass(frozen=True)
class Projected:
    """What a block's attention works on."""

    q: Tensor  #: (B, Q, H d): of the leading Q tokens, those that are asked for
    k: Tensor  #: (B, N, H d)
    v: Tensor  #: (B, N, H d)
    gate: Tensor | None = None  #: (B, Q, H d): what the attention's result is multiplied by


@dataclass(frozen=True)
class Positions:
    """What a network knows of tokens by their place, to be looked up where each remaining token came from.

    Both tables have one row more than there are tokens, the last: the place of a token that stands for no single patch.
    """

    #: (N + 1, 2 d), or per block and head (blocks, H, N + 1, 2 d): sine and cosine of rotary embeddings, as timm joins them.
    rotary: Tensor | None = None
    rotate_half: bool = False  #: how channels pair up: i with i + d/2 instead of 2i with 2i + 1
    relative: Tensor | None = None  #: (N + 1, N + 1), int64: which row of a block's table of biases is for two tokens


class Adapter(ABC):
    """One family of networks."""

    types: ClassVar[tuple[type[nn.Module], ...]]  #: timm's classes, the most specific first

    def __init__(self, model: Any, name: str | None = None) -> None:
        """Takes a network apart.

        Raises:
            UserError: a part of it cannot host a reduction; which, and why.
        """
        self.model = model
        self.label = name or type(model).__name__
        self.check()

    # What the family answers.

    @abstractmethod
    def check(self) -> None:
        """Refuses a network with parts that this adapter does not know.

        Raises:
            UserError: naming the part.
        """

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> tokens (B, N, C) that enter the first block, positions added."""

    def positions(self) -> Positions | None:
        """The tables of rotary or relative positions; None where positions are added to the tokens once and for all."""
        return None

    def relative_table(self, number: int) -> Tensor | None:
        """(rows, H): the biases that `Positions.relative` points into, for block `number` (from 1)."""
        return None

    @abstractmethod
    def project(self, number: int, x: Tensor, queries: int | None = None) -> Projected:
        """Tokens (B, N, C) of the residual stream -> queries of the leading `queries` tokens (None: all), keys and values of all."""

    @abstractmethod
    def project_map(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C) -> their queries and keys, (B, N, H d) each."""

    @abstractmethod
    def project_values(self, number: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, N, C) -> their values (B, N, H d), and what the attention's result is multiplied by, likewise."""

    @abstractmethod
    def attended(self, number: int, x: Tensor, result: Tensor, gate: Tensor | None) -> Tensor:
        """The stream (B, Q, C) after attention, from the stream before and the attention's `result` (B, Q, H d)."""

    @abstractmethod
    def mlp(self, number: int, x: Tensor) -> Tensor:
        """The stream (B, N, C) after the MLP."""

    def at_grid(self, rows: int, columns: int) -> nn.Module:
        """The network for a smaller image, of so many patches. It shares all weights but position embeddings, which timm resamples.

        Raises:
            UserError: a network whose patches or positions are not resampled so.
        """
        embed = self.model.patch_embed
        if type(embed) is not PatchEmbed or self.relative_table(1) is not None:
            raise self.refuse("its patches or positions are not for images of another size")
        made: Any = _shallow_copy(self.model)
        for name in ("patch_embed", "rope"):  # what changes with the size of an image
            if isinstance(part := getattr(made, name, None), nn.Module):
                setattr(made, name, _shallow_copy(part))
        height, width = embed.patch_size
        with torch.no_grad():
            made.set_input_size((rows * int(height), columns * int(width)))
        copied: nn.Module = made
        return copied

    # What most families share.

    @property
    def depth(self) -> int:
        """How many blocks."""
        return len(self.model.blocks)

    @property
    def prefix_tokens(self) -> int:
        """Leading tokens that are not patches: class, distillation, registers."""
        return int(self.model.num_prefix_tokens)

    @property
    def has_class_token(self) -> bool:
        """Whether token 0 is a class token."""
        return getattr(self.model, "cls_token", None) is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        rows, columns = self.model.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def classes(self) -> int:
        """Outputs of the classifier head; 0 where there is none."""
        head = getattr(self.model, "head", None)
        return int(head.out_features) if isinstance(head, nn.Linear) else 0

    @property
    def default_output(self) -> str:
        """Logits where there is a head, else an embedding; tokens where nothing pools them."""
        if not self.pooling:
            return TOKENS
        head = getattr(self.model, "head", None)
        if not (self.classes or head is None or isinstance(head, (nn.Identity, nn.Linear))):
            raise self.refuse(
                f"its classifier head is a {type(head).__name__}, not a Linear: choose the output embedding, features or tokens"
            )
        return LOGITS if self.classes else EMBEDDING

    @property
    def pooling(self) -> str:
        """How the head makes one vector of the tokens, in timm's words: "token", "avg", "map", ...; "" where it does not."""
        return "map" if getattr(self.model, "attn_pool", None) is not None else str(self.model.global_pool or "")

    def scale(self, number: int) -> float:
        """What queries are multiplied by."""
        return float(self.model.blocks[number - 1].attn.scale)

    def heads(self, number: int) -> int:
        """Attention heads of block `number` (from 1)."""
        return int(self.model.blocks[number - 1].attn.num_heads)

    def read_tokens(self, output: str) -> int | None:
        """How many leading tokens an output is made of; None where it is made of all."""
        return 1 if output in (LOGITS, EMBEDDING) and self.pooling == "token" else None

    def pools_prefix(self) -> bool:
        """Whether a head that pools over tokens reads the prefix tokens, too."""
        return False

    @property
    def unpooled(self) -> int:
        """How many leading tokens a head that pools over tokens does not read."""
        return 0 if self.pools_prefix() else self.prefix_tokens

    def norm(self, x: Tensor) -> Tensor:
        """The norm after the last block: tokens (B, N, C)."""
        out: Tensor = self.model.norm(x)
        return out

    def head(self, x: Tensor, output: str, sizes: Tensor | None = None) -> Tensor:
        """Normed tokens (B, N, C), or the `read_tokens` leading ones -> logits (B, classes) or embedding (B, D).

        Args:
            x: the tokens.
            output: "logits" or "embedding".
            sizes: (B, N), float32: how many original tokens each stands for, where a head that averages or attends over tokens must
                count them so.
        """
        model, before = self.model, output == EMBEDDING
        out: Tensor
        if sizes is not None:
            first = self.unpooled
            weights = sizes[:, first:]
            if self.pooling == "map":  # timm's forward_head, which has no way to hand on a mask
                pooled = model.attn_pool(x[:, first:], attn_mask=weights.log()[:, None, None].to(x.dtype))
                pooled = model.head_drop(model.fc_norm(pooled))
                out = pooled if before else model.head(pooled)
                return out
            if self.pooling == "avg":
                # The head's plain mean over tokens scaled so is the mean over what they stand for.
                share = weights / weights.mean(1, keepdim=True)
                x = torch.cat([x[:, :first], x[:, first:] * share[..., None].to(x.dtype)], 1)
        out = model.forward_head(x, pre_logits=before)
        return out

    # Sizes and MACs.

    def shape(self, output: str | None = None) -> NetworkShape:
        """The sizes that schedules and MACs depend on, for an output (by default the network's own)."""
        patches, prefix = self.grid[0] * self.grid[1], self.prefix_tokens
        output = output or self.default_output
        read = self.read_tokens(output)
        pooled, per_token = (0, 0) if output in (FEATURES, TOKENS) else self._pool_macs()
        head = self._head_macs() if output == LOGITS else 0
        blocks = tuple(self._block_shape(number) for number in range(1, self.depth + 1))
        pooled -= self.unpooled * per_token
        return NetworkShape(patches + prefix, prefix, blocks, self._patch_macs(), head + pooled, per_token, read)

    def _block_shape(self, number: int) -> BlockShape:
        block = self.model.blocks[number - 1]
        attn = block.attn
        width = heads_width(attn)
        out = attn.proj.weight.numel() + (attn.gate.weight.numel() if getattr(attn, "gate", None) is not None else 0)
        if getattr(attn, "qkv", None) is not None:
            query = key = value = attn.qkv.weight.numel() // 3
        else:
            query, key, value = (part.weight.numel() for part in (attn.q_proj, attn.k_proj, attn.v_proj))
        mlp = sum(linear.weight.numel() for linear in linears(block.mlp))
        return BlockShape(query + out, key + value, width, mlp, value + out)

    def _patch_macs(self) -> int:
        embed = self.model.patch_embed
        if isinstance(embed, HybridEmbed):
            return _count_macs(embed, (1, int(embed.in_chans), *map(int, embed.img_size)))
        return self.grid[0] * self.grid[1] * int(embed.proj.weight.numel())

    def _head_macs(self) -> int:
        heads = (getattr(self.model, "head", None), getattr(self.model, "head_dist", None))
        return sum(head.weight.numel() for head in heads if isinstance(head, nn.Linear))

    def _pool_macs(self) -> tuple[int, int]:
        """MACs of a head that pools by attention: (per image, per token that it reads)."""
        pool = getattr(self.model, "attn_pool", None)
        if pool is None:
            return 0, 0
        mlp = sum(linear.weight.numel() for linear in linears(pool.mlp)) if pool.mlp is not None else 0
        proj = pool.proj.weight.numel() if isinstance(pool.proj, nn.Linear) else 0
        per_image = int(pool.latent_len) * (pool.q.weight.numel() + proj + mlp)
        return per_image, pool.kv.weight.numel() + 2 * int(pool.latent_len) * pool.q.out_features

    # Checks that families share.

    def refuse(self, what: str) -> UserError:
        """The error that says what of the network cannot be hosted."""
        return UserError(f"{self.label}: {what}")

    def _check_common(self) -> None:
        self._check_calls()
        embed = self.model.patch_embed
        if not isinstance(embed, (PatchEmbed, HybridEmbed)):
            raise self.refuse(f"embeds patches with {type(embed).__name__}, which is not supported")
        if not len(self.model.blocks):
            raise self.refuse("it has no blocks")
        if min(self.grid) < 1:
            size = " x ".join(map(str, embed.img_size))
            raise self.refuse(f"an image of {size} pixels is smaller than one patch of it: give a larger --img-size")
        pool = getattr(self.model, "attn_pool", None)
        if pool is not None and (type(pool) is not AttentionPoolLatent or pool.pos_embed is not None):
            raise self.refuse(f"pools its tokens with {type(pool).__name__}, which is not supported")
        for number, block in enumerate(self.model.blocks, 1):
            if type(block.mlp) not in (Mlp, GluMlp, SwiGLU, GeGluMlp):
                raise self.refuse(f"block {number} has a {type(block.mlp).__name__}, which is not supported as an MLP")

    def _check_calls(self) -> None:
        """Refuses what someone added to the modules that are not called here, only their parts: a pruned network would leave it out."""
        timms = next(kind for kind in self.types if isinstance(self.model, kind))
        for name in _REPLACED:
            if getattr(type(self.model), name, None) is not getattr(timms, name, None):
                raise self.refuse(f"its class computes {name} otherwise than timm's {timms.__name__}, which it is derived from")
        apart = [("the network", self.model)]
        for number, block in enumerate(self.model.blocks, 1):
            apart += [(f"block {number}", block), (f"the attention of block {number}", block.attn)]
            proj = block.attn.proj
            if not isinstance(getattr(proj, "weight", None), Tensor) or not isinstance(getattr(proj, "in_features", None), int):
                raise self.refuse(
                    f"the attention of block {number} ends with a {type(proj).__name__}, which is no Linear layer"
                )
            fused = getattr(block.attn, "qkv", None)
            if fused is not None:
                if getattr(type(fused), "forward", None) is not nn.Linear.forward and not hasattr(fused, "rows"):
                    kind = f"{type(fused).__module__}.{type(fused).__qualname__}"
                    raise self.refuse(
                        f"block {number} projects with a {kind}, of which only the weight would be used: merge what it adds into its weight first "
                        "(PEFT: merge_and_unload)"
                    )
                apart.append((f"the projection of block {number}", fused))
        for label, part in apart:
            if not vars(part).keys().isdisjoint(_REPLACED):
                raise self.refuse(f"the forward of {label} was replaced, and a pruned network would not call it")
            hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
            if not all(_is_ours(hook) for hook in hooks):
                raise self.refuse(f"{label} has a forward hook, which a pruned network would not call: remove it first")


def _is_ours(hook: Any) -> bool:
    """Whether edge-tprune registered a hook: one that turns what a layer reads into its type, as `linear` does without it, or that only looks."""
    return str(getattr(hook, "__module__", "")).startswith(f"{__name__.partition('.')[0]}.")


def _shallow_copy(module: nn.Module) -> nn.Module:
    """A module with lists of its own of the same parameters, buffers and children."""
    made = module.__new__(type(module))
    made.__dict__ = module.__dict__.copy()
    for name in ("_parameters", "_buffers", "_modules"):
        made.__dict__[name] = module.__dict__[name].copy()
    return made


def heads_width(attn: Any) -> int:
    """Channels of all heads together."""
    return int(attn.proj.in_features)


def linears(module: nn.Module) -> Iterator[nn.Linear]:
    """The Linear layers inside a module."""
    return (part for part in module.modules() if isinstance(part, nn.Linear))


def linear(x: Tensor, layer: nn.Linear, bias: Tensor | None, rows: slice = slice(None)) -> Tensor:
    """A Linear layer, or those of its outputs that `rows` says, with another bias (of all outputs) than its own; in the type of its weight."""
    bias = None if bias is None else bias[rows]
    by_rows: Any = getattr(layer, "rows", None)
    if by_rows is not None:  # of a layer that computes otherwise than by its weight
        out: Tensor = by_rows(x, bias, rows)
        return out
    weight = layer.weight[rows]
    return functional.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H d) -> (B, N, H, d)."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads)


def norm_per_head(norm: nn.Module, x: Tensor, heads: int) -> Tensor:
    """A norm over each head's channels of (B, N, H d)."""
    if isinstance(norm, nn.Identity):
        return x
    out: Tensor = norm(split_heads(x, heads)).flatten(2).to(x.dtype)
    return out


def project_fused(x: Tensor, layer: nn.Linear, bias: Tensor | None, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v by one layer (C to 3 H d); with `queries` in two products, q of the leading tokens only."""
    if queries is None:
        q, k, v = linear(x, layer, bias).chunk(3, dim=-1)
        return q, k, v
    width = layer.out_features // 3
    q = linear(x[:, :queries], layer, bias, slice(width))
    k, v = linear(x, layer, bias, slice(width, 3 * width)).chunk(2, dim=-1)
    return q, k, v


def project_part(x: Tensor, layer: nn.Linear, bias: Tensor | None, first: int, count: int) -> tuple[Tensor, ...]:
    """Of q, k and v by one layer (C to 3 H d) the `count` from `first` on, counted from 0."""
    width = layer.out_features // 3
    return linear(x, layer, bias, slice(first * width, (first + count) * width)).chunk(count, dim=-1)


def add(x: Tensor, update: Tensor, gamma: Tensor | None = None) -> Tensor:
    """The stream x (B, N, C) plus an update, scaled channel by channel where there is a `gamma` (C,)."""
    if gamma is not None:
        update = update.to(gamma.dtype) * gamma
    return x + update.to(x.dtype)


def _count_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """MACs of convolutions and products, as PyTorch counts them."""
    parameter = next(module.parameters())
    images = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(images)
    return int(counter.get_total_flops()) // 2
