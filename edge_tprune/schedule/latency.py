"""What a schedule costs on one board: a model of latency or energy that a few measured graphs determine.

The cost of a network is a sum over its blocks. With n_b tokens after block b, of which the first m count,

    T = base + sum over b < m of block(n_b) + last_share * block(n_m) + sum over stages of step(tokens in)

`block(n)` is the MLP of one block and the attention of the next at n tokens. m is the number of blocks, and the last term is the last MLP;
where the last block computes only what the head reads (`NetworkShape.exact_schedule`), m is one less, and the last term is an MLP and the keys and
values of the last block. Attention and MLP of other blocks always come together in that sum, so no schedule needs them apart.
`block` has no assumed shape: it goes through what was measured, monotone (`interpolate`). `step` is what a method adds to a plain slice
where it removes tokens. Nothing is said outside the measured range of token counts, or of a method that was not measured.

Needs neither scipy nor torch: a board can predict. The model is made by `edge_tprune.schedule.latency_fit`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_tprune.documents import Batch, Count, DocumentKind, Name
from edge_tprune.errors import UserError
from edge_tprune.schedule.macs import NetworkShape
from edge_tprune.statistics import Interval

LATENCY = "latency.json"
SLICE = "slice"  #: the method whose step costs nothing: what others are measured against


# ms or mJ. Bounds that no board comes near, and whose sums and products stay finite.
CostPart = Annotated[float, Meta(ge=0, le=1e12)]
SignedCost = Annotated[float, Meta(ge=-1e12, le=1e12)]


class StepCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage of a method costs beyond a plain slice: `constant` + `per_token` * tokens entering the block."""

    constant: CostPart
    per_token: CostPart
    fewest_in: Count  #: the range of tokens entering a stage that was measured
    most_in: Count

    def at(self, tokens_in: int) -> float:
        """The cost of a stage."""
        return self.constant + self.per_token * tokens_in


class ProbeResidual(msgspec.Struct, frozen=True, kw_only=True):
    """One measured graph, and what the model says of it when it is made without it."""

    method: Name
    schedule: tuple[Count, ...]  #: tokens after each block
    measured: SignedCost
    noise: CostPart  #: standard error of `measured`
    predicted: SignedCost | None = None  #: None where the others do not tell


