"""Makes a cost model (`edge_tprune.schedule.latency`) from measured graphs. Needs scipy; a board only predicts.

All costs are found together by least squares of relative errors with non-negative increments (a monotone regression): the cost is linear in
what a block costs at each measured token count and in what a method's steps cost; only `last_share` multiplies, and is found by a scan
over its range. What a method's steps cost is drawn towards the mean of the methods, the more the noisier the run is (partial pooling):
a search takes the cheapest of several methods, and would otherwise take the one whose graphs were measured too fast.
How far a prediction may be off comes from leaving out one measured graph after the other and predicting it from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from itertools import pairwise

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edge_tprune.errors import UserError
from edge_tprune.schedule.latency import SLICE, CostModel, ProbeResidual, StepCost, stages
from edge_tprune.schedule.macs import NetworkShape
from edge_tprune.statistics.distributions import scipy_module, student

_FEWEST_RESIDUALS = 3
_LIKELY_SHARE, _SHARE_SPREAD = 0.75, 0.15  # of MACs of a plain block: MLP 8/12; with keys and values of the last block 10/12
_LARGEST_SHARE = 1.0  # of a middle block that the last one costs per token count
_LEAST_SPREAD = (
    0.01  # of step costs between methods, as a share of the noise: what the pooling takes where the graphs show none
)


@dataclass(frozen=True)
class Measured:
    """One measured graph."""

    method: str
    schedule: tuple[int, ...]  #: tokens after each block
    cost: float
    noise: float = 0.0  #: standard error of `cost`


@dataclass(frozen=True)
class _Design:
    """What the linear problem looks like: which columns stand for what."""

    shape: NetworkShape
    exact: bool
    counts: tuple[int, ...]  #: increasing
    methods: tuple[str, ...]
    pull: float = 0.0  #: of a method's step cost towards the mean of the methods: noise over the spread of the methods

    def row(self, graph: Measured, last_share: float) -> list[float]:
        """Coefficients: base, rise of a block's cost from each count to the next, then per method (constant, per token)."""
        *middle, last = graph.schedule[:-1] if self.exact else graph.schedule
        rises = [
            sum(_passed(count, low, high) for count in middle) + last_share * _passed(last, low, high)
            for low, high in pairwise(self.counts)
        ]
        entering = stages(self.shape, graph.schedule)
        steps: list[float] = []
        for method in self.methods:
            steps += [float(len(entering)), float(sum(entering))] if graph.method == method else [0.0, 0.0]
        return [1.0, *rises, *steps, *self._mean_step(0.0, 0.0)]

    def pooling(self, graphs: Sequence[Measured]) -> list[list[float]]:
        """Rows whose squares hold each method's step near the mean step, in shares of a graph's cost per stage."""
        if not self.pull:
            return []
        pruned = [graph for graph in graphs if graph.method in self.methods]
        share = self.pull * float(np.mean([1 / graph.cost for graph in pruned]))
        entering = float(np.mean([count for graph in pruned for count in stages(self.shape, graph.schedule)]))
        found = []
        for number in range(len(self.methods)):
            for part, unit in enumerate((share, share * entering)):
                steps = [0.0] * (2 * len(self.methods))
                steps[2 * number + part] = unit
                found.append([0.0] * len(self.counts) + steps + self._mean_step(*(-unit if part == n else 0.0 for n in (0, 1))))
        return found

    def _mean_step(self, constant: float, per_token: float) -> list[float]:
        return [constant, per_token] if self.pull else []


def _passed(count: int, low: int, high: int) -> float:
    """How much of the rise from `low` to `high` tokens `count` has taken: counts of no point of the design lie on a line between two."""
    return min(1.0, max(0.0, (count - low) / (high - low)))


def _points(graphs: Sequence[Measured], exact: bool) -> set[int]:
    """Token counts that become points of the curve: both ends, and those that some slice has in most of its blocks.

    A count that graphs have in a block or two, or only beside a method's steps, is no point: what their errors make of it would be multiplied
    where a schedule has it in many blocks.
    """
    schedules = {graph: graph.schedule[:-1] if exact else graph.schedule for graph in graphs}
    counts = {count for schedule in schedules.values() for count in schedule}
    slices = [schedule for graph, schedule in schedules.items() if graph.method == SLICE]
    common = {count for count in counts for schedule in slices if 2 * schedule.count(count) > len(schedule)}
    return common | {min(counts), max(counts)}


