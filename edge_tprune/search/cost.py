"""What a schedule costs, transition by transition: in MACs, or as measured on a board. What a search bounds or minimises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_tprune.schedule import NetworkShape
from edge_tprune.schedule.latency import CostModel


class Cost(Protocol):
    """An additive cost: `base` and one term for each block."""

    @property
    def shape(self) -> NetworkShape:
        """Of the network."""

    @property
    def exact(self) -> bool:
        """Whether schedules end with the last block saved, where the head does not read all tokens."""

    @property
    def unit(self) -> str:
        """Of all that it says: "share of MACs", "p50_ms"."""

    @property
    def base(self) -> float:
        """What every schedule costs."""

    @property
    def counts(self) -> tuple[int, int]:
        """The fewest and the most tokens after a block that the cost is known of."""

    def transition(self, method: str, block: int, tokens_in: int, tokens_out: int) -> float | None:
        """What block `block` (from 1) costs when it receives and hands on so many tokens; None where that is not known."""


def total(cost: Cost, method: str, schedule: Sequence[int]) -> float | None:
    """The cost of a schedule (tokens after each block); None where it is not known."""
    spent, tokens = cost.base, cost.shape.tokens
    for block, after in enumerate(schedule, 1):
        part = cost.transition(method, block, tokens, after)
        if part is None:
            return None
        spent, tokens = spent + part, after
    return spent


@dataclass(frozen=True)
class MacsCost:
    """MACs, as a share of the unpruned network's."""

    shape: NetworkShape
    exact: bool = False
    unit: str = "share of MACs"

    @property
    def base(self) -> float:
        """Patch embedding and head."""
        return (self.shape.patch_macs + self.shape.head_macs) / self.shape.macs()

    @property
    def counts(self) -> tuple[int, int]:
        """MACs are known of all."""
        return self.shape.prefix_tokens + 1, self.shape.tokens

    def transition(self, method: str, block: int, tokens_in: int, tokens_out: int) -> float | None:
        """One block, and the pooling after the last."""
        pooled = self.shape.pool_macs_per_token * tokens_out if block == self.shape.blocks else 0
        return (self.shape.block_macs(block, tokens_in, tokens_out) + pooled) / self.shape.macs()


@dataclass(frozen=True)
class MeasuredCost:
    """Latency or energy, as a model of what was measured on a board says."""

    shape: NetworkShape
    model: CostModel

    @property
    def exact(self) -> bool:
        """As the graphs that were measured."""
        return self.model.exact

    @property
    def unit(self) -> str:
        """The metric."""
        return self.model.metric

    @property
    def base(self) -> float:
        """What every schedule costs."""
        return self.model.base

    @property
    def counts(self) -> tuple[int, int]:
        """The range that was measured."""
        return self.model.tokens[0], self.model.tokens[-1]

    def transition(self, method: str, block: int, tokens_in: int, tokens_out: int) -> float | None:
        """The tokens that a block hands on, and the method's step where it removes some."""
        counted = self.shape.blocks - self.exact
        if block > counted:
            return 0.0
        cost = self.model.block_cost(tokens_out)
        step = 0.0 if tokens_out == tokens_in else self.model.step_cost(method, tokens_in)
        if cost is None or step is None:
            return None
        return step + cost * (self.model.last_share if block == counted else 1.0)