class CostModel(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One cost (p50_ms, p95_ms, energy_mj) of schedules of one network on one machine."""

    metric: Name
    base: SignedCost
    #: Measured token counts, increasing; the last is the unpruned network's.
    tokens: Annotated[tuple[Count, ...], Meta(min_length=2)]
    block: Annotated[tuple[CostPart, ...], Meta(min_length=2)]  #: cost of one block there beyond its cost at the fewest tokens
    last_share: CostPart  #: what the last of the counts costs, as a share of what any other does
    exact: bool  #: whether the schedules' last block computes only what the head reads
    full: Annotated[float, Meta(gt=0, le=1e12)]  #: cost of the unpruned network as timm runs it, measured
    steps: dict[str, StepCost]  #: by method
    reach: Annotated[float, Meta(ge=0, le=1e6)]  #: half the width of the 95 % interval of a prediction, as a share of it
    probes: tuple[ProbeResidual, ...]

    def __post_init__(self) -> None:
        if len(self.block) != len(self.tokens):
            raise ValueError(f"expected a cost for each of the {len(self.tokens)} token counts, got {len(self.block)}")
        if any(more <= fewer for fewer, more in pairwise(self.tokens)):
            raise ValueError("expected token counts that increase")

    @cached_property
    def _slopes(self) -> tuple[float, ...]:
        return monotone_slopes(self.tokens, self.block)

    def block_cost(self, tokens: int) -> float | None:
        """Cost of one block at `tokens`, beyond its cost at the fewest measured; None outside the measured range."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        return interpolate(self.tokens, self.block, self._slopes, tokens)

    def step_cost(self, method: str, tokens_in: int) -> float | None:
        """What a stage of `method` adds; None where that was not measured."""
        if method == SLICE:
            return 0.0
        step = self.steps.get(method)
        return step.at(tokens_in) if step is not None and step.fewest_in <= tokens_in <= step.most_in else None

    def predict(self, shape: NetworkShape, method: str, schedule: Sequence[int]) -> Interval | None:
        """The cost of `schedule` under `method`; None where the model does not know: outside what was measured.

        Args:
            shape: of the network that was measured.
            method: that removes the tokens.
            schedule: tokens after each block.
        """
        after = tuple(schedule)
        if after == shape.full_schedule():
            return self._interval(self.full)
        if shape.saves_last_block(after) != self.exact:
            return None
        counts = after[:-1] if self.exact else after
        known = {count: self.block_cost(count) for count in set(counts)}
        total = self.base
        for number, count in enumerate(counts):
            cost = known[count]
            if cost is None:
                return None
            total += cost if number < len(counts) - 1 else self.last_share * cost
        for tokens_in in stages(shape, after):
            step = self.step_cost(method, tokens_in)
            if step is None:
                return None
            total += step
        return self._interval(total)

    def _interval(self, value: float) -> Interval:
        return Interval(value, value * (1 - self.reach), value * (1 + self.reach))


def stages(shape: NetworkShape, schedule: Sequence[int]) -> list[int]:
    """Tokens entering each block at which a method removes some. The last block of a network that saves it has none."""
    before = (shape.tokens, *schedule[:-1])
    last = shape.blocks if shape.saves_last_block(schedule) else shape.blocks + 1
    return [n for number, (n, m) in enumerate(zip(before, schedule), 1) if m < n and number < last]


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which network was measured."""

    name: str
    weights_sha256: str
    tokens: Count
    blocks: Count


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """latency.json: the cost models of one profile of probes, and what they hold for."""

    run_id: Name  #: of the profile
    network: NetworkRecord
    runtime: Name
    precision: str | None
    batch: Batch
    threads: Count
    power_mode: str | None
    machine: str
    status: str  #: verdict of the profile
    costs: dict[str, CostModel]  #: metric -> its model
    turns: Count | None = None  #: of the profile, when the model was made; null in documents of earlier versions

    def cost(self, metric: str) -> CostModel:
        """The model of one metric.

        Raises:
            UserError: it was not measured.
        """
        if metric not in self.costs:
            known = ", ".join(self.costs)
            raise UserError(f"{metric} is not known of this board: the profile of probes has {known}")
        return self.costs[metric]

    def check(self, network: NetworkRecord, batch: int | None = None) -> None:
        """Refuses another network or batch than those that were measured.

        Raises:
            UserError: naming what differs.
        """
        pairs = [("batch", self.batch, self.batch if batch is None else batch)]
        pairs += [(field, getattr(self.network, field), getattr(network, field)) for field in NetworkRecord.__struct_fields__]
        # Latency does not depend on the values of weights: a fine-tuned network costs what its original does.
        differing = [f"{what} was {was} and is {now}" for what, was, now in pairs if was != now and what != "weights_sha256"]
        if differing:
            raise UserError(
                f"the latency model is of another network ({'; '.join(differing)}): profile a probe bundle of this one "
                "(edge-tprune build --probe)"
            )


KIND = DocumentKind(
    noun="latency model",
    format="edge-tprune-latency",
    version=1,
    make="Make one with: edge-tprune latency PROFILE, of a profile of a bundle that `build --probe` wrote",
    remedy="Make it again with: edge-tprune latency PROFILE",
    schema=Latency,
    file=LATENCY,
)


def monotone_slopes(x: Sequence[float], y: Sequence[float]) -> tuple[float, ...]:
    """Slopes at the points of the monotone cubic through (x, y): x increasing, y not decreasing.

    PCHIP: Fritsch and Butland 1984, "A method for constructing local monotone piecewise cubic interpolants": the weighted harmonic mean of the
    slopes on both sides; at the ends the three-point formula, held to the shape (as in scipy's PchipInterpolator).
    """
    widths = [b - a for a, b in pairwise(x)]
    rises = [(b - a) / h for (a, b), h in zip(pairwise(y), widths)]
    if len(rises) == 1:
        return rises[0], rises[0]
    inner = []
    for (h, k), (s, t) in zip(pairwise(widths), pairwise(rises)):
        v, w = 2 * k + h, k + 2 * h
        inner.append(0.0 if s * t <= 0 else (v + w) / (v / s + w / t))
    first = _end_slope(widths[0], widths[1], rises[0], rises[1])
    last = _end_slope(widths[-1], widths[-2], rises[-1], rises[-2])
    return first, *inner, last


def _end_slope(h: float, k: float, s: float, t: float) -> float:
    slope = ((2 * h + k) * s - h * t) / (h + k)
    if slope * s <= 0:
        return 0.0
    if s * t <= 0 and abs(slope) > 3 * abs(s):
        return 3 * s
    return slope


def interpolate(x: Sequence[float], y: Sequence[float], slopes: Sequence[float], at: float) -> float:
    """The cubic Hermite interpolant through (x, y) with `slopes`, at a point within the range of x."""
    left = min(max(bisect_right(x, at) - 1, 0), len(x) - 2)
    width = x[left + 1] - x[left]
    t = (at - x[left]) / width
    one = 1 - t
    low, high = y[left], y[left + 1]
    value = (
        (1 + 2 * t) * one * one * low
        + t * one * one * width * slopes[left]
        + t * t * (3 - 2 * t) * high
        - t * t * one * width * slopes[left + 1]
    )
    return min(max(value, low), high) if math.isfinite(value) else value
