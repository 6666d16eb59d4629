"""What a reducer decides: which tokens stay, and what becomes of the others.

A reducer looks at tokens and evidence and returns one of these. The host applies it to everything that travels with the tokens: their
features, how many original tokens each stands for, and, for `edge-tprune explain`, which ones. B images, N tokens in, K tokens out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_tprune.reduction.ops import gather_tokens, wide


class Outcome(ABC):
    """Base of the outcomes. All are linear in the tokens, and form sums and means of them in float32."""

    @abstractmethod
    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """Features (B, N, C) of tokens with `sizes` (B, N; None: all 1) -> (B, K, C)."""

    @abstractmethod
    def added(self, amounts: Tensor) -> Tensor:
        """Amounts (B, N, D) that add up where tokens merge, such as sizes or memberships -> (B, K, D)."""

    def sizes(self, sizes: Tensor | None) -> Tensor | None:
        """Sizes (B, N) -> (B, K); None stays None where tokens only leave."""
        return None if sizes is None else self.added(sizes[..., None])[..., 0]

    def positions(self, positions: Tensor) -> Tensor:
        """Places (B, N) in the unpruned sequence -> (B, K): of the token that each one grew from.

        Raises:
            TypeError: an outcome whose tokens do not each grow from one.
        """
        raise TypeError(f"after {type(self).__name__} tokens have no single place in the image")


@dataclass(frozen=True)
class First(Outcome):
    """The first tokens stay, whatever they are: a plain slice."""

    count: int

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """The first `count` of (B, N, C)."""
        return x[:, : self.count]

    def added(self, amounts: Tensor) -> Tensor:
        """The first `count` of (B, N, D)."""
        return amounts[:, : self.count]

    def positions(self, positions: Tensor) -> Tensor:
        """The first `count` of (B, N)."""
        return positions[:, : self.count]


@dataclass(frozen=True)
class Keep(Outcome):
    """The tokens at `index` stay, in that order; the others leave."""

    index: Tensor  #: (B, K)

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        return gather_tokens(x, self.index)

    def added(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        return gather_tokens(amounts, self.index)

    def positions(self, positions: Tensor) -> Tensor:
        """(B, N) -> (B, K)."""
        return positions.gather(1, self.index)


@dataclass(frozen=True)
class Merge(Outcome):
    """The tokens at `index` stay; those at `source` are averaged into the ones they are linked to; the others leave.

    The average weighs tokens by `weights`; where None, by their sizes, or, if `equal`, not at all.
    """

    index: Tensor  #: (B, K)
    source: Tensor  #: (B, S)
    #: (B, K, S): 1 where a source merges into a kept token, or parts of a source, whose column adds up to 1; a column of zeros drops it
    link: Tensor
    weights: Tensor | None = None  #: (B, N), not negative; tokens that stay need more than 0
    equal: bool = False

    @staticmethod
    def into(index: Tensor, source: Tensor, target: Tensor, weights: Tensor | None = None, equal: bool = False) -> Merge:
        """A merge where source s joins the kept token `index[target[s]]`; target is (B, S), counted in 0..K-1."""
        places = torch.arange(index.shape[1], device=index.device)
        return Merge(index, source, (places[:, None] == target[:, None, :]).float(), weights, equal)

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C): weighted means."""
        kept, merged = wide(gather_tokens(x, self.index)), wide(gather_tokens(x, self.source))
        weights = sizes if self.weights is None and not self.equal else self.weights
        if weights is None:
            share = self.link
            total = 1.0 + share.sum(-1, keepdim=True)
            return ((kept + share @ merged) * total.reciprocal()).to(x.dtype)
        own = weights.gather(1, self.index)[..., None]
        share = self.link * weights.gather(1, self.source)[:, None]
        total = own + share.sum(-1, keepdim=True)
        # The weights are brought to a sum of 1 before they meet the features. Divided, because then a token that nothing joins gets exactly 1.
        return (kept * (own / total) + (share / total) @ merged).to(x.dtype)

    def added(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D): sums."""
        return gather_tokens(amounts, self.index) + self.link.to(amounts.dtype) @ gather_tokens(amounts, self.source)

    def sizes(self, sizes: Tensor | None) -> Tensor:
        """Sizes (B, N) -> (B, K), in float32: sums over what merged."""
        if sizes is None:
            return 1.0 + self.link.sum(-1)
        return sizes.gather(1, self.index) + (self.link @ sizes.gather(1, self.source)[..., None])[..., 0]

    def positions(self, positions: Tensor) -> Tensor:
        """(B, N) -> (B, K): of the tokens that stayed."""
        return positions.gather(1, self.index)


@dataclass(frozen=True)
class Then(Outcome):
    """One outcome after the other: the second speaks of the tokens that the first left."""

    first: Outcome
    second: Outcome

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        return self.second.tokens(self.first.tokens(x, sizes), self.first.sizes(sizes))

    def added(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        return self.second.added(self.first.added(amounts))

    def sizes(self, sizes: Tensor | None) -> Tensor | None:
        """Sizes (B, N) -> (B, K)."""
        return self.second.sizes(self.first.sizes(sizes))

    def positions(self, positions: Tensor) -> Tensor:
        """(B, N) -> (B, K)."""
        return self.second.positions(self.first.positions(positions))


@dataclass(frozen=True)
class StandIn(Merge):
    """The tokens at `index` stay as they are, and count for those linked to them; what these held is gone."""

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        return gather_tokens(x, self.index)

    def added(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D): those of the tokens that stay; only sizes add up."""
        return gather_tokens(amounts, self.index)


@dataclass(frozen=True)
class Propagate(Outcome):
    """The tokens at `index` stay and receive `flow` of those at `source`, on top of what they are; the others leave."""

    index: Tensor  #: (B, K)
    source: Tensor  #: (B, S)
    flow: Tensor  #: (B, K, S)

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        received = self.flow @ wide(gather_tokens(x, self.source))
        return gather_tokens(x, self.index) + received.to(x.dtype)

    def added(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        return gather_tokens(amounts, self.index) + self.flow.to(amounts.dtype) @ gather_tokens(amounts, self.source)

    def sizes(self, sizes: Tensor | None) -> Tensor:
        """Sizes (B, N) -> (B, K), in float32."""
        if sizes is None:
            return 1.0 + self.flow.sum(-1)
        return sizes.gather(1, self.index) + (self.flow @ sizes.gather(1, self.source)[..., None])[..., 0]

    def positions(self, positions: Tensor) -> Tensor:
        """(B, N) -> (B, K): of the tokens that stayed."""
        return positions.gather(1, self.index)


@dataclass(frozen=True)
class Append(Outcome):
    """The tokens at `index` stay, and one more is appended: the sum of those at `source`, weighted."""

    index: Tensor  #: (B, K - 1)
    source: Tensor  #: (B, S)
    weights: Tensor  #: (B, S)

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        fused = self.weights[:, None] @ wide(gather_tokens(x, self.source))
        return torch.cat([gather_tokens(x, self.index), fused.to(x.dtype)], 1)

    def added(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        return torch.cat([gather_tokens(amounts, self.index), gather_tokens(amounts, self.source).sum(1, keepdim=True)], 1)

    def sizes(self, sizes: Tensor | None) -> Tensor:
        """Sizes (B, N) -> (B, K); the appended token's is the sum of those it took in."""
        if sizes is None:
            sizes = torch.ones_like(self.weights[:, :1]).expand(-1, self.index.shape[1] + self.source.shape[1])
        return self.added(sizes[..., None])[..., 0]
