"""The turns of a run: in which order budgets have them, which are missing, and one turn from loading to closing the engine."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edge_tprune.agent.loads import Timed, time_load, warm_up
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.manifest import split_label
from edge_tprune.bundle.predictor import load_predictor
from edge_tprune.record.lines import PartLine, TurnLine
from edge_tprune.record.log import clock_ns
from edge_tprune.record.settings import RunSettings


class PlannedTurn(NamedTuple):
    """A turn that is to be taken."""

    round: int  #: from 0
    position: int  #: its place in the round, from 0
    budget: str


def random_order(names: Sequence[str], rounds: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """Per round every name once, in a new random order, so that heat and clocks favour none."""
    shuffle = random.Random(seed)
    return tuple(tuple(shuffle.sample(names, len(names))) for _ in range(rounds))


def missing_turns(
    order: Sequence[Sequence[str]], done: Collection[tuple[int, str]], failed: Collection[str]
) -> list[PlannedTurn]:
    """The turns that are still to be taken, in order.

    Args:
        order: per round the budgets.
        done: (round, budget) of the turns that were taken before.
        failed: budgets that are not timed.
    """
    return [
        PlannedTurn(number, position, name)
        for number, names in enumerate(order)
        for position, name in enumerate(name for name in names if name not in failed)
        if (number, name) not in done
    ]


def take_turn(
    bundle: Bundle,
    file: Path,
    images: Sequence[np.ndarray],
    settings: RunSettings,
    planned: PlannedTurn,
    write: Callable[[PartLine], None],
) -> TurnLine:
    """Loads, warms up, times and closes one engine.

    Args:
        bundle: an opened bundle.
        file: what `bundle.engines.prepare` gave for the budget.
        images: inputs of the graph, (B, 3, H, W) each, taken in turn.
        settings: of the run.
        planned: which turn this is.
        write: is handed a part about once a second.

    Returns:
        What was timed since the last part.

    Raises:
        UserError: the engine cannot be loaded, or the bundle was rebuilt since it was opened.
    """
    begin_ns = clock_ns()
    name, precision = split_label(planned.budget, settings.precision)
    with load_predictor(bundle, name, file, settings.runtime, precision, settings.threads) as model:
        load_ms = (clock_ns() - begin_ns) / 1e6
        bundle.check_unchanged()
        with _garbage_collection_off():  # already while warming up: collecting empties the caches
            warmup = warm_up(model.run, images, settings.warmup_seconds, settings.fps)
            model.stages_ns()  # drops those of the warm-up

            def part(t_ns: int, timed: Timed) -> PartLine:
                return PartLine(
                    t_ns=t_ns,
                    round=planned.round,
                    position=planned.position,
                    budget=planned.budget,
                    load_ms=load_ms,
                    warmup_begin_ns=warmup.begin_ns,
                    warmup_inferences=warmup.inferences,
                    warmup_steady=warmup.steady,
                    start_ns=timed.start_ns,
                    latency_ns=timed.latency_ns,
                    stages_ns=model.stages_ns(),
                    due_ns=None if settings.fps is None else timed.due_ns,
                    missed=None if settings.fps is None else timed.missed,
                )

            t_ns, end_ns, rest = time_load(
                model.run, images, settings.seconds_per_round, settings.fps, lambda t_ns, timed: write(part(t_ns, timed))
            )
        return TurnLine(**msgspec.structs.asdict(part(t_ns, rest)), end_ns=end_ns)


@contextmanager
def earlier_objects_kept() -> Iterator[None]:
    """Around a session: the collection before each turn looks at what the session made only, not at all that is loaded."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
