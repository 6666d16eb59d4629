"""`gtp`: pass on a part of the least important tokens to their neighbours in a graph, then drop them.

Xu et al., "GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation", WACV 2024 (arXiv 2311.03035), section 3. Needs no training.

    importance  of token j = max_h A_jj * max_h sum_i A_ij, over the heads' attention maps A (rows are queries)
                A_jj is the regeneration difficulty: a token that attends to itself cannot be had from the others;
                sum_i A_ij is the broadcasting ability: what others take from it
    propagation x_i <- x_i + alpha sum over the removed j of G_ij x_j, for every kept patch i; sizes likewise
    attention   log size joins the logits of the blocks that follow

G is a graph over the patches, and how it is made is an option:

    spatial     the 8 patches around each, normalised to D^-1/2 A D^-1/2 over the whole image, once, as in the paper: all that is left to
                do per image is to look up places. A token whose neighbours have all left before it passes on nothing
    semantic    edges from each removed token to the `neighbours` kept ones most similar to it (cosine of x), weighted by that cosine,
                normalised so that what a token passes on sums to alpha

The authors build the semantic graph once, among the patches that enter the first block, and join both graphs. Our semantic graph is one among the
tokens of the block: it costs less than carrying theirs along, since only edges from removed to kept tokens matter, and comes nearer to
the unpruned model on calibration images than the spatial one. `faithful` is the authors' code with its spatial graph. Neither form thins
out attention maps (theta, "attention sparsification"): it saves nothing in a dense kernel, and its threshold is the k-th largest of N^2 numbers,
where TensorRT's TopK ends at 3840. The broadcasting ability counts A_jj too.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import gather_tokens, top, unit
from edge_tprune.reduction.outcome import Outcome, Propagate
from edge_tprune.reduction.registry import ATTENTION, POSITIONS, Evidence, Reducer, Stage, register

GRAPHS = ("semantic", "spatial")


@register
class GTP(Reducer):
    """Drops unimportant tokens after passing on a part of them.

    Args:
        stage: where it sits. Where its grid is not known, the patches that enter are taken for a row.
        graph: "semantic" or "spatial".
        neighbours: edges of a removed token in the semantic graph.
        alpha: how much of a removed token is passed on.
    """

    name = "gtp"
    paper = "Xu et al., WACV 2024, arXiv 2311.03035"
    code = "Ackesnal/GTP-ViT"
    faithful: ClassVar = {"graph": "spatial"}
    differs = (
        "removed tokens are passed on to the most similar kept tokens; neither form has the authors' attention sparsification"
    )
    needs = frozenset({ATTENTION, POSITIONS})
    merges = True
    default_blocks = tuple(range(1, 13))
    removal = "count"

    flows: Tensor
    prefix_penalty: Tensor

    def __init__(self, stage: Stage, *, graph: str = "semantic", neighbours: int = 4, alpha: float = 0.3) -> None:
        super().__init__(stage)
        if graph not in GRAPHS:
            raise UserError(f"method gtp: graph is {graph!r}; it is one of {', '.join(GRAPHS)}")
        if neighbours < 1:
            raise UserError(f"method gtp: neighbours is {neighbours}; it is a number of tokens, from 1 up")
        if not 0 <= alpha <= 1:
            raise UserError(f"method gtp: alpha is {alpha:g}; it is a share, from 0 (drop) to 1")
        self.proportional = True
        self.graph = graph
        self.alpha = alpha
        prefix = stage.prefix_tokens
        self.neighbours = min(neighbours, stage.tokens_out - prefix)
        # Importance reaches N where all attend to one token alone.
        self.bonus *= max(1.0, stage.tokens_in / 999)
        if graph == "spatial":
            rows, columns = stage.grid or (1, stage.tokens_in - prefix)
            self.places = prefix + rows * columns
            flows = torch.zeros(self.places, self.places)
            flows[prefix:, prefix:] = alpha * _spatial_graph(rows, columns)
            self.register_buffer("flows", flows.flatten(), persistent=False)
        else:
            prefix_penalty = torch.zeros(stage.tokens_out)
            prefix_penalty[:prefix] = -2.0  # below any cosine
            self.register_buffer("prefix_penalty", prefix_penalty, persistent=False)

    def forward(self, x: Tensor, evidence: Evidence) -> Outcome:
        """Prefix, then tokens from most to least important."""
        assert evidence.attention is not None
        assert evidence.positions is not None
        attention = evidence.attention.float()
        own = attention.flatten(2)[..., :: self.stage.tokens_in + 1]
        importance = own.amax(1) * evidence.received().amax(1)
        ranking = top(importance + self.bonus, self.stage.tokens_in)
        keep, removed = ranking[:, : self.stage.tokens_out], ranking[:, self.stage.tokens_out :]
        if self.graph == "spatial":
            return Propagate(keep, removed, self._spatial_flow(evidence.positions.gather(1, ranking)))
        features = gather_tokens(x, keep), gather_tokens(x, removed)
        return Propagate(keep, removed, self._semantic_flow(*features), features=features)

    def _spatial_flow(self, places: Tensor) -> Tensor:
        """Places in the unpruned sequence (B, N), ranked -> (B, kept, removed)."""
        kept, removed = places[:, : self.stage.tokens_out, None], places[:, None, self.stage.tokens_out :]
        edges = kept * self.places + removed
        return self.flows.index_select(0, edges.flatten()).reshape(edges.shape)

    def _semantic_flow(self, kept: Tensor, removed: Tensor) -> Tensor:
        """Features (B, kept, C) and (B, removed, C) -> (B, kept, removed)."""
        cosine = unit(removed.float()) @ unit(kept.float()).transpose(1, 2)
        edges = (cosine + self.prefix_penalty).relu()
        least = edges.topk(self.neighbours, dim=2).values[..., -1:]
        edges = torch.where(edges >= least, edges, 0.0)
        return (edges * (self.alpha / edges.sum(2, keepdim=True).clamp_min(1e-6))).transpose(1, 2)


def _spatial_graph(rows: int, columns: int) -> Tensor:
    """D^-1/2 A D^-1/2 of a grid where each patch is joined to the up to 8 around it: (P, P)."""
    patch = torch.arange(rows * columns)
    row, column = patch // columns, patch % columns
    near = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1)
    adjacency = near.float() - torch.eye(rows * columns)
    scale = adjacency.sum(1).clamp_min(1).rsqrt()  # a grid of one patch has no edges
    return scale[:, None] * adjacency * scale