def fit_cost(shape: NetworkShape, metric: str, graphs: Sequence[Measured]) -> CostModel:
    """The cost model of measured graphs.

    Args:
        shape: the network's.
        metric: what was measured: "p50_ms", "p95_ms", "energy_mj".
        graphs: what was measured: the unpruned network as timm runs it among them; all others with the last block saved, or none.

    Raises:
        UserError: too few or too uniform graphs to tell: saying which are missing.
    """
    full = [graph for graph in graphs if graph.schedule == shape.full_schedule()]
    others = [graph for graph in graphs if graph.schedule != shape.full_schedule()]
    if not full:
        raise UserError(
            "the unpruned network is not among the graphs: a latency model needs it. Build with: edge-tprune build --probe"
        )
    saving = {shape.saves_last_block(graph.schedule) for graph in others}
    if len(saving) != 1:
        raise UserError(
            "these graphs do not make a latency model: the last block of some computes all tokens, of others only what the head reads. "
            "Build with: edge-tprune build --probe"
        )
    (exact,) = saving
    used = others if exact else [*full, *others]
    model = _fit(shape, metric, used, exact, full[0].cost)
    if model is None:
        raise UserError(
            f"{len(used)} graphs are too few for a latency model: it takes the unpruned network and at least three token counts. "
            "Build with: edge-tprune build --probe"
        )
    return _with_residuals(shape, model, used)


def _fit(shape: NetworkShape, metric: str, graphs: Sequence[Measured], exact: bool, full: float) -> CostModel | None:
    counts = _points(graphs, exact)
    methods = tuple(sorted({graph.method for graph in graphs if stages(shape, graph.schedule)} - {SLICE}))
    design = _Design(shape, exact, tuple(sorted(counts)), methods)
    slices = [graph for graph in graphs if graph.method == SLICE or not stages(shape, graph.schedule)]
    if shape.tokens not in counts or len(counts) < 4 or len(slices) < len(counts):
        return None
    costs = np.array([graph.cost for graph in graphs])
    share = _last_share(design, graphs, costs)
    if len(methods) > 1:
        design = dataclass_replace(design, pull=_pull(design, graphs, costs, share))
    solution, _ = _solve(design, graphs, costs, share)
    rises = solution[1 : len(counts)]
    steps = {}
    for number, method in enumerate(methods):
        constant, per_token = solution[len(counts) + 2 * number : len(counts) + 2 * number + 2]
        entering = [n for graph in graphs if graph.method == method for n in stages(shape, graph.schedule)]
        steps[method] = StepCost(
            constant=float(constant), per_token=float(per_token), fewest_in=design.counts[0], most_in=max(entering)
        )
    return CostModel(
        metric=metric,
        base=float(solution[0]),
        tokens=design.counts,
        block=tuple(float(value) for value in np.concatenate([[0.0], np.cumsum(rises)])),
        last_share=share,
        exact=exact,
        full=full,
        steps=steps,
        reach=0.0,
        probes=tuple(_residual(graph) for graph in graphs),
    )


def _pull(design: _Design, graphs: Sequence[Measured], costs: NDArray[np.float64], share: float) -> float:
    """Noise of a graph over the spread of the methods' step costs, both as shares of a latency.

    The spread is estimated by moments (DerSimonian and Laird 1986): the variance between the methods' means less what noise alone gives.
    """
    noise = math.sqrt(float(np.mean([(graph.noise / graph.cost) ** 2 for graph in graphs])))
    if noise == 0:
        return 0.0
    plain, _ = _solve(design, graphs, costs, share)
    plain[len(design.counts) :] = 0.0
    means, variances = [], []
    for method in design.methods:
        pruned = [graph for graph in graphs if graph.method == method]
        taken = [len(stages(design.shape, graph.schedule)) for graph in pruned]
        beyond = [1 - float(np.dot(design.row(graph, share), plain)) / graph.cost for graph in pruned]
        means.append(float(np.dot(taken, beyond)) / float(np.dot(taken, taken)))
        variances.append(noise**2 / float(np.dot(taken, taken)))
    spread = max(float(np.var(means, ddof=1)) - float(np.mean(variances)), (_LEAST_SPREAD * noise) ** 2)
    return noise / math.sqrt(spread)


