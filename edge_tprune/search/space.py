"""What a search may try: methods, their options, and how much each block removes relative to the others, at a limit of cost.

Whatever the weights, a configuration spends what the limit allows: one factor scales all removals, and is solved for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edge_tprune.documents import MethodOptions, OptionValue
from edge_tprune.errors import UserError
from edge_tprune.schedule.budget import Removal, Schedule, from_budget
from edge_tprune.search.cost import Cost, MacsCost, total

LIGHTEST = 0.05  #: a block of less weight removes nothing


@dataclass(frozen=True)
class Configuration:
    """What is tried: a method, blocks counted from 1, how much each removes relative to the others, and options of the method."""

    method: str
    blocks: tuple[int, ...]
    weights: tuple[float, ...]
    options: tuple[tuple[str, OptionValue], ...] = ()


@dataclass(frozen=True)
class MethodSpace:
    """One method in a search."""

    name: str
    fewest: Callable[[int], int]  #: tokens that it can leave from a number in one block
    removal: Removal = "share"
    options: Mapping[str, Sequence[OptionValue]] = field(default_factory=dict)  #: name -> values worth trying


@dataclass(frozen=True)
class SearchSpace:
    """What may be tried at one limit."""

    cost: Cost
    limit: float
    methods: tuple[MethodSpace, ...]
    fewest_stages: int
    most_stages: int

    @property
    def last_block(self) -> int:
        """The last that may remove tokens."""
        return self.cost.shape.blocks - (self.cost.exact and self.cost.shape.read_tokens is not None)

    @property
    def reachable(self) -> bool:
        """Whether removing as much as possible as early as possible keeps the limit."""
        found = [self.cheapest(method) for method in self.methods]
        return any(spent is not None and spent <= self.limit for spent in found)

    def cheapest(self, method: MethodSpace) -> float | None:
        """The cost where a method removes as much as possible as early as possible; None where it is not known."""
        blocks = tuple(range(1, min(self.most_stages, self.last_block) + 1))
        earliest = Configuration(method.name, blocks, (1.0,) * len(blocks))
        return total(self.cost, method.name, self._spread(earliest, method, 0.0))

    def method(self, name: str) -> MethodSpace:
        """One of the methods."""
        return next(method for method in self.methods if method.name == name)

    def from_weights(self, method: str, weights: Sequence[float], options: MethodOptions) -> Configuration | None:
        """The configuration in which block b has weight `weights[b - 1]`; None where too few blocks have any.

        Of more than the most stages, the heaviest count.
        """
        order = sorted(range(len(weights)), key=lambda place: (-weights[place], place))[: self.most_stages]
        chosen = sorted(place for place in order if weights[place] >= LIGHTEST)
        if len(chosen) < self.fewest_stages:
            return None
        return Configuration(
            method,
            tuple(place + 1 for place in chosen),
            tuple(round(weights[place], 4) for place in chosen),
            tuple(sorted(options.items())),
        )

    def weights_of(self, configuration: Configuration) -> list[float]:
        """A weight for every block that may remove tokens, the greatest 1."""
        known = dict(zip(configuration.blocks, configuration.weights))
        greatest = max(known.values())
        return [known.get(block, 0.0) / greatest for block in range(1, self.last_block + 1)]

    def schedule(self, configuration: Configuration) -> Schedule | None:
        """The schedule that spends the limit; None where the configuration cannot meet it."""
        shape, method = self.cost.shape, self.method(configuration.method)
        if isinstance(self.cost, MacsCost):
            try:
                found = from_budget(
                    shape, self.limit, configuration.blocks, weights=configuration.weights, removal=method.removal,
                    fewest=method.fewest, exact_savings=self.cost.exact,
                )  # fmt: skip
            except UserError:
                return None
            return None if found.remark else found
        tokens = self._spend(configuration, method)
        return None if tokens is None else Schedule(tokens, shape.share(tokens))

    def _spend(self, configuration: Configuration, method: MethodSpace) -> tuple[int, ...] | None:
        """Tokens after each block that cost as much as the limit allows."""
        least = self._spread(configuration, method, 0.0)
        if not self._fits(method, least):
            return None
        low, high = 0.0, 1.0
        for _ in range(20):
            keep = (low + high) / 2
            fits = self._fits(method, self._spread(configuration, method, keep))
            low, high = (keep, high) if fits else (low, keep)
        return self._spread(configuration, method, low)

    def _fits(self, method: MethodSpace, tokens: Sequence[int]) -> bool:
        spent = total(self.cost, method.name, tokens)
        return spent is not None and spent <= self.limit

    def _spread(self, configuration: Configuration, method: MethodSpace, keep: float) -> tuple[int, ...]:
        shape, weight = self.cost.shape, dict(zip(configuration.blocks, configuration.weights))
        patches, lowest = shape.tokens - shape.prefix_tokens, max(shape.prefix_tokens + 1, self.cost.counts[0])
        after, current, wanted = [], shape.tokens, float(patches)
        for block in range(1, shape.blocks + 1):
            if block in weight:
                wanted *= keep ** weight[block]
                current = min(current, max(round(wanted) + shape.prefix_tokens, lowest, method.fewest(current)))
            after.append(current)
        return (*after[:-1], shape.read_tokens) if self.cost.exact and shape.read_tokens is not None else tuple(after)

    def from_schedule(self, method: str, tokens: Sequence[int], options: MethodOptions) -> Configuration | None:
        """The configuration whose schedule this is, but for rounding; None where it has no stage."""
        prefix = self.cost.shape.prefix_tokens
        before = (self.cost.shape.tokens, *tokens[:-1])
        pairs = list(zip(before, tokens))[: self.last_block]
        removed = [math.log(max(1, n - prefix) / max(1, m - prefix)) for n, m in pairs]
        greatest = max(removed)
        if greatest <= 0:
            return None
        return self.from_weights(method, [value / greatest for value in removed], options)
