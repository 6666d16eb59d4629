"""Breaking a deployment to the emulated board: connections, processes, disks, other versions. Run by `make test-board`."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import edge_tprune
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli import main
from edge_tprune.deploy import journey, wheels
from edge_tprune.deploy.journey import deploy
from edge_tprune.deploy.ssh import Connection
from edge_tprune.errors import ConnectionLost, UserError
from edge_tprune.record.reader import read_run
from tests.agent.tiny_bundle import write_bundle
from tests.deploy.emulated import (
    DIRECTORY,
    LONG,
    OPTIONS,
    QUICK,
    TARGET,
    Emulated,
    Watcher,
    done,
    has_round,
    profiles,
    wait_for,
)

pytestmark = [pytest.mark.board, pytest.mark.timeout(900)]


def test_a_wrong_host_key_ends_it_before_anything_is_sent(board: Emulated, board_bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    (tmp_path / "known_hosts").write_text("emulated-board " + " ".join((tmp_path / "other.pub").read_text().split()[:2]) + "\n")
    text = (DIRECTORY / "ssh_config").read_text()
    config = tmp_path / "config"
    config.write_text(text.replace(str(DIRECTORY / "keys" / "known_hosts"), str(tmp_path / "known_hosts")))
    deployment = deploy(board_bundle, TARGET, replace(OPTIONS, ssh_config=config), Watcher())
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
    installed: Emulated, board_bundle: Bundle, tmp_path: Path
) -> None:
    known = profiles(installed)
    long = replace(OPTIONS, profile=LONG)
    with wait_for(has_round(installed, known), installed.break_connections):
        deployment = deploy(board_bundle, TARGET, long, Watcher())
    assert isinstance(deployment.error, ConnectionLost), deployment.error
    # Repeated at once: it waits until the board has ended the first, then measures.
    deployment = done(deploy(board_bundle, TARGET, replace(OPTIONS, profile=QUICK, collect=tmp_path), Watcher()))
    interrupted, complete = sorted(path for path in deployment.collected if path.name not in {known.name for known in known})
    assert read_run(interrupted).end == "interrupted"
    assert read_run(complete).end == "complete"


def test_an_agent_that_is_killed_leaves_a_readable_profile(installed: Emulated, board_bundle: Bundle, tmp_path: Path) -> None:
    known = profiles(installed)
    long = replace(OPTIONS, profile=LONG, collect=tmp_path)
    with wait_for(has_round(installed, known), installed.kill_agent):
        deployment = deploy(board_bundle, TARGET, long, Watcher())
    assert deployment.error is not None
    (killed,) = (path for path in deployment.collected if path.name not in {known.name for known in known})
    run = read_run(killed)
    assert run.end is None
    assert run.turns
    again = done(deploy(board_bundle, TARGET, replace(OPTIONS, profile=QUICK, collect=tmp_path), Watcher()))
    assert any(read_run(path).end == "complete" for path in again.collected)


def test_a_board_without_the_venv_module_is_told_the_package(board: Emulated, board_bundle: Bundle) -> None:
    board.root("mv", "/usr/lib/python3.11/venv", "/usr/lib/python3.11/venv-away")
    try:
        deployment = deploy(board_bundle, TARGET, OPTIONS, Watcher())
    finally:
        board.root("mv", "/usr/lib/python3.11/venv-away", "/usr/lib/python3.11/venv")
    assert isinstance(deployment.error, UserError)
    assert "sudo apt-get install python3.11-venv" in str(deployment.error)
    assert deployment.steps == []


def test_a_full_disk_is_said_and_nothing_is_half_there(board: Emulated, tmp_path: Path) -> None:
    """A disk of its own below the agent's directory: full before, and full in the middle."""
    big = Bundle.open(write_bundle(tmp_path / "big", {"big": (16, 512), "small": (1, 64)}))
    place = "/home/jetson/.edge-tprune"
    board.root("mkdir", "-p", place)
    board.root("mount", "-t", "tmpfs", "-o", "size=30m,mode=700,uid=1000,gid=1000", "tmpfs", place)
    try:
        deployment = deploy(big, TARGET, OPTIONS, Watcher())
        assert isinstance(deployment.error, UserError)
        assert "too full" in str(deployment.error)
        assert board.user(f"ls -A {place}/venv {place}/bundles 2>/dev/null || true").strip() == ""
        with Connection(TARGET, ssh_config=OPTIONS.ssh_config) as connected:
            board.root("mount", "-o", "remount,size=60m", place)
            fill = Watcher(
                half_way=lambda: board.root("sh", "-c", f"yes | head -c 100000000 > {place}/filler", check=False) and None
            )
            with pytest.raises(UserError, match="no space left"):
                journey._copy_bundle(connected, big, None, fill)
            board.root("rm", f"{place}/filler")
            assert journey._copy_bundle(connected, big, None, Watcher())[1] > 0
    finally:
        board.root("umount", place)


def test_several_boards_at_once(
    installed: Emulated, board_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("board\nboard:1   # nothing listens there\n")
    code = main(
        ["deploy", str(board_bundle.path), "--hosts", str(hosts), "--ssh-config", str(DIRECTORY / "ssh_config"), "--offline"]
    )
    captured = capsys.readouterr()
    assert code == 2
    assert "agent up to date; bundle tiny up to date" in captured.out
    assert "connection refused" in captured.out
    assert captured.err.splitlines()[-1] == "edge-tprune: 1 of 2 boards failed: board:1"


def test_an_older_agent_is_upgraded_and_an_upgrade_that_breaks_is_repeated(
    installed: Emulated, board_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "edge_tprune"
    shutil.copytree(Path(edge_tprune.__file__).parent, older, ignore=shutil.ignore_patterns("__pycache__"))
    with (older / "__init__.py").open("a") as stream:
        stream.write("\nolder = True\n")
    with monkeypatch.context() as patch:
        patch.setattr(wheels, "__file__", str(older / "deploy" / "wheels.py"))
        assert done(deploy(board_bundle, TARGET, OPTIONS, Watcher())).steps[0] == "agent installed"
    asks = "~/.edge-tprune/venv/bin/python -c 'import edge_tprune; print(hasattr(edge_tprune, \"older\"))'"
    assert installed.user(asks).strip() == "True"
    stamp = installed.agent / "venv" / "edge-tprune.json"
    with wait_for(lambda: not stamp.exists(), installed.break_connections):  # the new one is being installed
        deployment = deploy(board_bundle, TARGET, OPTIONS, Watcher())
    assert isinstance(deployment.error, ConnectionLost), deployment.error
    done(deploy(board_bundle, TARGET, OPTIONS, Watcher()))
    assert installed.user(asks).strip() == "False"
