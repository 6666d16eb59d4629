"""Which tokens belong together: bipartite soft matching and density-peak clustering, in static shapes, shared by several methods."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.reduction.ops import as_rows, gather_tokens, top
from edge_tprune.reduction.outcome import Merge

NEIGHBOURS = 2  #: of a token, itself included, that its density is made of, unless asked for more
_FAR = 1e30  # farther than any token is from another
_TIE = 1e-5


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
    similarity, partner = (a @ b.transpose(1, 2)).max(2)
    return top(similarity, a.shape[1]), partner


def halves(prefix: int) -> tuple[slice, slice]:
    """Places of the two sets that tokens are split into, A and B: even and odd places of the whole sequence, prefix tokens apart."""
    return slice(prefix + prefix % 2, None, 2), slice(prefix + 1 - prefix % 2, None, 2)


def bipartite(metric: Tensor, count: int, prefix: int) -> Merge:
    """Every other patch token is in A, the others in B; the `count` A tokens most similar to a B token join it.

    Args:
        metric: (B, N, D), of unit length.
        count: pairs that merge, at most half of the patch tokens.
        prefix: leading tokens that take no part.

    Returns:
        Kept: prefix, A tokens that did not merge, then B tokens, both in their order; without a prefix the A tokens from most to least similar, as in
        the authors' code.
    """
    a, b = halves(prefix)
    ranking, partner = pairs(metric[:, a], metric[:, b])
    merged, unmerged = (a.start + 2 * ranking).split_with_sizes([count, ranking.shape[1] - count], 1)
    place = torch.arange(metric.shape[1], device=metric.device).expand(len(metric), -1)
    index = torch.cat([place[:, :prefix], in_order(unmerged) if prefix else unmerged, place[:, b]], 1)
    return Merge.into(index, merged, prefix + unmerged.shape[1] + partner.gather(1, ranking[:, :count]))


def exclusions(tokens: int, prefix: int = 0) -> Tensor:
    """What `density_peaks` adds to distances, (N, N): no token is near itself or a prefix token, and prefix tokens come before all others."""
    added = torch.eye(tokens) * _FAR
    added[:, :prefix] = _FAR
    added[:prefix].fill_diagonal_(-_FAR)
    return added


def density_peaks(
    x: Tensor, count: int, exclusion: Tensor, prefix: int = 0, neighbours: int = NEIGHBOURS, unit: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Density-peak clustering with k nearest neighbours (Du et al., Knowledge-Based Systems 2016; used by TCFormer and BAT).

        r_i     = (1/k) sum over the k nearest of ||x_i - x_j||^2      a token counts as its own nearest
        rho_i   = exp(-r_i / u)                                        density, in a unit u
        delta_i = distance to the nearest denser token, the largest distance if there is none
        centres = the `count` largest rho_i delta_i; every other token joins its nearest centre

    TCFormer takes u = D, for features that a norm layer has just brought to unit variance. Tokens between the halves of a block have no such
    scale: where theirs is large, densities differ by orders of magnitude, every centre lies in the background, and what stands out is averaged
    away (the reference model lost 37 points at budget 0.65). So by default u is the image's own (our choice), four times the mean r: the clusters
    do not change when all features grow. Factors from 4 to 8 serve alike; with 2 density decides too much.

    TCFormer takes k = 5. Two, a token itself and the one nearest to it, is our choice: it diverges no more from the unpruned DeiT-Tiny (500
    calibration images), and needs a minimum where five need a TopK of the whole matrix, which takes as long as the rest of the clustering.

    Products of densities and distances are compared as sums of logarithms, which cannot underflow. Of two equally dense tokens, as are any two that
    are each other's nearest, the earlier must count as denser, so that of twins only one becomes a centre: in the image's own unit 2 r_i / u grows by
    1e-5 from each token to the next (our choice), more than two runtimes' roundings differ by. (Rounding grows with the square of what all tokens have
    in common: where that is some hundred times their differences, it is above this. So it is where every token has a twin that is the same but for
    rounding, because then the mean radius is rounding, too.)

    Distances are halved and, row by row, less half the token's own square, which orders each row alike and takes one operation on the
    matrix of products; a token's square is that matrix's diagonal.

    Args:
        x: (B, N, D), float32.
        count: prefix tokens and clusters, up to N.
        exclusion: `exclusions(N, prefix)`, on the device of x.
        prefix: leading tokens that take no part.
        neighbours: k, from 2.
        unit: u; the image's own by default.

    Returns:
        Places of prefix and centres (B, count), the clearest first; of the others (B, N - count); the place among the former, 0..count-1, of
        the centre that each of these joins.
    """
    tokens = x.shape[1]
    patches = tokens - prefix
    nearest = max(1, min(neighbours, patches) - 1)  # beside the token itself
    place = torch.arange(tokens, device=x.device)
    product = x @ x.transpose(1, 2)
    square = 0.5 * product.flatten(1)[:, :: tokens + 1]
    distance = as_rows(square) + exclusion - product
    least = distance.amin(2) if nearest == 1 else distance.topk(nearest, dim=2, largest=False).values.sum(2)
    total = (least + nearest * square).clamp_min(1e-12)  # k r_i / 2
    # -2 log rho: the smaller, the denser
    if unit is None:
        twice_mean = total @ ((place >= prefix).to(x.dtype)[:, None] * (2 / patches))
        spread = total / twice_mean + _TIE * place
    else:
        spread = total * (4 / ((nearest + 1) * unit))
    denser = as_rows(spread) < spread[..., None]
    isolation = torch.where(denser, distance, _FAR).amin(2) + square
    clarity = isolation.clamp_min(1e-12).log() - spread  # 2 log (rho delta)
    centres, others = top(clarity, tokens).split_with_sizes([count, tokens - count], 1)
    choice = gather_tokens(distance, others).transpose(1, 2)
    return centres, others, gather_tokens(choice, centres).argmin(1)


def neighbours_of(method: str, given: int) -> int:
    """The option `neighbours`, checked.

    Raises:
        UserError: less than 2.
    """
    if given < 2:
        raise UserError(f"method {method}: neighbours is {given}; a token counts as its own nearest, so give 2 or more")
    return given
