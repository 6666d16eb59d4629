"""Where networks are scored: in this process one after the other, or in several processes at once (`--workers`).

The process that searches proposes networks, keeps the trials and decides which are dropped; workers score, batch by batch, and keep nothing. So one
journal or database serves any number of them, and a worker that is killed loses the network that it was scoring.

A worker is `python -m edge_tprune.search.workers FD`. It is given the scorer over a socket that no other process has, and ends when that is closed.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from edge_tprune.documents import MethodOptions
from edge_tprune.errors import InternalError, UserError
from edge_tprune.processes import child_environment, signal_name

Losses = Iterator[Sequence[float]]
Scorer = Callable[..., Losses]
"""(method, tokens after each block, options) -> the losses of one batch of images after the other. With a fourth argument only of so many batches."""

_DEATHS = 3  # of workers in a row, without a network scored between: the next would die as well
_STOP_S = 10.0


class Network(NamedTuple):
    """What is to be scored."""

    method: str
    tokens: tuple[int, ...]  #: after each block
    options: MethodOptions
    batches: int | None = None  #: only so many


@dataclass(frozen=True)
class Event:
    """What happened to a network that is being scored."""

    key: int
    losses: Sequence[float] | None  #: of its next batch; None where it is finished, or lost
    lost: bool = False  #: whether the process that scored it was killed


class Scoring(Protocol):
    """A place where networks are scored."""

    @property
    def free(self) -> int:
        """How many more can be started now."""

    def start(self, key: int, network: Network) -> None:
        """Begins to score a network; there must be a free place."""

    def next(self) -> Event:
        """Waits for what happens next; something must have been started."""

    def stop(self, key: int) -> None:
        """Gives up the network of the last event."""


class Here:
    """This process: one network at a time."""

    def __init__(self, score: Scorer) -> None:
        self._score = score
        self._running: tuple[int, Losses] | None = None

    @property
    def free(self) -> int:
        """One or none."""
        return int(self._running is None)

    def start(self, key: int, network: Network) -> None:
        """Nothing is computed yet."""
        more = () if network.batches is None else (network.batches,)
        self._running = key, iter(self._score(network.method, network.tokens, network.options, *more))

    def next(self) -> Event:
        """Computes the next batch."""
        assert self._running is not None
        key, losses = self._running
        try:
            part = next(losses, None)
        except BaseException:
            self._running = None
            raise
        if part is None:
            self._running = None
        return Event(key, part)

    def stop(self, key: int) -> None:
        """The rest is not computed."""
        self._running = None


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    key: int | None = None  #: of what it scores
    waits: bool = False  #: for a word whether to go on

    def end(self) -> int:
        """Its exit code."""
        self.connection.close()
        self.process.kill()
        return self.process.wait(_STOP_S)


class Workers:
    """Processes that score networks, each a copy of the scorer.

    Args:
        score: the scorer; must be one that `pickle` takes.
        count: how many.
        threads: CPU threads of all together, at least one for each.
        plugins: files with methods of one's own.
        warn: called with what a person should know.

    Raises:
        UserError: processes cannot be started, or end again and again.
    """

    def __init__(
        self,
        score: Scorer,
        count: int,
        threads: int = 1,
        plugins: Sequence[Path] = (),
        warn: Callable[[str], None] | None = None,
    ) -> None:
        if count < 1:
            raise UserError(f"{count} workers are too few: give 1 or more")
        self._payload = pickle.dumps(score)
        self._plugins = [str(file) for file in plugins]
        self._threads = max(1, threads // count)
        self._warn = warn or (lambda text: None)
        self._deaths = 0
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(self._spawn())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [worker.process.pid for worker in self._workers]

    @property
    def free(self) -> int:
        """Workers that have nothing to do."""
        return sum(worker.key is None for worker in self._workers)

    def start(self, key: int, network: Network) -> None:
        """Sends it to a worker that has nothing to do."""
        worker = next(worker for worker in self._workers if worker.key is None)
        while True:
            try:
                worker.connection.send(tuple(network))
                break
            except OSError:  # it was killed while it had nothing to do
                worker = self._replace(worker)
        worker.key = key

    def next(self) -> Event:
        """Of any worker."""
        for worker in self._workers:
            if worker.waits:
                worker.waits = False
                self._answer(worker, True)
        (ready, *_) = wait([worker.connection for worker in self._workers if worker.key is not None])
        worker = next(worker for worker in self._workers if worker.connection is ready)
        key = worker.key
        assert key is not None
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return Event(key, None, lost=True)
        if kind == "error":
            raise _as_error(*value)
        if kind == "end":
            worker.key = None
            self._deaths = 0
            return Event(key, None)
        worker.waits = True
        return Event(key, value)

    def stop(self, key: int) -> None:
        """The worker is free again."""
        worker = next(worker for worker in self._workers if worker.key == key)
        assert worker.waits
        worker.key, worker.waits = None, False
        self._answer(worker, False)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        while self._workers:
            self._workers.pop().end()

    def _answer(self, worker: _Worker, go_on: bool) -> None:
        try:
            worker.connection.send(go_on)
        except OSError:  # killed meanwhile: found out when it is next read from or written to
            return

    def _replace(self, worker: _Worker) -> _Worker:
        """Another worker in place of one that died."""
        code = worker.end()
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with code {code}"
        self._deaths += 1
        if self._deaths >= _DEATHS:
            raise UserError(
                f"{self._deaths} worker processes in a row ended before they had scored a network (the last one {how}): each needs memory for the "
                "network and the images. Give fewer --workers"
            )
        self._warn(f"a worker process {how}: its network is scored again by another")
        place = self._workers.index(worker)
        self._workers[place] = self._spawn()
        return self._workers[place]

    def _spawn(self) -> _Worker:
        own, its = Pipe()
        threads = str(self._threads)
        environment = {**child_environment(), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, "-m", __name__, str(its.fileno())]
        try:
            process = subprocess.Popen(
                command, env=environment, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stdout=sys.__stderr__,
                start_new_session=True,
            )  # fmt: skip  # Ctrl-C is for the process that searches
        except OSError as error:
            own.close()
            raise UserError(f"a worker process cannot be started: {error.strerror or error}. Give fewer --workers") from error
        finally:
            its.close()
        worker = _Worker(process, own)
        try:
            own.send(self._plugins)
            own.send_bytes(self._payload)
        except OSError:  # found out when it is first given something to do
            pass
        return worker


def score_all(
    place: Scoring, networks: Sequence[Network], progress: Callable[[int, int], None] = lambda done, of: None
) -> list[float]:
    """The mean losses of networks over the images, in their order; one whose worker was killed is scored again."""
    found: dict[int, float] = {}
    losses: dict[int, list[float]] = {}
    left = list(range(len(networks)))[::-1]
    while len(found) < len(networks):
        progress(len(found), len(networks))
        while left and place.free:
            key = left.pop()
            losses[key] = []
            place.start(key, networks[key])
        event = place.next()
        if event.lost:
            left.append(event.key)
        elif event.losses is not None:
            losses[event.key] += event.losses
        else:
            values = losses.pop(event.key)
            found[event.key] = sum(values) / len(values)
    return [found[key] for key in range(len(networks))]


class _RemoteError(Exception):
    """Says where in the worker an error arose."""


def _as_error(mistake: bool, text: str, trace: str) -> Exception:
    if mistake:
        return UserError(text)
    error = InternalError(f"in a worker process: {text}")
    error.__cause__ = _RemoteError(f"\n{trace}")
    return error


def serve(connection: Connection) -> None:
    """What a worker does: scores what it is sent, until the other end is closed."""
    try:
        plugins = connection.recv()
        if plugins:
            from edge_tprune.reduction.plugins import load_plugin

            for file in plugins:
                load_plugin(Path(file))
        score: Scorer = pickle.loads(connection.recv_bytes())  # from the process that started this one
        while True:
            _score(connection, score, Network(*connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # whoever started this process may have ended in the middle of a message
            connection.send(("error", (isinstance(error, UserError), text, traceback.format_exc())))


def _score(connection: Connection, score: Scorer, network: Network) -> None:
    more = () if network.batches is None else (network.batches,)
    for part in score(network.method, network.tokens, network.options, *more):
        connection.send(("losses", list(part)))
        if not connection.recv():
            return
    connection.send(("end", None))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
