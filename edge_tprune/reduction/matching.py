"""Which tokens belong together: bipartite soft matching and density-peak clustering, in static shapes, shared by several methods."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import gather_tokens, top
from edge_tprune.reduction.outcome import Merge

NEIGHBOURS = 2  #: of a token, itself included, that its density is made of, unless asked for more
_TIE = 1e-5
"""Spreads this close are equal: what two runtimes round differently should not change the clusters. (Rounding grows with the square of what all
tokens have in common: where that is some hundred times their differences, it is above this.)"""


def in_order(index: Tensor) -> Tensor:
    """Indices (B, K) sorted upwards."""
    return index.topk(index.shape[1], dim=1, largest=False, sorted=True).values


def pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Each token of set A finds its most similar partner in B; who comes first merges first (section 3 of arXiv 2210.09461).

    Args:
        a: (B, N, D), of unit length: similarity is the scalar product.
        b: (B, M, D), likewise.

    Returns:
        Places in A (B, N), the most similar to its partner first; places in B of the partners, by place in A (B, N).
    """
    likeness, partner = (a @ b.transpose(1, 2)).max(2)
    return top(likeness, a.shape[1]), partner


def bipartite(metric: Tensor, count: int, prefix: int) -> Merge:
    """Every other patch token is in A, the others in B; the `count` A tokens most similar to a B token join it.

    Args:
        metric: (B, N, D), of unit length.
        count: pairs that merge, at most half of the patch tokens.
        prefix: leading tokens that take no part.

    Returns:
        Kept: prefix, A tokens that did not merge, in their order, then B tokens.
    """
    ranking, partner = pairs(metric[:, prefix + 1 :: 2], metric[:, prefix::2])
    merged, alone = (prefix + 1 + 2 * ranking).split_with_sizes([count, ranking.shape[1] - count], 1)
    start = torch.arange(prefix, device=metric.device).expand(len(metric), -1)
    rest = torch.arange(prefix, metric.shape[1], 2, device=metric.device).expand(len(metric), -1)
    index = torch.cat([start, in_order(alone), rest], 1)
    return Merge.into(index, merged, prefix + alone.shape[1] + partner.gather(1, ranking[:, :count]))


def precedence(tokens: int) -> Tensor:
    """(N, N): positive in row i, column j where j comes before i, negative where it comes after, 0 on the diagonal; for `density_peaks`' ties."""
    return torch.full((tokens, tokens), _TIE).tril(-1) - torch.full((tokens, tokens), _TIE).triu(1)


def density_peaks(x: Tensor, count: int, earlier: Tensor, neighbours: int = NEIGHBOURS) -> tuple[Tensor, Tensor, Tensor]:
    """Density-peak clustering with k nearest neighbours (Du et al., Knowledge-Based Systems 2016; used by TCFormer and BAT).

        d_ij^2  = ||x_i - x_j||^2 / its mean over all i and j      squared distances, in units of the image's own
        rho_i   = exp(-(1/k) sum over the k nearest of d_ij^2)     density; a token counts as its own nearest
        delta_i = distance to the nearest denser token, the largest distance of the image if there is none
        centres = the `count` largest rho_i delta_i; every other token joins its nearest centre

    The exponential needs a unit of length. TCFormer takes sqrt(D), for features that a norm layer has just brought to unit variance. Tokens between
    attention and MLP have no such scale: where theirs is large, densities differ by orders of magnitude, every centre lies in the
    background, and what stands out is averaged away (the reference model lost 37 points at budget 0.65). So the image's mean distance is the
    unit (our choice): the clusters do not change when all features grow.

    TCFormer takes k = 5. Two, a token itself and the one nearest to it, is our choice: it diverges no more from the unpruned DeiT-Tiny (500
    calibration images), and needs a minimum where five need a TopK of the whole matrix, which takes as long as the rest of the clustering.

    Products of densities and distances are compared as sums of logarithms, which cannot underflow. Of two equally dense tokens, as are any two that
    are each other's nearest, the earlier counts as denser (our choice), so that of twins only one becomes a centre.

    Args:
        x: (B, N, D), float32.
        count: clusters, from 1 to N.
        earlier: `precedence(N)`, on the device of x.
        neighbours: k, from 2.

    Returns:
        Places of the centres (B, count), the clearest first; of the others (B, N - count); the cluster, 0..count-1, that each of these joins.
    """
    tokens, neighbours = x.shape[1], min(neighbours, x.shape[1])
    square = x.norm(dim=-1, keepdim=True).square()  # so that nothing as large as x is written
    distance = square + square.transpose(1, 2) - 2 * (x @ x.transpose(1, 2))
    if neighbours == 2:
        total = torch.where(earlier == 0, torch.finfo(x.dtype).max, distance).amin(2, keepdim=True)  # itself is at 0
    else:
        total = distance.topk(neighbours, dim=2, largest=False).values.sum(2, keepdim=True) * (2 / neighbours)
    spread = total / distance.mean((1, 2), keepdim=True).clamp_min(1e-12)  # -2 log rho: the smaller, the denser
    denser = spread.transpose(1, 2) - spread < earlier
    isolation = torch.where(denser, distance, distance.amax((1, 2), keepdim=True)).amin(2, keepdim=True)
    clarity = isolation.clamp_min(1e-12).log() - spread  # 2 log (rho delta)
    centres, others = top(clarity[..., 0], tokens).split_with_sizes([count, tokens - count], 1)
    cluster = gather_tokens(distance, centres).argmin(1)
    return centres, others, cluster.gather(1, others)


def neighbours_of(method: str, given: int) -> int:
    """The option `neighbours`, checked.

    Raises:
        UserError: less than 2.
    """
    if given < 2:
        raise UserError(f"method {method}: neighbours is {given}; a token counts as its own nearest, so give 2 or more")
    return given
