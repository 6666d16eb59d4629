"""How signals are called, and waits that hear them."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from types import ModuleType

import pytest

from edge_tprune.processes import EndSignal, child_environment, end_process, end_signals, result_of, signal_name


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


def test_a_child_ends_whatever_python_is_asked_to_do_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONINSPECT", "1")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.exit(7)"],
        stdin=subprocess.DEVNULL,
        env=child_environment(),
        check=False,
        timeout=60,
    )
    assert done.returncode == 7


class _Closes:
    """Something that is ended while a signal comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_that_python_swallows_in_a_finalizer_is_heard_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with end_signals() as received:
        begin = time.monotonic()
        with pytest.raises(EndSignal, match="SIGTERM"):
            for _ in range(3):
                _Closes()
                time.sleep(0.001)
            time.sleep(30)
        assert time.monotonic() - begin < 20
        assert received == [signal.SIGTERM]
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before
    assert capfd.readouterr().err == ""


def test_a_module_in_c_is_loaded_to_its_end_before_a_signal_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them call Python, and end the process where an exception comes out of that."""
    loaded = []

    def load(module: ModuleType) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.1)
        loaded.append(module.__name__)

    monkeypatch.setattr(importlib._bootstrap_external._imp, "exec_dynamic", load)  # type: ignore[attr-defined]
    with end_signals() as received:
        begin = time.monotonic()
        with pytest.raises(EndSignal, match="SIGTERM"):
            ExtensionFileLoader("fast", "fast.so").exec_module(ModuleType("fast"))
            time.sleep(30)
        assert time.monotonic() - begin < 20
        assert received == [signal.SIGTERM]
    assert loaded == ["fast"]


_TRACE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(0x4206, int(sys.argv[1]), None, None), flush=True)  # PTRACE_SEIZE
sys.stdin.read()
"""


def test_a_process_ends_by_itself_or_is_killed() -> None:
    assert end_process(subprocess.Popen([sys.executable, "-c", ""]), 30)
    stubborn = subprocess.Popen(["sleep", "60"])
    assert end_process(stubborn, 0.1)
    assert stubborn.returncode == -signal.SIGKILL


def test_a_process_that_the_system_cannot_end_is_left() -> None:
    """As with a sensor's bus that hangs: here a tracer keeps the killed process from being reaped."""
    child = subprocess.Popen(["sleep", "60"])
    with subprocess.Popen(
        [sys.executable, "-c", _TRACE, str(child.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tracer:
        assert tracer.stdout is not None
        try:
            if tracer.stdout.readline().strip() != b"0":
                pytest.skip("tracing another process is not allowed here")
            begin = time.monotonic()
            assert not end_process(child, 0.2)
            assert time.monotonic() - begin < 30
        finally:
            tracer.kill()
            child.kill()
    child.wait()
