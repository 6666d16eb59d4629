"""How rooms start Python processes of their own, and how signals end a command."""

from __future__ import annotations

import _thread
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")

_SLICE_S = 0.2
_AGAIN_S = 0.01  #: until a signal that Python swallowed comes again

#: What ends a command: Ctrl-C, `kill` or a service manager, and a terminal that is closed.
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndSignal(KeyboardInterrupt):
    """A signal that ends the command in order."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


_received: list[int] | None = None  # while `end_signals` is active: the signals that came


@contextmanager
def end_signals(last: bool = False) -> Iterator[list[int]]:
    """Lets SIGINT, SIGTERM and SIGHUP end what is inside alike: by an `EndSignal`, which is a KeyboardInterrupt.

    They do so even where they were ignored when this process was started, as a shell does with SIGINT for its background jobs. The
    one exception is a SIGHUP that was ignored: `nohup` asks for that. After the first signal SIGTERM and SIGHUP are ignored, so that
    an orderly end is not cut short; another Ctrl-C still interrupts. Python handles signals in the main thread only; elsewhere
    nothing changes. May be nested.

    Args:
        last: nothing but the end of the process follows: a signal that comes then ends it at once, without a word.

    Yields:
        The numbers of the signals that came.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    if _received is not None:
        yield _received
        return
    received = _received = []
    hook = sys.unraisablehook
    coming: list[int] = []  # again, after a moment

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _loads_extension(frame):
            come_again(number)
            return
        received.append(number)
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, _ignore)
        raise EndSignal(number)

    def unraisable(what: Any) -> None:
        """Python drops what is raised while it runs a finalizer or a callback of a weak reference: the signal comes again afterwards."""
        if not isinstance(what.exc_value, EndSignal):
            hook(what)
            return
        number = what.exc_value.number
        received.remove(number)
        if received:  # another one is heard already
            return
        listen()
        come_again(number)

    def come_again(number: int) -> None:
        if not coming:
            coming.append(number)
            _thread.start_new_thread(send_again, (threading.get_ident(), number))  # takes no lock, as a finalizer must not

    def send_again(thread: int, number: int) -> None:
        time.sleep(_AGAIN_S)
        coming.clear()
        if not received:
            with suppress(ProcessLookupError):
                signal.pthread_kill(thread, number)

    def leave(number: int, frame: FrameType | None) -> None:
        first = received[0] if received else number
        if first == signal.SIGINT:
            os._exit(128 + first)
        end_by_signal(first)

    def listen() -> None:
        for number in END_SIGNALS:
            if number != signal.SIGHUP or before[number] is not signal.SIG_IGN:
                signal.signal(number, interrupt)

    before = {number: signal.getsignal(number) for number in END_SIGNALS}
    listen()
    sys.unraisablehook = unraisable
    try:
        yield received
    finally:
        _received = None
        sys.unraisablehook = hook
        for number, handler in before.items():
            ending: Any = signal.SIG_DFL if handler is None else handler
            signal.signal(number, leave if last and handler is not signal.SIG_IGN else ending)


_EXTENSION = {ExtensionFileLoader.create_module.__code__, ExtensionFileLoader.exec_module.__code__}


def _loads_extension(frame: FrameType | None) -> bool:
    """Whether a module in C or C++ is being loaded, which may end the process where an exception comes out of what it calls."""
    while frame is not None:
        if frame.f_code in _EXTENSION:
            return True
        frame = frame.f_back
    return False


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Lets what is inside end before a signal is heard: for what takes a moment and must not be cut short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if came:
        signal.raise_signal(came[0])


def ignore_signals() -> None:
    """Nothing interrupts the orderly end of a command any more, not even another Ctrl-C. Inside `end_signals` only."""
    if _received is not None:
        for number in END_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN: child processes would inherit it, and Python complains about a signal that came just before it was set."""


def result_of(future: Future[T]) -> T:
    """What a future gives or raises, waited for in slices: a signal that comes just before a wait without an end is not heard until that ends."""
    while not wait([future], _SLICE_S).done:
        pass
    return future.result()


def end_process(process: subprocess.Popen[Any], patience_s: float) -> bool:
    """Waits for a process to end; kills one that takes longer than that, and does not wait for ever for one that the system cannot end.

    A process in a system call that does not return, as when a sensor's bus hangs, outlives even SIGKILL until that call returns.

    Returns:
        Whether it has ended.
    """
    for _ in range(2):
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
        else:
            return True
    return False


def signal_name(number: int) -> str:
    """ "SIGTERM"; "signal 40" of one that has no name in Python."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_by_signal(number: int) -> None:
    """Ends this process as the signal would have, so that a shell or a service manager sees what happened."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def child_environment() -> dict[str, str]:
    """Finds this very package in the child, and nothing that happens to lie in the current directory. The child ends when it has done its work."""
    home = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONINSPECT"}
    return {**inherited, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


_STATUS = Path("/proc/self/statm")


class _MemoryGuard:
    """A finder of modules that finds none."""

    needed: ClassVar = {"polars": 512 << 20, **dict.fromkeys(("scipy.linalg", "scipy.special", "scipy.stats"), 192 << 20)}
    """Bytes that a module takes while it is loaded, with room: polars 380 MB, scipy.special 130 MB, scipy.stats 70 MB more."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Refuses what there is no memory for.

        Raises:
            MemoryError: less is left than the module takes.
        """
        left = memory_left() if name in cls.needed else None
        if left is not None and left < cls.needed[name]:
            raise MemoryError


def memory_left() -> int | None:
    """Bytes of what this process may have at most (ulimit -v); None where there is no limit, or the system does not say what it has."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or not _STATUS.exists():
        return None
    return limit - int(_STATUS.read_text().split()[0]) * resource.getpagesize()


def guard_memory() -> None:
    """Where this process may have only so much memory (ulimit -v), libraries are not loaded that would hang or crash for want of it.

    scipy's OpenBLAS waits for ever for memory that it does not get, deaf to signals; polars ends the process.
    """
    if memory_left() is not None:
        sys.meta_path.insert(0, _MemoryGuard)
