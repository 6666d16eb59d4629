"""The emulated board over real SSH, and what tests do with it.

The board runs for the whole session, on a fresh overlay of its root. Nothing waits for a time: it waits for something to
happen, with limits that a slow machine under emulation does not reach.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.deploy.hosts import Target
from edge_tprune.deploy.journey import Deployment, Options, deploy
from tests.agent.tiny_bundle import write_bundle

SOURCE = Path(__file__).resolve().parents[2]
PROGRAM = SOURCE / "deploy" / "emulated-board" / "board.py"
DIRECTORY = SOURCE / ".board"
LIMIT_S = 600
QUICK = ("--rounds", "2", "--seconds", "0.2", "--warmup", "0.1", "--baseline", "0.5")
LONG = ("--rounds", "500", *QUICK[2:])
TARGET = Target("board")
OPTIONS = Options(offline=True, ssh_config=DIRECTORY / "ssh_config")


@dataclass
class Watcher:
    """Remembers the steps, and does something at one of them or when copying is half-way."""

    at_step: dict[str, Callable[[], None]] = field(default_factory=dict)
    half_way: Callable[[], None] | None = None
    steps: list[str] = field(default_factory=list)

    def step(self, text: str) -> None:
        self.steps.append(text)
        for name, action in self.at_step.items():
            if text.startswith(name):
                action()

    def advance(self, done: int, of: int) -> None:
        if self.half_way is not None and done >= of / 2:
            action, self.half_way = self.half_way, None
            action()

    def live(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Emulated:
    """The running board."""

    home: Path  #: the user's home as this machine sees it

    @property
    def agent(self) -> Path:
        return self.home / ".edge-tprune"

    def root(self, *words: str, check: bool = True) -> int:
        """A command as root on the board."""
        code = subprocess.run([sys.executable, PROGRAM, "exec", "--", *words], stdin=subprocess.DEVNULL, check=False).returncode
        assert code == 0 or not check, words
        return code

    def user(self, command: str) -> str:
        """A command line as the user, over SSH."""
        ssh = ["ssh", "-F", str(DIRECTORY / "ssh_config"), "-o", "BatchMode=yes", "board", command]
        return subprocess.run(ssh, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout

    def break_connections(self) -> None:
        """Ends every SSH session on the board, as a network that fails or a board that reboots would."""
        for process in self._processes("/usr/sbin/sshd\0-D\0-e\0", "\0-R\0"):
            with suppress(ProcessLookupError):
                os.kill(process, 9)

    def kill_agent(self) -> None:
        """SIGKILL to the agent, as the kernel does when memory runs out."""
        for process in self._processes("-m\0edge_tprune\0profile"):
            with suppress(ProcessLookupError):
                os.kill(process, 9)

    def _processes(self, *signs: str) -> list[int]:
        """The board's processes whose command line holds all `signs`; its namespace is below this machine's."""
        holder = Path(f"/proc/{(DIRECTORY / 'run.pid').read_text().strip()}/ns/pid_for_children").readlink()
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                mine = (directory / "ns/pid").readlink() == holder
                command = (directory / "cmdline").read_text()
                if mine and all(sign in command for sign in signs):
                    found.append(int(directory.name))
        return found


@pytest.fixture(scope="session")
def board() -> Iterator[Emulated]:
    checked = subprocess.run([sys.executable, PROGRAM, "check"], capture_output=True, text=True, check=False)
    if checked.returncode:
        pytest.skip(checked.stderr.strip() or "the emulated board cannot run here")
    log = DIRECTORY / "run.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, PROGRAM, "run", "--fresh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
        assert process.stdin
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert line == b"ready\n", log.read_text()
            yield Emulated(DIRECTORY / "upper" / "home" / "jetson")
        finally:
            process.stdin.close()  # which ends it
            process.wait(timeout=LIMIT_S)


@pytest.fixture(scope="session")
def board_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("host") / "tiny"
    return Bundle.open(write_bundle(path, {"big": (3, 128), "small": (1, 64)}))


@pytest.fixture
def installed(board: Emulated, board_bundle: Bundle) -> Emulated:
    """The board with agent and bundle; installing takes most of the time here, so what is there stays."""
    done(deploy(board_bundle, TARGET, OPTIONS, Watcher()))
    return board


@contextmanager
def wait_for(condition: Callable[[], bool], then: Callable[[], None]) -> Iterator[None]:
    """While the body runs: as soon as `condition` holds, does `then`."""
    over, happened = threading.Event(), threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + LIMIT_S
        while not over.wait(0.02) and time.monotonic() < deadline:
            if condition():
                then()
                happened.set()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LIMIT_S)
    assert happened.is_set(), "what the test waited for did not happen"


def done(deployment: Deployment) -> Deployment:
    assert deployment.error is None, deployment.error
    return deployment


def profiles(board: Emulated) -> list[Path]:
    return sorted((board.agent / "profiles").glob("[!.]*"))


def has_round(board: Emulated, known: list[Path]) -> Callable[[], bool]:
    """Whether a new profile on the board has a measured turn."""

    def look() -> bool:
        with suppress(OSError):
            return any(
                b'"kind":"round"' in (path / "samples.jsonl").read_bytes() for path in profiles(board) if path not in known
            )
        return False

    return look
