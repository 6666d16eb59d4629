"""What a reducer decides: which tokens stay, and what becomes of the others.

A reducer looks at tokens and evidence and returns one of these. The host applies it to everything that travels with the tokens: their
features, how many original tokens each stands for, and, for `edge-tprune explain`, which ones. B images, N tokens in, K tokens out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from edge_tprune.reduction.ops import as_rows, at_least_float32, gather_tokens, identity


class Outcome(ABC):
    """Base of the outcomes. All are linear in the tokens, and form sums and means of them in float32."""

    @abstractmethod
    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """Features (B, N, C) of tokens with `sizes` (B, N; None: all 1) -> (B, K, C)."""

    @abstractmethod
    def sums(self, amounts: Tensor) -> Tensor:
        """Amounts (B, N, D) that add up where tokens merge, such as sizes or memberships -> (B, K, D)."""

    @abstractmethod
    def destinations(self, tokens: int) -> Tensor:
        """Where each of the `tokens` tokens goes: (B or 1, N) int64, the place 0..K-1 of the token that stands for it, -1 where it is dropped."""

    def sizes(self, sizes: Tensor | None) -> Tensor | None:
        """Sizes (B, N) -> (B, K); None stays None where tokens only leave."""
        return None if sizes is None else self.sums(sizes[..., None])[..., 0]

    def back(self, x: Tensor, tokens: int) -> Tensor:
        """What the tokens that are left have, (B, K, D) -> for each of the `tokens` that came in, (B, N, D): the transpose of `sums`.

        A merged token gets what it went into has; a dropped one gets 0.
        """
        members = self.sums(identity(tokens, x).expand(len(x), -1, -1))
        return members.transpose(1, 2) @ x

    @abstractmethod
    def positions(self, positions: Tensor, nowhere: int = -1) -> Tensor:
        """Places (B, N) in the unpruned sequence -> (B, K): of the token that each one grew from; `nowhere` for one that grew from none."""


@dataclass(frozen=True)
class First(Outcome):
    """The first tokens stay, whatever they are: a plain slice."""

    count: int

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """The first `count` of (B, N, C)."""
        return x[:, : self.count]

    def sums(self, amounts: Tensor) -> Tensor:
        """The first `count` of (B, N, D)."""
        return amounts[:, : self.count]

    def back(self, x: Tensor, tokens: int) -> Tensor:
        """(B, K, D) and zeros."""
        return functional.pad(x, (0, 0, 0, tokens - self.count))

    def positions(self, positions: Tensor, nowhere: int = -1) -> Tensor:
        """The first `count` of (B, N)."""
        return positions[:, : self.count]

    def destinations(self, tokens: int) -> Tensor:
        """The first stay where they are."""
        place = torch.arange(tokens)
        return torch.where(place < self.count, place, -1)[None]


@dataclass(frozen=True)
class Keep(Outcome):
    """The tokens at `index` stay, in that order; the others leave."""

    index: Tensor  #: (B, K)

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        return gather_tokens(x, self.index)

    def sums(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        return gather_tokens(amounts, self.index)

    def sizes(self, sizes: Tensor | None) -> Tensor | None:
        """Sizes (B, N) -> (B, K); None stays None."""
        return None if sizes is None else sizes.gather(1, self.index)

    def positions(self, positions: Tensor, nowhere: int = -1) -> Tensor:
        """(B, N) -> (B, K)."""
        return positions.gather(1, self.index)

    def destinations(self, tokens: int) -> Tensor:
        """Of those at `index` their place in it."""
        return _place(tokens, self.index) - 1


@dataclass(frozen=True)
class Linked(Outcome):
    """The tokens at `index` stay, those at `source` go over into them in parts, the others leave: what the outcomes below share."""

    index: Tensor  #: (B, K)
    source: Tensor  #: (B, S)
    #: (B, K, S), float32: the part of each source that each kept token receives; or bool: whether it receives all of it. A column of zeros
    #: drops a source.
    link: Tensor
    #: (B, K, C) and (B, S, C): the tokens at `index` and at `source`, where the reducer has gathered them already
    features: tuple[Tensor, Tensor] | None = field(default=None, kw_only=True)

    def sums(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D): sums."""
        return gather_tokens(amounts, self.index) + self.link.to(amounts.dtype) @ gather_tokens(amounts, self.source)

    def sizes(self, sizes: Tensor | None) -> Tensor:
        """Sizes (B, N) -> (B, K), in float32: sums."""
        return self._weighed(sizes)[2]

    def positions(self, positions: Tensor, nowhere: int = -1) -> Tensor:
        """(B, N) -> (B, K): of the tokens that stayed."""
        return positions.gather(1, self.index)

    def destinations(self, tokens: int) -> Tensor:
        """Of those at `source` the token that receives most of them, where one receives anything."""
        part, target = self.link.to(self._part_type).max(1)
        # Of parts that are not a number, as an image may lead to, some token receives them.
        return _place(tokens, self.index) + _place(tokens, self.source, torch.where(part <= 0, 0, target + 1)) - 1

    @property
    def _part_type(self) -> torch.dtype:
        return torch.float32 if self.link.dtype == torch.bool else self.link.dtype

    def _gathered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C) -> those at `index` and at `source`, in float32 at least, in which sums of them are formed."""
        kept, source = self.features or (gather_tokens(x, self.index), gather_tokens(x, self.source))
        return at_least_float32(kept), at_least_float32(source)

    def _weighed(self, weights: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Weights (B, N), None for all 1 -> of each kept token (B, K), None likewise, of what it receives (B, K, S), the sum of both (B, K)."""
        if weights is None:
            share = self.link.float()
            return None, share, 1 + share.sum(-1)
        own, given = weights.gather(1, self.index), as_rows(weights.gather(1, self.source))
        share = self.link * given
        return own, share, own + share.sum(-1)


