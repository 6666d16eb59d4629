"""The turns of a run: in which order budgets have them, which are missing, and one turn from loading to closing the engine."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.agent.loads import Timed, time_load, warm_up
from edge_tprune.record.writer import clock_ns
from edge_tprune.runtime.engine import Engine, open_engine


def random_order(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """Per round every name once, in an order drawn anew, so that heat and clocks favour none."""
    shuffle = random.Random(seed)
    return [shuffle.sample(names, len(names)) for _ in range(rounds)]


def missing_turns(
    order: Sequence[Sequence[str]], done: Collection[tuple[int, str]], failed: Collection[str]
) -> list[tuple[int, int, str]]:
    """(round, position, budget) of the turns that are still to be taken, in order."""
    return [
        (number, position, name)
        for number, names in enumerate(order)
        for position, name in enumerate(name for name in names if name not in failed)
        if (number, name) not in done
    ]


def take_turn(
    file: Path, images: Sequence[np.ndarray], plan: dict[str, Any], keep: Callable[[int, dict[str, Any]], None]
) -> tuple[int, dict[str, Any]]:
    """Loads, warms up, times and closes one engine.

    Args:
        file: what `build.engines.prepare` gave.
        images: inputs of the graph, taken in turn.
        plan: of the run.json: `runtime`, `threads`, `seconds_per_round`, `warmup_seconds`, `fps`.
        keep: is handed (when timing began, keys of a `part` line) about once a second.

    Returns:
        When timing began and the keys of the `round` line, as profiles/README.md lists them.
    """
    begin_ns = clock_ns()
    with open_engine(file, plan["runtime"], threads=plan["threads"]) as engine:
        load_ms = (clock_ns() - begin_ns) / 1e6
        with _garbage_collection_off():  # already while warming up: collecting empties the caches
            warmup = warm_up(engine.run, images, plan["warmup_seconds"], plan["fps"])
            engine.stages_ns()  # those of the warm-up
            same = {
                "load_ms": load_ms,
                "warmup_begin_ns": warmup.begin_ns,
                "warmup_inferences": warmup.inferences,
                "warmup_steady": warmup.steady,
            }

            def keep_part(t_ns: int, timed: Timed) -> None:
                keep(t_ns, same | _lists(timed, engine, plan["fps"]))

            t_ns, end_ns, rest = time_load(engine.run, images, plan["seconds_per_round"], plan["fps"], keep_part)
        return t_ns, {"end_ns": end_ns, **same, **_lists(rest, engine, plan["fps"])}


def _lists(timed: Timed, engine: Engine, fps: float | None) -> dict[str, Any]:
    lists: dict[str, Any] = {"start_ns": timed.start_ns, "latency_ns": timed.latency_ns, "stages_ns": engine.stages_ns()}
    return lists if fps is None else {**lists, "due_ns": timed.due_ns, "missed": timed.missed}


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
