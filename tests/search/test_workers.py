"""Networks scored in processes of their own: the same losses, whatever is killed, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from optuna.trial import TrialState

from edge_tprune.errors import InternalError, UserError
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction.host import network_shape
from edge_tprune.search.score import FixedOptions, Scorer
from edge_tprune.search.study import open_storage, open_study, search
from edge_tprune.search.workers import Event, Here, Network, Workers, score_all, serve
from tests.search.landscape import Breaks, Dies, Landscape
from tests.search.spaces import SPACE

OPTIONS = {"similar": 0.25, "votes": 2}
NETWORKS = [
    Network("zero", (197,) * block + (100,) * (12 - block), OPTIONS, batches) for block in range(6) for batches in (None, 3)
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Workers]:
    """Two workers. A test that kills one has two again afterwards."""
    with Workers(Landscape(), 2) as workers:
        yield workers


def study(path: Path) -> optuna.Study:
    return open_study(open_storage(path, None), "0.65", {"seed": 0})


class Killing:
    """Two workers, of which one is killed by `kill -9` in the middle of a network: after its first batch, for which alone no trial is pruned."""

    def __init__(self, workers: Workers, after: int) -> None:
        self.workers, self.left, self.killed, self.begun = workers, after, -1, set[int]()
        self.start, self.stop = workers.start, workers.stop

    @property
    def free(self) -> int:
        return self.workers.free

    def next(self) -> Event:
        event = self.workers.next()
        self.left -= 1
        is_first = event.key not in self.begun
        self.begun.add(event.key)
        if self.left <= 0 and self.killed < 0 and event.losses is not None and is_first:
            (pid,) = [worker.process.pid for worker in self.workers._workers if worker.key == event.key]
            os.kill(pid, signal.SIGKILL)
            self.killed = event.key
        return event


def test_they_give_the_losses_of_this_process_in_order(pair: Workers) -> None:
    reported: list[tuple[int, int]] = []
    assert score_all(pair, NETWORKS, lambda done, of: reported.append((done, of))) == score_all(Here(Landscape()), NETWORKS)
    assert reported[0] == (0, 12)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


def test_a_search_in_two_processes_tries_what_was_asked_for_and_no_network_twice(pair: Workers, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    found = search(study(tmp_path / "found"), SPACE, pair, trials=14, report=lambda done, of, best: reported.append((done, of)))
    trials = study(tmp_path / "found").get_trials()
    decided = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(decided) == 14
    assert len({(*trial.user_attrs["tokens"], *trial.user_attrs["options"].values()) for trial in decided}) == 14
    assert not [trial for trial in trials if trial.state is TrialState.RUNNING]
    for result in found:
        expected = [
            loss for part in Landscape()("zero", result.schedule.tokens, dict(result.configuration.options)) for loss in part
        ]
        assert list(result.losses) == pytest.approx(expected, rel=1e-5)
    assert {of for _, of in reported} == {14}
    assert pair.free == 2
    assert search(study(tmp_path / "found"), SPACE, Landscape(), trials=14) == found, "one worker goes on from there"


def test_a_killed_worker_loses_one_trial_which_is_tried_again(pair: Workers, tmp_path: Path) -> None:
    killing = Killing(pair, 20)
    search(study(tmp_path / "found"), SPACE, killing, trials=10)
    trials = study(tmp_path / "found").get_trials()
    lost = trials[killing.killed]
    assert (lost.state, "losses" in lost.user_attrs) == (TrialState.FAIL, False)
    (again,) = [trial for trial in trials if trial.user_attrs.get("again")]
    assert again.params == lost.params
    assert again.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) == 10
    assert score_all(Killing(pair, 5), NETWORKS) == score_all(Here(Landscape()), NETWORKS), "a table is whole all the same"


def test_an_interrupted_search_keeps_what_was_scored_and_leaves_no_process(tmp_path: Path) -> None:
    def stop(done: int, of: int, best: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Workers(Landscape(), 2) as workers:
        pids = workers.pids
        search(study(tmp_path / "found"), SPACE, workers, trials=10, report=stop)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    rest = Landscape()
    search(study(tmp_path / "found"), SPACE, rest, trials=10)
    assert len(rest.scored) == 7


def test_workers_that_cannot_live_and_errors_in_them_are_one_clear_error() -> None:
    reported: list[str] = []
    with (
        Workers(Dies(), 1, warn=reported.append) as workers,
        pytest.raises(UserError, match=r"3 worker processes in a row ended .*SIGKILL"),
    ):
        score_all(workers, NETWORKS[:1])
    assert reported == ["a worker process was ended by SIGKILL: its network is scored again by another"] * 2
    with Workers(Breaks(), 1) as workers:
        with pytest.raises(InternalError, match="in a worker process: ZeroDivisionError: division by zero") as caught:
            score_all(workers, [Network("zero", (1,), {})])
        assert "landscape.py" in str(caught.value.__cause__)
    with Workers(Breaks(), 1) as workers, pytest.raises(UserError, match=r"^no such thing$"):
        score_all(workers, [Network("zero", (2,), {})])
    with pytest.raises(UserError, match="0 workers are too few"):
        Workers(Landscape(), 0)


def test_the_scorer_of_a_network_gives_the_same_losses_in_another_process(loaded: LoadedModel) -> None:
    """What a worker is given is a copy by `pickle`, made here; that workers load it is tested by hand (importing PyTorch takes seconds)."""
    images = torch.randn(2, 3, *loaded.preprocessing.input_size[1:], generator=torch.Generator().manual_seed(0))
    score = FixedOptions(Scorer(loaded.model, [images]), {"fuse": True})
    tokens = (*network_shape(loaded.model).full_schedule()[:2], 20, 20)
    (expected,) = score("evit", tokens, {})
    (found,) = pickle.loads(pickle.dumps(score))("evit", tokens, {})
    assert found == expected
    assert expected != next(iter(score.scorer("evit", tokens, {})))


def test_a_worker_whose_parent_ends_in_the_middle_of_a_message_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    here, there = Pipe()
    here.send(())
    os.write(here.fileno(), (1000).to_bytes(4, "big") + b"ten bytes.")  # of the thousand that are announced
    here.close()
    serve(there)
    assert capsys.readouterr().err == ""
