"""Deploying to the emulated board over real SSH, and breaking it on the way. Run by `make test-board` after `make board`.

The board runs for the whole session, on a fresh overlay of its root. Nothing here waits for a time: it waits for something to
happen, with limits that a slow machine under emulation does not reach.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import edge_tprune
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli import main
from edge_tprune.cli.fit_runs import Runs
from edge_tprune.deploy import journey, wheels
from edge_tprune.deploy.hosts import Target
from edge_tprune.deploy.journey import Deployment, Options, deploy
from edge_tprune.deploy.ssh import Connection
from edge_tprune.errors import ConnectionLost, UserError
from edge_tprune.record.reader import read_run
from edge_tprune.record.settings import RunRequest
from tests.agent.tiny_bundle import hash_golden, write_bundle

pytestmark = [pytest.mark.board, pytest.mark.timeout(900)]

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
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("host") / "tiny"
    return Bundle.open(write_bundle(path, {"big": (3, 128), "small": (1, 64)}))


@pytest.fixture
def installed(board: Emulated, bundle: Bundle) -> Emulated:
    """The board with agent and bundle; installing takes most of the time here, so what is there stays."""
    done(deploy(bundle, TARGET, OPTIONS, Watcher()))
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


# --- the journey


def test_from_nothing_to_a_compared_profile(
    board: Emulated, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", str(bundle.path), "board", "--ssh-config", str(DIRECTORY / "ssh_config"), "--offline"]
    arguments += ["--profile", " ".join(QUICK), "--collect", str(tmp_path / "profiles")]
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "VDD_IN" in captured.out  # the doctor's screen, with the simulated board's rails
    assert "Jetson Orin Nano" in captured.out
    (profile,) = (tmp_path / "profiles").iterdir()
    assert str(profile) in captured.out
    run = read_run(profile)
    assert run.end == "complete"
    assert run.document.environment.machine == "aarch64"
    assert "Orin Nano" in str(run.document.environment.board_model)
    assert {entry.budget for entry in run.turns} == {"big", "small"}
    assert main(["compare", str(profile)]) == 0
    assert "small" in capsys.readouterr().out
    for path in (profile, *profile.iterdir()):
        assert path.stat().st_mode & 0o077 == 0


def test_files_on_the_board_are_the_users_alone(installed: Emulated) -> None:
    assert installed.user("stat -c %a ~/.edge-tprune").strip() == "700"  # nobody else comes in, to the venv neither
    assert installed.user("find ~/.edge-tprune -path '*/venv' -prune -o -perm /077 -not -type l -print") == ""


def test_the_commands_that_are_promised_work_there(installed: Emulated) -> None:
    assert installed.user("~/.local/bin/edge-tprune --version").strip() == f"edge-tprune {edge_tprune.__version__}"
    document = json.loads(installed.user("~/.edge-tprune/venv/bin/edge-tprune doctor --json"))
    assert document["board"]["key"] == "orin-nano"
    assert document["ready"]


def test_the_agent_is_small(installed: Emulated) -> None:
    kilobytes = int(installed.user("du -sk ~/.edge-tprune/venv").split()[0])
    print(f"the agent takes {kilobytes / 1000:.1f} MB on the board")
    assert kilobytes < 60_000


def test_fit_measures_on_the_board_and_uses_what_was_measured_again(
    installed: Emulated, bundle: Bundle, tmp_path: Path
) -> None:
    request = RunRequest(runtime="onnxruntime", rounds=1, seconds_per_round=0.1, warmup_seconds=0.1, baseline_seconds=0.0)
    runs = Runs(tmp_path / "profiles", request, TARGET, OPTIONS, quiet=True)
    profile = runs.profile(bundle, "fp32")
    run = read_run(profile)
    assert run.end == "complete"
    assert run.document.environment.machine == "aarch64"
    assert run.document.settings.seconds_per_round == 0.1
    before = profiles(installed)
    assert runs.profile(bundle, "fp32") == profile
    assert profiles(installed) == before


def test_repeating_copies_and_installs_nothing(installed: Emulated, bundle: Bundle) -> None:
    deployment = done(deploy(bundle, TARGET, OPTIONS, Watcher()))
    assert deployment.steps == ["agent up to date", "bundle tiny up to date"]


def test_only_what_changed_is_copied(installed: Emulated, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "changing", {"big": (12, 256), "small": (1, 64)})
    done(deploy(Bundle.open(path), TARGET, OPTIONS, Watcher()))
    with np.load(path / "golden.npz") as data:
        golden = dict(data)
    golden["logits/small"] = golden["logits/small"] + 0.5
    np.savez(path / "golden.npz", **golden)
    hash_golden(path)
    watcher = Watcher()
    sent: list[int] = []
    watcher.advance = lambda done, of: sent.append(of)  # type: ignore[method-assign]
    done(deploy(Bundle.open(path), TARGET, OPTIONS, watcher))
    assert sent[-1] == (path / "golden.npz").stat().st_size + (path / "manifest.json").stat().st_size
    installed.user(
        "~/.edge-tprune/venv/bin/python -c \"from edge_tprune.bundle.bundle import Bundle; Bundle.open('.edge-tprune/bundles/changing')\""
    )


def test_the_real_jtop_service_is_found_and_read(installed: Emulated) -> None:
    """The service of jetson-stats reads the simulated board's files, and the agent reads the service."""
    service = subprocess.Popen([sys.executable, PROGRAM, "jtop"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        installed.user(f"for i in $(seq {LIMIT_S // 2}); do test -S /run/jtop.sock && exit 0; sleep 1; done; exit 1")
        python = "~/.edge-tprune/venv/bin/python"
        document = json.loads(installed.user(f"{python} -m edge_tprune doctor --json"))
        (finding,) = [entry for entry in document["findings"] if entry["topic"] == "jtop"]
        assert finding["level"] == "ok", finding
        # A line may also say that an update did not come in time; the first one with power is waited for.
        line = installed.user(f"timeout {LIMIT_S // 2} {python} -m edge_tprune.telemetry.jtop | grep -m 1 '\"power\"'")
        assert "VDD_IN" in json.dumps(json.loads(line)["power"])
    finally:
        for process in installed._processes("JtopServer"):
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        service.wait(timeout=LIMIT_S)


# --- what goes wrong


def test_a_wrong_host_key_ends_it_before_anything_is_sent(board: Emulated, bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    (tmp_path / "known_hosts").write_text("emulated-board " + " ".join((tmp_path / "other.pub").read_text().split()[:2]) + "\n")
    text = (DIRECTORY / "ssh_config").read_text()
    config = tmp_path / "config"
    config.write_text(text.replace(str(DIRECTORY / "keys" / "known_hosts"), str(tmp_path / "known_hosts")))
    deployment = deploy(bundle, TARGET, replace(OPTIONS, ssh_config=config), Watcher())
    assert isinstance(deployment.error, UserError)
    assert "its host key is not the one that was seen before" in str(deployment.error)
    assert deployment.steps == []


def test_a_connection_that_breaks_while_copying_goes_on_where_it_stopped(installed: Emulated, tmp_path: Path) -> None:
    large = Bundle.open(write_bundle(tmp_path / "large", {"big": (16, 512), "small": (1, 64)}))
    deployment = deploy(large, TARGET, OPTIONS, Watcher(half_way=installed.break_connections))
    assert isinstance(deployment.error, ConnectionLost), deployment.error
    assert not (installed.agent / "bundles" / "large").exists()
    there = sum(file.stat().st_size for file in (installed.agent / "incoming").iterdir())
    assert there > 0
    sent: list[int] = []
    watcher = Watcher()
    watcher.advance = lambda done, of: sent.append(of)  # type: ignore[method-assign]
    done(deploy(large, TARGET, OPTIONS, watcher))
    whole = sum(entry.bytes for entry in large.files.values()) + (large.path / "manifest.json").stat().st_size
    assert sent[-1] == whole - there
    assert (installed.agent / "bundles" / "large" / "manifest.json").exists()


def test_a_connection_that_breaks_while_profiling_ends_the_profile_in_order(
    installed: Emulated, bundle: Bundle, tmp_path: Path
) -> None:
    known = profiles(installed)
    long = replace(OPTIONS, profile=LONG)
    with wait_for(has_round(installed, known), installed.break_connections):
        deployment = deploy(bundle, TARGET, long, Watcher())
    assert isinstance(deployment.error, ConnectionLost), deployment.error
    # Repeated at once: it waits until the board has ended the first, then measures.
    deployment = done(deploy(bundle, TARGET, replace(OPTIONS, profile=QUICK, collect=tmp_path), Watcher()))
    interrupted, complete = sorted(path for path in deployment.collected if path.name not in {known.name for known in known})
    assert read_run(interrupted).end == "interrupted"
    assert read_run(complete).end == "complete"


def test_an_agent_that_is_killed_leaves_a_readable_profile(installed: Emulated, bundle: Bundle, tmp_path: Path) -> None:
    known = profiles(installed)
    long = replace(OPTIONS, profile=LONG, collect=tmp_path)
    with wait_for(has_round(installed, known), installed.kill_agent):
        deployment = deploy(bundle, TARGET, long, Watcher())
    assert deployment.error is not None
    (killed,) = (path for path in deployment.collected if path.name not in {known.name for known in known})
    run = read_run(killed)
    assert run.end is None
    assert run.turns
    again = done(deploy(bundle, TARGET, replace(OPTIONS, profile=QUICK, collect=tmp_path), Watcher()))
    assert any(read_run(path).end == "complete" for path in again.collected)


def test_a_board_without_the_venv_module_is_told_the_package(board: Emulated, bundle: Bundle) -> None:
    board.root("mv", "/usr/lib/python3.11/venv", "/usr/lib/python3.11/venv-away")
    try:
        deployment = deploy(bundle, TARGET, OPTIONS, Watcher())
    finally:
        board.root("mv", "/usr/lib/python3.11/venv-away", "/usr/lib/python3.11/venv")
    assert isinstance(deployment.error, UserError)
    assert "sudo apt-get install python3.11-venv" in str(deployment.error)
    assert deployment.steps == []


def test_a_full_disk_is_said_and_nothing_is_half_there(board: Emulated, tmp_path: Path) -> None:
    """A disk of its own below the agent's directory: full before, and full in the middle."""
    bundle = Bundle.open(write_bundle(tmp_path / "big", {"big": (16, 512), "small": (1, 64)}))
    place = "/home/jetson/.edge-tprune"
    board.root("mkdir", "-p", place)
    board.root("mount", "-t", "tmpfs", "-o", "size=30m,mode=700,uid=1000,gid=1000", "tmpfs", place)
    try:
        deployment = deploy(bundle, TARGET, OPTIONS, Watcher())
        assert isinstance(deployment.error, UserError)
        assert "too full" in str(deployment.error)
        assert board.user(f"ls -A {place}/venv {place}/bundles 2>/dev/null || true").strip() == ""
        with Connection(TARGET, ssh_config=OPTIONS.ssh_config) as connected:
            board.root("mount", "-o", "remount,size=60m", place)
            fill = Watcher(
                half_way=lambda: board.root("sh", "-c", f"yes | head -c 100000000 > {place}/filler", check=False) and None
            )
            with pytest.raises(UserError, match="no space left"):
                journey._copy_bundle(connected, bundle, fill)
            board.root("rm", f"{place}/filler")
            assert journey._copy_bundle(connected, bundle, Watcher())[1] > 0
    finally:
        board.root("umount", place)


def test_several_boards_at_once(
    installed: Emulated, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("board\nboard:1   # nothing listens there\n")
    code = main(["deploy", str(bundle.path), "--hosts", str(hosts), "--ssh-config", str(DIRECTORY / "ssh_config"), "--offline"])
    captured = capsys.readouterr()
    assert code == 2
    assert "agent up to date; bundle tiny up to date" in captured.out
    assert "connection refused" in captured.out
    assert captured.err.splitlines()[-1] == "edge-tprune: 1 of 2 boards failed: board:1"


def test_an_older_agent_is_upgraded_and_an_upgrade_that_breaks_is_repeated(
    installed: Emulated, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "edge_tprune"
    shutil.copytree(Path(edge_tprune.__file__).parent, older, ignore=shutil.ignore_patterns("__pycache__"))
    with (older / "__init__.py").open("a") as stream:
        stream.write("\nolder = True\n")
    with monkeypatch.context() as patch:
        patch.setattr(wheels, "__file__", str(older / "deploy" / "wheels.py"))
        assert done(deploy(bundle, TARGET, OPTIONS, Watcher())).steps[0] == "agent installed"
    asks = "~/.edge-tprune/venv/bin/python -c 'import edge_tprune; print(hasattr(edge_tprune, \"older\"))'"
    assert installed.user(asks).strip() == "True"
    stamp = installed.agent / "venv" / "edge-tprune.json"
    with wait_for(lambda: not stamp.exists(), installed.break_connections):  # the new one is being installed
        deployment = deploy(bundle, TARGET, OPTIONS, Watcher())
    assert isinstance(deployment.error, ConnectionLost), deployment.error
    done(deploy(bundle, TARGET, OPTIONS, Watcher()))
    assert installed.user(asks).strip() == "False"
