"""The search over configurations: seeded, resumable, racing, and never outside what was asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_tprune.errors import UserError
from edge_tprune.schedule import NetworkShape, Schedule
from edge_tprune.search.trials import SearchSpace, Trial, TrialLog, search

SHAPE = NetworkShape.plain(197, 1, 12, 192, 192, 768, 28_901_376, 192_000)
SPACE = SearchSpace(SHAPE, 0.65, 2, 4, {"similar": (0.25, 0.5, 0.75), "votes": (1, 2)})


class Landscape:
    """Losses with one known best configuration: late, even removal with similar=0.5; images differ, trials share the difference."""

    def __init__(self, images: int = 40) -> None:
        self.noise = [random.Random(i).random() for i in range(images)]
        self.scored: list[tuple[int, ...]] = []
        self.batches = 0

    def __call__(self, schedule: Schedule, options: Mapping[str, Any]) -> Iterator[list[float]]:
        self.scored.append(schedule.tokens)
        before = (197, *schedule.tokens)
        steps = [before[i] - before[i + 1] for i in range(len(before) - 1)]
        loss = sum((s / 60) ** 2 for s in steps) + abs(options["similar"] - 0.5) + 0.1 * (options["votes"] - 1)
        for start in range(0, len(self.noise), 10):
            self.batches += 1
            yield [loss * (0.5 + n) for n in self.noise[start : start + 10]]


def run(path: Path, trials: int, landscape: Landscape, seed: int = 0, **more: Any) -> list[Any]:
    log = TrialLog(path, {"seed": seed})
    try:
        return search(SPACE, landscape, log, trials=trials, seed=seed, **more)
    finally:
        log.close()


def test_it_finds_what_it_looks_for(tmp_path: Path) -> None:
    found = run(tmp_path / "log", 80, Landscape())
    assert dict(found[0].trial.options) == {"similar": 0.5, "votes": 1}
    drawn = [SPACE.drawn(random.Random(i)) for i in range(80)]
    scored = []
    for trial in drawn:
        if schedule := SPACE.schedule(trial):
            losses = [loss for part in Landscape()(schedule, dict(trial.options)) for loss in part]
            scored.append(sum(losses) / len(losses))
    assert found[0].loss < min(scored), "better than as many trials drawn blindly"
    assert [r.loss for r in found] == sorted(r.loss for r in found)


def test_the_same_seed_tries_the_same(tmp_path: Path) -> None:
    first, second, third = Landscape(), Landscape(), Landscape()
    assert run(tmp_path / "a", 20, first) == run(tmp_path / "b", 20, second)
    run(tmp_path / "c", 20, third, seed=1)
    assert first.scored == second.scored != third.scored
    assert len(set(first.scored)) > 10


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = Landscape()
    wanted = run(tmp_path / "whole", 25, whole)

    class Stops(Landscape):
        def __call__(self, schedule: Schedule, options: Mapping[str, Any]) -> Iterator[list[float]]:
            if len(self.scored) == 11:
                raise KeyboardInterrupt
            return super().__call__(schedule, options)

    stopped = Stops()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "log", 25, stopped)
    with (tmp_path / "log").open("ab") as stream:
        stream.write(b'{"trial": "[[4')  # a line that a power cut left
    rest = Landscape()
    assert run(tmp_path / "log", 25, rest) == wanted
    assert stopped.scored + rest.scored == whole.scored, "nothing is scored twice"
    again = Landscape()
    assert run(tmp_path / "log", 25, again) == wanted
    assert again.scored == []
    for line in (tmp_path / "log").read_text().splitlines():
        json.loads(line)


def test_a_finished_search_goes_on_when_more_trials_are_asked_for(tmp_path: Path) -> None:
    whole, part, rest = Landscape(), Landscape(), Landscape()
    wanted = run(tmp_path / "whole", 40, whole)
    run(tmp_path / "log", 15, part)
    assert run(tmp_path / "log", 40, rest) == wanted
    assert part.scored + rest.scored == whole.scored
    assert len(part.scored) == 15


def test_a_damaged_line_is_told_and_its_trial_runs_again(tmp_path: Path) -> None:
    wanted = run(tmp_path / "log", 12, Landscape())
    lines = (tmp_path / "log").read_text().splitlines()
    lines[3], lines[7] = lines[3][:20], '["something", "else"]'
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    log = TrialLog(tmp_path / "log", {"seed": 0})
    assert log.damaged == [4, 8]
    log.close()
    again = Landscape()
    assert run(tmp_path / "log", 12, again) == wanted
    assert len(again.scored) == 2


def test_hopeless_trials_are_dropped_early(tmp_path: Path) -> None:
    landscape = Landscape(400)
    found = run(tmp_path / "log", 30, landscape)
    rows = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[1:]]
    dropped = [row for row in rows if not row["complete"]]
    assert dropped
    assert landscape.batches < 0.7 * 30 * 40, "racing saves most of the work"
    assert all(len(row["losses"]) < 400 for row in dropped)
    assert {tuple(row["tokens"]) for row in rows} == set(landscape.scored)
    assert len(found) + len(dropped) == 30
    best = next(row for row in rows if row["trial"] == found[0].trial.key)["losses"]
    for row in dropped:
        seen = row["losses"]
        assert sum(seen) / len(seen) > sum(best[: len(seen)]) / len(seen), "nothing better was thrown away"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 12), low=st.integers(1, 4), more=st.integers(0, 8))
def test_trials_stay_inside_the_space(seed: int, steps: int, low: int, more: int) -> None:
    rng = random.Random(seed)
    space = SearchSpace(SHAPE, 0.65, low, low + more, {"a": (1, 2)})
    trial = space.drawn(rng)
    for _ in range(steps):
        assert low <= len(trial.blocks) == len(trial.weights) <= low + more
        assert list(trial.blocks) == sorted(set(trial.blocks))
        assert 1 <= trial.blocks[0] <= trial.blocks[-1] <= 12
        assert dict(trial.options)["a"] in (1, 2)
        schedule = space.schedule(trial)
        if schedule is not None:
            assert abs(schedule.share - 0.65) <= 0.0065 + 1e-9
            removing = {b for b, (x, y) in enumerate(zip((197, *schedule.tokens), schedule.tokens), 1) if y < x}
            assert removing <= set(trial.blocks)
        trial = space.changed(trial, rng)


def test_the_defaults_run_first(tmp_path: Path) -> None:
    start = Trial((4, 7, 10), (1.0, 1.0, 1.0), (("similar", 0.5), ("votes", 1)))
    landscape = Landscape()
    found = run(tmp_path / "log", 1, landscape, first=[start])
    assert [r.trial for r in found] == [start]


def test_a_small_space_ends(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "log", {})
    tight = SearchSpace(NetworkShape.plain(17, 1, 2, 24, 24, 96, 1000, 10), 0.8, 1, 1, {"votes": (1, 2), "similar": (0.5,)})
    found = search(tight, Landscape(), log, trials=500)
    assert 2 <= len(found) <= 4
    even = SearchSpace(SHAPE, 0.65, 12, 12, removal="count").schedule(Trial(tuple(range(1, 13)), (1.0,) * 12))
    assert even is not None
    before = (197, *even.tokens)
    assert {x - y for x, y in zip(before, even.tokens)} <= {10, 11, 12}
    log.close()


def test_a_budget_that_nothing_meets_is_refused(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "log", {})
    with pytest.raises(UserError, match=r"no schedule with 1 to 1 stages meets budget 0\.05"):
        search(SearchSpace(SHAPE, 0.05, 1, 1), Landscape(), log, trials=2)
    log.close()


def test_foreign_logs_are_left_alone(tmp_path: Path) -> None:
    run(tmp_path / "log", 3, Landscape())
    before = (tmp_path / "log").read_bytes()
    with pytest.raises(UserError, match=r"is the log of another search \(seed was 0, now 1\)"):
        TrialLog(tmp_path / "log", {"seed": 1})
    assert (tmp_path / "log").read_bytes() == before
    (tmp_path / "notes").write_text("milk, eggs\n")
    with pytest.raises(UserError, match="is not the log of a search"):
        TrialLog(tmp_path / "notes", {"seed": 1})
    assert (tmp_path / "notes").read_text() == "milk, eggs\n"
