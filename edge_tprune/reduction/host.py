"""The forward pass that hosts reducers: a timm ViT whose blocks may hand on fewer tokens than they receive.

The given model is neither copied nor patched: an adapter (`edge_tprune.models`) calls its modules in timm's own order, with a reducer
where the schedule asks for one: before the block, between attention map and values, or between attention and MLP (`Reducer.place`). A block
whose reducer needs nothing of the attention, or only its class row, keys or values, keeps fused attention; only a reducer that reads the full
map, or that sits between map and values, makes its block compute one.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_tprune.documents import MethodOptions
from edge_tprune.errors import UserError
from edge_tprune.models.adapter import EMBEDDING, FEATURES, LOGITS, OUTPUTS, Adapter, Positions, Projected, split_heads
from edge_tprune.models.beit import look_up
from edge_tprune.models.families import adapt
from edge_tprune.reduction import registry
from edge_tprune.reduction.attention import (
    AttentionForm,
    Bias,
    attention_map,
    class_row,
    explicit_attention,
    fused_attention,
    rotate,
    weighted_values,
)
from edge_tprune.reduction.decision import decide
from edge_tprune.reduction.features import FeatureInterface
from edge_tprune.reduction.methods.resize import find_grid, resize
from edge_tprune.reduction.ops import gather_tokens
from edge_tprune.reduction.outcome import Outcome
from edge_tprune.reduction.precision import DEFAULT, PRECISIONS, Precision, in_precision
from edge_tprune.reduction.registry import Evidence, Reducer, Stage
from edge_tprune.reduction.restore import Origins
from edge_tprune.schedule import NetworkShape


@dataclass
class Stream:
    """The tokens on their way through the network, and what travels with them."""

    x: Tensor  #: (B, N, C)
    sizes: Tensor | None = None  #: (B, N), float32; None while every token stands for itself
    positions: Tensor | None = None  #: (B, N); None where neither a reducer nor the network asks
    members: Tensor | None = None  #: (B, N, original tokens); None unless traced
    key_bias: Tensor | None = None  #: (B, N), float32: log sizes, where attention is proportional
    origins: Origins | None = None  #: where every patch went; None where the output needs no patch
    reduced: bool = False  #: whether any token has left: until then positions are everybody's own

    def restored(self) -> Tensor:
        """A token (B, T, C) for every original one again, where origins are known; the tokens at hand otherwise."""
        return self.x if self.origins is None else self.origins.restore(self.x)

    def reduce(self, reducer: Reducer, evidence: Evidence) -> tuple[Stream, Outcome]:
        """The stream after a reducer's decision, and the decision."""
        device = self.x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # Scores stay in float32, and so does what decides, and sums of tokens before they become means.
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            outcome = decide(reducer, self.x, evidence)
            sizes = outcome.sizes(self.sizes)
            # Once for all blocks that follow, up to the next reducer.
            key_bias = sizes.log() if reducer.proportional and sizes is not None else None
            reduced = Stream(
                outcome.tokens(self.x, self.sizes),
                sizes,
                None if self.positions is None else outcome.positions(self.positions, reducer.stage.nowhere),
                None if self.members is None else outcome.sums(self.members),
                key_bias,
                None if self.origins is None else self.origins.after(outcome, self.x, reducer.drops),
                True,
            )
            return reduced, outcome