@dataclass(frozen=True)
class Merge(Linked):
    """The tokens at `source` are averaged into the ones they are linked to.

    The average weighs tokens by `weights`; where None, by their sizes, or, if `equal`, not at all. A source that is spread over several tokens
    has a column of parts that add up to 1.
    """

    weights: Tensor | None = None  #: (B, N), finite, not negative; tokens that stay need more than 0
    equal: bool = False
    #: (B, S): the part of each source's size that goes over into the token it joins; None for all of it.
    credit: Tensor | None = None
    #: (B, S): place among the kept of the one token that each source joins; None where `link` alone says it.
    target: Tensor | None = None

    @staticmethod
    def into(
        index: Tensor,
        source: Tensor,
        target: Tensor,
        weights: Tensor | None = None,
        equal: bool = False,
        features: tuple[Tensor, Tensor] | None = None,
        credit: Tensor | None = None,
    ) -> Merge:
        """A merge where source s joins the kept token `index[target[s]]`; target is (B, S), counted in 0..K-1."""
        places = torch.arange(index.shape[1], device=index.device)
        link = places[None, :, None] == as_rows(target)
        return Merge(index, source, link, weights, equal, credit, target, features=features)

    def sizes(self, sizes: Tensor | None) -> Tensor:
        """Sizes (B, N) -> (B, K), in float32: sums."""
        if self.credit is None:
            return super().sizes(sizes)
        if sizes is None:
            return 1 + (self.link * as_rows(self.credit)).sum(-1)
        given = sizes.gather(1, self.source) * self.credit
        return sizes.gather(1, self.index) + (self.link * as_rows(given)).sum(-1)

    def destinations(self, tokens: int) -> Tensor:
        """Where tokens only merge, by a look-up in the order of places."""
        if self.target is None or self.index.shape[1] + self.source.shape[1] != tokens:
            return super().destinations(tokens)
        kept = torch.arange(self.index.shape[1], device=self.index.device).expand(len(self.index), -1)
        order, goal = torch.cat([self.index, self.source], 1), torch.cat([kept, self.target], 1)
        return goal.gather(1, order.topk(tokens, dim=1, largest=False).indices)

    def back(self, x: Tensor, tokens: int) -> Tensor:
        """Where tokens only merge, by a look-up."""
        if self.target is None or self.index.shape[1] + self.source.shape[1] != tokens:
            return super().back(x, tokens)
        return gather_tokens(x, self.destinations(tokens))

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C): weighted means."""
        kept, merged = self._gathered(x)
        own, share, total = self._weighed(sizes if self.weights is None and not self.equal else self.weights)
        # Divided, because then a token that nothing joins gets exactly 1.
        if own is None:
            return ((kept + share.to(merged.dtype) @ merged) / total[..., None]).to(x.dtype)
        mean = kept * (own / total)[..., None] + (share / total[..., None]).to(merged.dtype) @ merged
        return mean.to(x.dtype)


@dataclass(frozen=True)
class Propagate(Linked):
    """The tokens that stay receive what `link` says of the others on top of what they are."""

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        kept, source = self._gathered(x)
        return (kept + self.link.to(source.dtype) @ source).to(x.dtype)

    def destinations(self, tokens: int) -> Tensor:
        """Only parts of the others are passed on: no token stands for them."""
        return _place(tokens, self.index) - 1


@dataclass(frozen=True)
class Append(Outcome):
    """The tokens at `index` stay, and one more is appended: the sum of those at `source`, weighted. Others leave."""

    index: Tensor  #: (B, K - 1)
    source: Tensor  #: (B, S)
    weights: Tensor  #: (B, S)

    def tokens(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, N, C) -> (B, K, C)."""
        source = at_least_float32(gather_tokens(x, self.source))
        fused = self.weights.to(source.dtype)[:, None] @ source
        return torch.cat([gather_tokens(x, self.index), fused.to(x.dtype)], 1)

    def sums(self, amounts: Tensor) -> Tensor:
        """(B, N, D) -> (B, K, D)."""
        return torch.cat([gather_tokens(amounts, self.index), gather_tokens(amounts, self.source).sum(1, keepdim=True)], 1)

    def sizes(self, sizes: Tensor | None) -> Tensor:
        """Sizes (B, N) -> (B, K); the appended token's is the sum of those it took in."""
        if sizes is None:
            one = torch.ones_like(self.weights[:, :1])
            return torch.cat([one.expand(-1, self.index.shape[1]), one * self.source.shape[1]], 1)
        return self.sums(sizes[..., None])[..., 0]

    def positions(self, positions: Tensor, nowhere: int = -1) -> Tensor:
        """(B, N) -> (B, K): the appended token has no place."""
        return functional.pad(positions.gather(1, self.index), (0, 1), value=nowhere)

    def destinations(self, tokens: int) -> Tensor:
        """The appended token stands for those it took in."""
        count = self.index.shape[1]
        return _place(tokens, self.index) + _place(tokens, self.source, torch.full_like(self.source, count + 1)) - 1


def _place(tokens: int, index: Tensor, value: Tensor | None = None) -> Tensor:
    """(B, tokens) int64: `value` (B, K), or 1..K, at the places `index` (B, K), 0 elsewhere. By a product: no Scatter, which TensorRT may drop."""
    if value is None:
        value = torch.arange(1, index.shape[1] + 1, device=index.device).expand(len(index), -1)
    found = (index[:, :, None] == torch.arange(tokens, device=index.device)).float()
    return (value.float()[:, None] @ found)[:, 0].long()
