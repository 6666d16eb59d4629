"""How signals are called, and waits that hear them."""

from __future__ import annotations

import signal
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from edge_tprune.processes import result_of, signal_name


def test_every_signal_has_a_name() -> None:
    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(40) == "signal 40"
    assert all(signal_name(number) for number in range(1, signal.NSIG))


def test_a_future_gives_or_raises_what_it_holds() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert result_of(pool.submit(lambda: 7)) == 7
        with pytest.raises(TimeoutError, match="its own"):
            result_of(pool.submit(lambda: (_ for _ in ()).throw(TimeoutError("its own"))))


def test_an_interruption_ends_the_wait_and_not_the_work() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    never: Future[None] = Future()
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            result_of(never)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not never.done()