def _solve(
    design: _Design, graphs: Sequence[Measured], costs: NDArray[np.float64], share: float
) -> tuple[NDArray[np.float64], float]:
    """Non-negative least squares of the relative errors: the solution and the norm of the residual."""
    rows = np.array([design.row(graph, share) for graph in graphs]) / costs[:, None]
    targets = np.ones(len(graphs))
    if pooling := design.pooling(graphs):
        rows, targets = np.vstack([rows, pooling]), np.concatenate([targets, np.zeros(len(pooling))])
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    # A slight regularisation: where graphs do not tell two columns apart, neither takes everything.
    ridge = np.diag(np.full(rows.shape[1], 1e-4))
    ridge[0, 0] = 0.0
    solution, _ = scipy_module("optimize").nnls(
        np.vstack([rows / scale, ridge]), np.concatenate([targets, np.zeros(len(ridge))])
    )
    residual = rows / scale @ solution - targets
    return solution / scale, float(residual @ residual)


def _last_share(design: _Design, graphs: Sequence[Measured], costs: NDArray[np.float64]) -> float:
    """Where the residual is least. Noise alone could drive it anywhere, so the noisier the graphs, the more it stays near what MACs say."""
    noise = float(np.mean([(graph.noise / graph.cost) ** 2 for graph in graphs]))

    def loss(share: float) -> float:
        return _solve(design, graphs, costs, share)[1] + noise * ((share - _LIKELY_SHARE) / _SHARE_SPREAD) ** 2

    found = scipy_module("optimize").minimize_scalar(loss, bounds=(0.0, _LARGEST_SHARE), method="bounded")
    return float(found.x)


def _with_residuals(shape: NetworkShape, model: CostModel, graphs: Sequence[Measured]) -> CostModel:
    """The model with what it says of every graph that it was made without, and the interval that follows.

    A graph whose token count no other graph has is predicted by interpolation between its neighbours, further apart than those of the model
    itself: the interval is rather too wide than too narrow.
    """
    probes, errors = [], []
    for number, graph in enumerate(graphs):
        rest = [other for place, other in enumerate(graphs) if place != number]
        predicted = _predict_from(shape, model, rest, graph)
        if predicted is not None:
            errors.append(predicted / graph.cost - 1)
        probes.append(_residual(graph, predicted))
    if len(errors) < _FEWEST_RESIDUALS:
        raise UserError(
            f"{len(graphs)} graphs are too few for a latency model: only {len(errors)} of them can be predicted from the others, and an "
            f"interval takes {_FEWEST_RESIDUALS}. Build with: edge-tprune build --probe"
        )
    spread = math.sqrt(sum(error * error for error in errors) / len(errors))
    noise = math.sqrt(sum((graph.noise / graph.cost) ** 2 for graph in graphs) / len(graphs))
    return replace(model, reach=student(len(errors), 0.975) * max(spread, noise), probes=tuple(probes))


def _predict_from(shape: NetworkShape, model: CostModel, rest: Sequence[Measured], graph: Measured) -> float | None:
    """What a model of the other graphs says of one; None where they do not tell.

    They do not tell where their slices have one end of the range of counts in far fewer blocks than the graph has it: what they say of it
    would be multiplied, errors included.
    """
    for end in (model.tokens[0], model.tokens[-1]):
        known = max((other.schedule.count(end) for other in rest if other.method == SLICE), default=0)
        if graph.schedule.count(end) > 2 * known:
            return None
    without = _fit(shape, model.metric, rest, model.exact, model.full)
    if without is None:
        return None
    if graph.method in without.steps:
        # The range of a step is that of its graphs; what this one alone reaches is predicted from the others all the same.
        step = replace(without.steps[graph.method], most_in=shape.tokens)
        without = replace(without, steps={**without.steps, graph.method: step})
    found = without.predict(shape, graph.method, graph.schedule)
    return None if found is None else found.value


def _residual(graph: Measured, predicted: float | None = None) -> ProbeResidual:
    return ProbeResidual(
        method=graph.method, schedule=graph.schedule, measured=graph.cost, noise=graph.noise, predicted=predicted
    )