class PrunedViT(FeatureInterface):
    """A timm ViT with token reduction, made by `edge_tprune.prune`.

    Shares the given model's parameters, unless a precision other than fp32 (`edge_tprune.reduction.precision`) asks for a copy of them.
    """

    def __init__(
        self,
        model: nn.Module,
        method: type[Reducer],
        schedule: tuple[int, ...],
        options: MethodOptions,
        precision: Precision = PRECISIONS[DEFAULT],
        output: str | None = None,
        normalize: bool = False,
    ) -> None:
        """Hosts `method` in `model`.

        Args:
            model: a timm network that an adapter takes.
            method: the reduction.
            schedule: tokens after each block; where the last count is what the head reads, the last block computes only that.
            options: of the method.
            precision: of products and stream.
            output: what `forward` gives, one of `OUTPUTS`; the network's own by default.
            normalize: bring an embedding to unit length.

        Raises:
            UserError: a network, method, option, schedule or output that cannot be.
        """
        super().__init__()
        self.precision = precision
        adapter = adapt(model)
        self.output = output or adapter.default_output
        self.normalize = normalize
        check_output(adapter, self.output, normalize)
        self.schedule = schedule  #: tokens after each block, prefix tokens included
        self.method = method.name
        registry.check_options(method, options)  # also where no block removes tokens
        self.options = dict(options)
        self.shape = replace(adapter.shape(self.output), place=registry.place(method, options))
        self.shape.check(schedule)
        self._full_size = tuple(map(int, adapter.model.patch_embed.img_size or ()))
        self.image_size: tuple[int, int] | None = None  #: that images are made smaller to, in pixels; None: as they are
        if self.shape.place == "image" and (grid := find_grid(self.shape, adapter.grid, schedule)) is not None:
            model, self.image_size = _resized(adapter, grid, self.output)
        self.model: Any = in_precision(model, precision)
        self._adapter = adapt(self.model)
        #: The exporter writes it differently for each runtime. In half precision the graph's own form, whose softmax is float32.
        self.attention: AttentionForm = fused_attention if precision.name == DEFAULT else explicit_attention
        self.reducers = nn.ModuleDict()  #: by block, counted from 1
        tokens_in = self.shape.tokens if self.image_size is None else schedule[0]
        for number, tokens_out in enumerate(schedule, 1):
            last = number == len(schedule) and self.shape.saves_last_block(schedule)
            if tokens_out < tokens_in and not last:
                self.reducers[str(number)] = registry.make(method, self._stage(number, tokens_in, tokens_out), options)
            tokens_in = tokens_out
        self._store_positions()
        self.reducers.to(next(model.parameters()).device)
        self.train(model.training)

    def _stage(self, number: int, tokens_in: int, tokens_out: int) -> Stage:
        adapter, shape = self._adapter, self.shape
        return Stage(
            number,
            shape.blocks,
            tokens_in,
            tokens_out,
            shape.prefix_tokens,
            adapter.has_class_token,
            grid=adapter.grid,
            nowhere=shape.tokens,
            schedule=self.schedule,
        )

    def _store_positions(self) -> None:
        """Rotary and relative positions as constants: they change only where their frequencies are trained."""
        found = self._adapter.positions() or Positions()
        self._rotate_half = found.rotate_half
        self._rotary: Tensor | None
        self._relative: Tensor | None
        self.register_buffer("_rotary", found.rotary, persistent=False)
        self.register_buffer("_relative", found.relative, persistent=False)
        self._tracks_positions = found.rotary is not None or found.relative is not None

    # Outputs

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the output: logits (B, classes), embedding (B, D), features (B, C, rows, columns) or tokens (B, N, C)."""
        return self.read(self._run(x)).to(x.dtype)

    def read(self, stream: Stream) -> Tensor:
        """The output, as `forward` has it, of what the last block leaves; in the precision of the stream."""
        if self.output in (LOGITS, EMBEDDING):
            return self._head(stream)
        out = self._adapter.norm(stream.restored())
        return out if self.output != FEATURES else self._as_map(out)

    def _head(self, stream: Stream) -> Tensor:
        x = stream.x
        if self.shape.read_tokens is not None:
            x = x[:, : self.shape.read_tokens]  # the head reads nothing else, and the norm is per token
        sizes = None if stream.key_bias is None else stream.sizes
        out = self._adapter.head(self._adapter.norm(x), self.output, sizes)
        return functional.normalize(out, dim=-1) if self.normalize else out

    def forward_class_tokens(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) -> logits or embedding as `forward`, and the class token (B, C) after each block, which training can compare.

        The list is empty where the network has no class token.
        """
        stream, seen = self._embed(x), []
        for number in range(1, len(self.schedule) + 1):
            stream = self._block(number, stream)
            seen.append(stream.x[:, 0])
        return self._head(stream).to(x.dtype), seen if self._adapter.has_class_token else []

    # The pass

    def trace(self, x: Tensor) -> list[Tensor]:
        """What became of every original token: per block (B, tokens after it, original tokens), for images (B, 3, H, W).

        A token that was never merged has one 1 in its row; a merged one has one per original token in it (a method that passes on only
        a part of a token has that part); a column of zeros is a token that was dropped.
        """
        stream = self._embed(x, restore=self.image_size is not None)
        count = stream.x.shape[1]
        stream = replace(stream, members=torch.eye(count, device=x.device).expand(len(x), -1, -1))
        traced = []
        for number in range(1, len(self.schedule) + 1):
            stream = self._block(number, stream)
            assert stream.members is not None
            traced.append(stream.members)
        return traced

    @property
    def untouched(self) -> int:
        """How many blocks, from the first, do here what they do in the unpruned network."""
        if self.image_size is not None:
            return 0
        blocks = len(self.schedule)
        return min(blocks, *map(int, self.reducers)) - 1 if self.reducers else blocks - 1  # the last may compute less

    def _run(self, x: Tensor, restore: bool | None = None) -> Stream:
        """All blocks; with `restore` all tokens of the last one, so that every patch has a vector."""
        restore = self._restores if restore is None else restore
        return self._run_blocks(self._embed(x, restore), 1, len(self.schedule), restore)

    def run_first(self, stream: Stream, first: int, last: int) -> Stream:
        """Blocks `first` to `last`, counted from 1, of those that are `untouched`."""
        return self._run_blocks(stream, first, last, False)

    def run_rest(self, tokens: Tensor, first: int) -> Tensor:
        """The output from the tokens (B, N, C) that enter block `first`, before any has left."""
        return self.read(self._run_blocks(self._begin(tokens, self._restores), first, len(self.schedule), self._restores))

    def _run_blocks(self, stream: Stream, first: int, last: int, full: bool) -> Stream:
        for number in range(first, last + 1):
            stream = self._block(number, stream, full=full)
        return stream

    @property
    def _restores(self) -> bool:
        """Whether the output needs a vector for every patch."""
        return self.output not in (LOGITS, EMBEDDING)

    def embed(self, images: Tensor) -> Stream:
        """What enters the first block, of images (B, 3, H, W)."""
        return self._embed(images, self._restores)

    def _embed(self, images: Tensor, restore: bool = False) -> Stream:
        if self.image_size is not None:
            if restore:
                raise UserError(f"method {self.method} has no vector for every patch of the image: choose another for features")
            if tuple(images.shape[2:]) != self._full_size:
                raise UserError(
                    f"an image of {images.shape[2]} x {images.shape[3]} pixels: the network takes {self._full_size[0]} x {self._full_size[1]}"
                )
            images = resize(images, self.image_size)
        x = self._adapter.embed(images)
        entering = self.shape.tokens if self.image_size is None else self.schedule[0]
        if x.shape[1] != entering:  # of a network that takes images of any size
            raise UserError(
                f"an image of {images.shape[2]} x {images.shape[3]} pixels gives {x.shape[1]} tokens, but the schedule is for {entering}: "
                "prune a model that was created with the image size you need (img_size=...)"
            )
        if self.precision.name != DEFAULT:
            x = x.to(self.precision.stream)
        return self._begin(x, restore)

    def _begin(self, x: Tensor, restore: bool) -> Stream:
        """The tokens (B, N, C), of which none has left yet."""
        positions = None
        asked = any(registry.POSITIONS in cast(Reducer, reducer).needs for reducer in self.reducers.values())
        if self._tracks_positions or asked:
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        return Stream(x, positions=positions, origins=Origins.of(x) if restore else None)

    def _block(self, number: int, stream: Stream, full: bool = False) -> Stream:
        """One block with a reducer, if any, at its method's place."""
        adapter = self._adapter
        reducer = cast(Reducer, self.reducers[str(number)]) if str(number) in self.reducers else None
        if reducer is not None and reducer.place == "values":
            return replace(stream := self._merged_map(number, stream, reducer), x=adapter.mlp(number, stream.x))
        if reducer is not None and reducer.place == "block":
            stream, _ = stream.reduce(reducer, Evidence(positions=stream.positions, sizes=stream.sizes))
            reducer = None
        last = number == len(self.schedule) and self.shape.saves_last_block(self.schedule) and not full
        queries = self.shape.read_tokens if last else None
        projected = adapter.project(number, stream.x, queries)
        result, evidence = self._attend(number, projected, reducer.needs if reducer is not None else frozenset(), stream)
        if queries is not None:
            members = None if stream.members is None else stream.members[:, :queries]
            stream = Stream(stream.x[:, :queries], members=members)
        stream = replace(stream, x=adapter.attended(number, stream.x, result, projected.gate))
        if reducer is not None:
            stream, _ = stream.reduce(reducer, evidence)
        return replace(stream, x=adapter.mlp(number, stream.x))

    def _merged_map(self, number: int, stream: Stream, reducer: Reducer) -> Stream:
        """Attention whose map is that of the tokens before a reduction, and whose values are those of the tokens after it.

        The map's columns merge by sums, its rows as tokens do. Neither is done to the map: summed columns times values is the map times
        the values that each token went into, and rows may merge in the product as well.
        """
        adapter, heads = self._adapter, self._adapter.heads(number)
        q, k = adapter.project_map(number, stream.x)
        q, k = self._rotated(number, q, k, stream)
        bias = Bias(stream.key_bias, self._pair_bias(number, stream, q.shape[1]))
        attention = attention_map(q, k, heads, adapter.scale(number), bias)
        reduced, outcome = stream.reduce(
            reducer,
            Evidence(
                keys=split_heads(k, heads) if registry.KEYS in reducer.needs else None,
                class_row=attention[:, :, 0] if registry.CLASS_ROW in reducer.needs else None,
                attention=attention if registry.ATTENTION in reducer.needs else None,
                positions=stream.positions,
                sizes=stream.sizes,
            ),
        )
        v, gate = adapter.project_values(number, reduced.x)
        result = outcome.tokens(weighted_values(attention, outcome.back(v, attention.shape[3]), heads), stream.sizes)
        return replace(reduced, x=adapter.attended(number, reduced.x, result, gate))

    def _attend(self, number: int, given: Projected, needs: frozenset[str], stream: Stream) -> tuple[Tensor, Evidence]:
        heads, scale = self._adapter.heads(number), self._adapter.scale(number)
        q, k = self._rotated(number, given.q, given.k, stream)
        bias = Bias(stream.key_bias, self._pair_bias(number, stream, q.shape[1]))
        return attend(self.attention, q, k, given.v, heads, scale, needs, bias, stream)

    def _rotated(self, number: int, q: Tensor, k: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """Queries of the leading tokens and keys, (B, Q, H d) and (B, N, H d), turned by their positions where the network does so."""
        table, heads = self._rotary_table(number, stream), self._adapter.heads(number)
        if table is None:
            return q, k
        return rotate(q, table[:, : q.shape[1]], heads, self._rotate_half), rotate(k, table, heads, self._rotate_half)

    def _rotary_table(self, number: int, stream: Stream) -> Tensor | None:
        """(1 or B, N, 1 or H, 2 d): the sines and cosines of the tokens at hand."""
        table = self._rotary
        if self.training and table is not None:
            table = cast(Positions, self._adapter.positions()).rotary
        if table is None:
            return None
        # Some networks turn every head of every block by an angle of its own.
        table = table[number - 1].transpose(0, 1) if table.ndim == 4 else table[:, None]
        if not stream.reduced:
            return table[None, : stream.x.shape[1]]
        assert stream.positions is not None
        found = gather_tokens(table[None].expand(len(stream.x), -1, -1, -1), stream.positions)
        return found.reshape(*stream.positions.shape, *table.shape[1:])

    def _pair_bias(self, number: int, stream: Stream, queries: int) -> Tensor | None:
        """(1 or B, H, Q, N): biases of relative positions."""
        table = self._adapter.relative_table(number)
        if table is None or self._relative is None:
            return None
        count = len(self._relative)
        if not stream.reduced:
            pairs = self._relative[None, :queries, : stream.x.shape[1]]
        else:
            assert stream.positions is not None
            place = stream.positions[:, :queries, None] * count + stream.positions[:, None]
            pairs = self._relative.flatten()[place]
        return look_up(table, pairs)


def attend(
    form: AttentionForm,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    needs: frozenset[str],
    bias: Bias,
    stream: Stream,
) -> tuple[Tensor, Evidence]:
    """Attention in a form, and the evidence that a reducer needs of it, no more. Arguments: `AttentionForm`."""
    attended = form(q, k, v, heads, scale, needs, bias)
    row = attended.class_row
    if row is None and registry.CLASS_ROW in needs:
        row = class_row(q, k, heads, scale, bias)
    return attended.result, Evidence(
        keys=split_heads(k, heads) if registry.KEYS in needs else None,
        values=split_heads(v, heads) if registry.VALUES in needs else None,
        class_row=row if registry.CLASS_ROW in needs else None,
        attention=attended.attention if registry.ATTENTION in needs else None,
        positions=stream.positions,
        sizes=stream.sizes,
    )


def _resized(adapter: Adapter, grid: tuple[int, int], output: str) -> tuple[nn.Module, tuple[int, int]]:
    """The network for the image of a smaller grid of patches, and that image's height and width."""
    if output not in (LOGITS, EMBEDDING):
        raise UserError(f"method resize gives no {output}: those of a smaller image are others. Choose logits or an embedding")
    height, width = adapter.model.patch_embed.patch_size
    return adapter.at_grid(*grid), (grid[0] * int(height), grid[1] * int(width))


def check_output(adapter: Adapter, output: str, normalize: bool = False) -> None:
    """Refuses an output that a network cannot give.

    Raises:
        UserError: an unknown output, logits of a network without a head, or one vector of a network that does not pool.
    """
    if output not in OUTPUTS:
        raise UserError(f"no output {output!r}: choose one of {', '.join(OUTPUTS)}")
    if output == LOGITS and not adapter.classes:
        raise UserError(f"{adapter.label} has no classifier head: choose --output {', '.join(OUTPUTS[1:-1])} or {OUTPUTS[-1]}")
    if output in (LOGITS, EMBEDDING) and not adapter.pooling:
        raise UserError(f"{adapter.label} does not pool its tokens, so it has no {output}: choose --output features or tokens")
    if normalize and output != EMBEDDING:
        raise UserError(f"only an embedding can be brought to unit length, not {output}")


def network_shape(
    model: nn.Module,
    name: str | None = None,
    output: str | None = None,
    method: type[Reducer] | None = None,
    options: MethodOptions | None = None,
) -> NetworkShape:
    """The sizes of a timm ViT that schedules and MACs depend on, for an output, and for the place where a method with some options removes tokens.

    Raises:
        UserError: a network that no adapter takes.
    """
    shape = adapt(model, name).shape(output)
    return shape if method is None else replace(shape, place=registry.place(method, options or {}))


def check_method(method: type[Reducer], model: nn.Module, name: str | None = None) -> None:
    """Refuses a method on a model that lacks what it needs.

    Raises:
        UserError: naming the method, the model and what is missing.
    """
    if method.needs_class_token and not adapt(model, name).has_class_token:
        raise UserError(
            f"method {method.name} ranks tokens by the class token's attention, and {name or type(model).__name__} has no class token. "
            f"Methods that need none: {', '.join(sorted(n for n, m in registry.methods().items() if not m.needs_class_token))}"
        )
