"""Search for where to remove how many tokens, and for a method's options, at a budget of MACs.

Zero-TPrune finds its configuration by Monte-Carlo search (arXiv 2305.17328, section 4), DiffRate learns its counts; this is one search for
every method: the first trials and every eighth after them are drawn at random, the others change one of the best found so far in one place. A trial is
scored image by image, and dropped early once it is clearly worse than the best on the images both have seen (a race).

The same seed proposes the same trials, however many are asked for. Every finished trial is a line in a log; a search that was interrupted, or that is to
try more, reads its log and goes on where it stopped, because a trial whose score is known need not run. Knows nothing of networks: scoring is
given to it.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_tprune.errors import UserError
from edge_tprune.schedule.budget import Removal, Schedule, from_budget
from edge_tprune.schedule.macs import NetworkShape

WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
DRAWN_FIRST, DRAWN_LATER = 10, 8  # trials drawn at random to begin with; from then on, one in so many
PARENTS = 4  # how many of the best are changed further
MISSES = 5000  # proposals in a row that cannot be or were tried: the space counts as tried out
EARLY = 2.0  # a trial is dropped when it is worse by so many standard errors of the paired difference

Losses = Iterator[Sequence[float]]
Scorer = Callable[[Schedule, Mapping[str, Any]], Losses]


@dataclass(frozen=True)
class Trial:
    """What is tried: blocks counted from 1, how much each removes relative to the others, and options of the method."""

    blocks: tuple[int, ...]
    weights: tuple[float, ...]
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """The trial as one line of JSON, the same for equal trials."""
        return json.dumps([self.blocks, self.weights, self.options])


@dataclass(frozen=True)
class SearchSpace:
    """What may be tried."""

    shape: NetworkShape
    budget: float
    fewest_stages: int
    most_stages: int
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)  #: name -> values worth trying
    removal: Removal = "share"
    fewest: Callable[[int], int] | None = None  #: as for `from_budget`

    def schedule(self, trial: Trial) -> Schedule | None:
        """The schedule of a trial; None where it cannot come within 1 % of the budget."""
        try:
            found = from_budget(
                self.shape, self.budget, trial.blocks, weights=trial.weights, removal=self.removal, fewest=self.fewest
            )
        except UserError:
            return None
        return None if found.remark else found

    def drawn(self, rng: random.Random) -> Trial:
        """A trial at random."""
        count = rng.randint(self.fewest_stages, self.most_stages)
        blocks = tuple(sorted(rng.sample(range(1, self.shape.blocks + 1), count)))
        weights = tuple(rng.choice(WEIGHTS) for _ in blocks)
        return Trial(blocks, weights, tuple((name, rng.choice(list(values))) for name, values in sorted(self.options.items())))

    def changed(self, trial: Trial, rng: random.Random) -> Trial:
        """A trial that differs from a given one in one place."""
        weights, options = dict(zip(trial.blocks, trial.weights)), dict(trial.options)
        free = [b for b in range(1, self.shape.blocks + 1) if b not in weights]
        varied = sorted(name for name, values in self.options.items() if len(values) > 1)
        moves = ["move", "weigh", "weigh"] + ["option"] * 2 * bool(varied)
        moves += ["add"] * (len(weights) < self.most_stages) + ["leave out"] * (len(weights) > self.fewest_stages)
        move = rng.choice(moves)
        block = rng.choice(list(weights))
        if move == "weigh" and len(weights) > 1:
            weights[block] = rng.choice([w for w in WEIGHTS if w != weights[block]])
        elif move == "move" and free:
            weights[min(free, key=lambda b: (abs(b - block), rng.random()))] = weights.pop(block)
        elif move == "add" and free:
            weights[rng.choice(free)] = rng.choice(WEIGHTS)
        elif move == "leave out":
            del weights[block]
        elif move == "option":
            name = rng.choice(varied)
            options[name] = rng.choice(list(self.options[name]))
        return Trial(tuple(sorted(weights)), tuple(weights[b] for b in sorted(weights)), tuple(sorted(options.items())))


@dataclass(frozen=True)
class TrialResult:
    """A scored trial. Lower is better."""

    trial: Trial
    schedule: Schedule
    losses: tuple[float, ...]  #: one per image seen, in order; fewer than all where it was dropped early
    complete: bool

    @property
    def loss(self) -> float:
        """Mean over the images seen."""
        return sum(self.losses) / len(self.losses)


class TrialLog:
    """Finished trials, one JSON object a line, appended and synced.

    A last line cut short by a crash is dropped; trials in other lines that cannot be read count as not tried (`damaged` names the lines).

    Raises:
        UserError: the file is no log, or that of a search with another header.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.known: dict[str, tuple[tuple[float, ...], bool]] = {}
        self.damaged: list[int] = []  #: lines, counted from 1
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if whole:
            self._check(whole[0], header)
            for number, line in enumerate(whole[1:], 2):
                try:
                    row = json.loads(line)
                    self.known[str(row["trial"])] = (tuple(map(float, row["losses"])), bool(row["complete"]))
                except (ValueError, KeyError, TypeError):
                    self.damaged.append(number)
        size = sum(map(len, whole))
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)
        self._append = path.open("a", encoding="utf-8")
        if not whole:
            self._write({"search": dict(header)})

    def _check(self, first: bytes, header: Mapping[str, Any]) -> None:
        try:
            found = json.loads(first)["search"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is not the log of a search: move it away, or choose another --out") from error
        if found != dict(header):
            was = found if isinstance(found, dict) else {}
            differs = next((k for k in (*header, *was) if was.get(k) != header.get(k)), "header")
            raise UserError(
                f"{self.path} is the log of another search ({differs} was {was.get(differs)!r}, now {header.get(differs)!r}): "
                "move it away to start again, or choose another --out"
            )

    def add(self, result: TrialResult) -> None:
        """Appends a finished trial."""
        self.known[result.trial.key] = (result.losses, result.complete)
        losses = [float(f"{loss:.6g}") for loss in result.losses]
        self._write(
            {
                "trial": result.trial.key,
                "tokens": result.schedule.tokens,
                "loss": float(f"{result.loss:.6g}"),
                "complete": result.complete,
                "losses": losses,
            }
        )

    def close(self) -> None:
        """Closes the file."""
        self._append.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self._append.write(json.dumps(row) + "\n")
        self._append.flush()
        os.fsync(self._append.fileno())


def search(
    space: SearchSpace,
    score: Scorer,
    log: TrialLog,
    *,
    trials: int,
    seed: int = 0,
    first: Sequence[Trial] = (),
    progress: Callable[[int, int, TrialResult | None], None] | None = None,
) -> list[TrialResult]:
    """Runs the search.

    Args:
        space: what may be tried.
        score: gives a trial's losses, one batch of images after the other; the same images in the same order for every trial.
        log: where finished trials go and known ones come from.
        trials: how many to try, `first` and those that the log knows included.
        seed: of all that is drawn.
        first: trials to begin with, such as the method's defaults.
        progress: called as (trials done, of, the best so far) before each trial.

    Returns:
        Every complete result, the best first.

    Raises:
        UserError: no schedule of the space meets the budget.
    """
    rng = random.Random(seed)
    complete: list[TrialResult] = []
    schedules: dict[Trial, Schedule | None] = {}
    seen: set[tuple[Any, ...]] = set()
    queue = list(first)
    done = misses = 0
    while done < trials:
        if queue:
            trial = queue.pop(0)
        elif done < len(first) + DRAWN_FIRST or done % DRAWN_LATER == 0 or not complete:
            trial = space.drawn(rng)
        else:
            # Changes of the best; from time to time two in a row, so that the search can leave a hollow.
            trial = space.changed(rng.choice(complete[:PARENTS]).trial, rng)
            if rng.random() < 0.3:
                trial = space.changed(trial, rng)
        if trial not in schedules:
            schedules[trial] = space.schedule(trial)
        schedule = schedules[trial]
        same = (schedule.tokens, trial.options) if schedule else None
        if schedule is None or same in seen:
            misses += 1
            if misses > MISSES:
                if not complete:
                    raise UserError(
                        f"no schedule with {space.fewest_stages} to {space.most_stages} stages meets budget {space.budget:g}"
                    )
                break  # a small space, tried out
            continue
        assert same is not None
        seen.add(same)
        misses = 0
        best = complete[0] if complete else None
        if progress is not None:
            progress(done, trials, best)
        result = _run(trial, schedule, score, log, best)
        done += 1
        if result.complete:
            complete.append(result)
            complete.sort(key=lambda r: (r.loss, r.trial.key))
    return complete


def _run(trial: Trial, schedule: Schedule, score: Scorer, log: TrialLog, best: TrialResult | None) -> TrialResult:
    if trial.key in log.known:
        losses, whole = log.known[trial.key]
        return TrialResult(trial, schedule, losses, whole)
    seen: list[float] = []
    for part in score(schedule, dict(trial.options)):
        seen += [float(f"{loss:.6g}") for loss in part]  # as the log keeps them, so that a resumed search decides alike
        if best is not None and len(seen) < len(best.losses) and _hopeless(seen, best.losses):
            result = TrialResult(trial, schedule, tuple(seen), False)
            log.add(result)
            return result
    result = TrialResult(trial, schedule, tuple(seen), True)
    log.add(result)
    return result


def _hopeless(losses: Sequence[float], best: Sequence[float]) -> bool:
    """Whether the paired difference to the best is above 0 by more than `EARLY` standard errors."""
    differences = [a - b for a, b in zip(losses, best)]
    count = len(differences)
    mean = sum(differences) / count
    spread = sum((d - mean) ** 2 for d in differences) / max(1, count - 1)
    return mean > EARLY * math.sqrt(spread / count)
