"""What a person runs on a board without a host: install.sh, the campaign, the container's starter."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_tprune.record.reader import read_run
from tests.agent.tiny_bundle import write_bundle

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SCRIPTS = ["install.sh", "systemd/campaign", "docker/run.sh"]
RELEASES = {
    "5": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC 2023\n",
    "6": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
    "7": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 00:55:42 UTC 2025\n",
}


def install(tmp_path: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    (tmp_path / "home").mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(tmp_path / "home"), **({} if path is None else {"PATH": path})}
    command = [shutil.which("bash") or "bash", str(DEPLOY / "install.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False)


def board(tmp_path: Path, jetpack: str) -> str:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/nv_tegra_release").write_text(RELEASES[jetpack])
    return str(tmp_path / "root")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_is_content(script: str) -> None:
    subprocess.run(["shellcheck", DEPLOY / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(DEPLOY / script, os.X_OK)


@pytest.mark.parametrize("jetpack", RELEASES)
def test_it_says_what_it_will_do_and_does_nothing(tmp_path: Path, jetpack: str) -> None:
    done = install(tmp_path, "--dry-run", "--root", board(tmp_path, jetpack))
    assert done.returncode == 0, done.stderr
    assert f"JetPack {jetpack}" in done.stdout
    assert "This will:\n  - make a virtual environment in " in done.stdout
    assert list((tmp_path / "home").iterdir()) == []


def test_the_systems_part_asks_for_jetpacks_bindings(tmp_path: Path) -> None:
    if shutil.which("dpkg-query") is None:
        pytest.skip("no dpkg here")
    done = install(tmp_path, "--system", "--dry-run", "--root", board(tmp_path, "6"))
    assert "python3-libnvinfer" in done.stdout


def test_an_old_python_is_explained(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sed", "uname", "cat", "id", "dirname"):
        (programs / name).symlink_to(shutil.which(name) or "")
    (programs / "python3").write_text("#!/bin/sh\nexit 1\n")  # "is it 3.10?" no
    (programs / "python3").chmod(0o755)
    done = install(tmp_path, "--dry-run", "--root", board(tmp_path, "5"), path=str(programs))
    assert done.returncode == 1
    assert "JetPack 5 has Python 3.8" in done.stderr
    assert "python3.10-venv" in done.stderr


@pytest.mark.parametrize("arguments", [("--nonsense",), ("--wheel",), ("--wheel", "/no/such.whl", "--dry-run")])
def test_mistakes_are_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = install(tmp_path, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def install_with(tmp_path: Path, pip: str) -> subprocess.CompletedProcess[str]:
    """The user's part, on a machine whose Python makes environments in which pip is this command."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    files = {"python": pip, "edge-tprune": "exit 0"}
    made = "; ".join(
        f'printf "#!/bin/sh\\n{text}\\n" >"$4/bin/{name}"; chmod +x "$4/bin/{name}"' for name, text in files.items()
    )
    python = f'#!/bin/sh\n[ "$2" != venv ] || {{ mkdir -p "$4/bin"; {made}; }}\n'
    for name, text in {"python3": python, "id": "#!/bin/sh\necho 1000\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "agent.whl").touch()
    arguments = ("--yes", "--wheel", str(tmp_path / "agent.whl"), "--extras", "ort")
    return install(tmp_path, *arguments, path=f"{programs}:{os.environ['PATH']}")


def test_the_agent_that_is_there_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    home = tmp_path / "home" / ".edge-tprune"
    (home / "venv").mkdir(parents=True)
    (home / "venv" / "edge-tprune.json").write_text("of deploy")
    failed = install_with(tmp_path, "exit 1")
    assert (failed.returncode, "this failed: install the agent" in failed.stderr) == (1, True)
    assert (home / "venv" / "edge-tprune.json").read_text() == "of deploy"
    assert not (home / "venv.old").exists()
    (home / "venv").rename(home / "venv.old")  # cut off half-way
    (home / "venv").mkdir()
    assert install_with(tmp_path, "exit 1").returncode == 1
    assert (home / "venv" / "edge-tprune.json").read_text() == "of deploy"
    done = install_with(tmp_path, "exit 0")
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (home / "venv").iterdir()) == ["bin", "install.sh.stamp"]
    assert not (home / "venv.old").exists()


def test_an_update_is_a_new_environment_and_the_old_one_stays_until_it_is_complete(tmp_path: Path) -> None:
    home = tmp_path / "home" / ".edge-tprune"
    assert install_with(tmp_path, "exit 0").returncode == 0
    (home / "venv" / "old").touch()
    (tmp_path / "agent.whl").write_text("a newer one")
    assert install_with(tmp_path, "exit 1").returncode == 1
    assert (home / "venv" / "old").exists()
    done = install_with(tmp_path, f"test -f {home}/venv.old/old")
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (home / "venv").iterdir()) == ["bin", "install.sh.stamp"]
    assert not (home / "venv.old").exists()
    assert "nothing to do" in install_with(tmp_path, "exit 1").stdout
    (home / "venv" / "bin" / "edge-tprune").write_text("#!/bin/sh\nexit 1\n")  # the system's Python is another one now
    assert "make a virtual environment" in install_with(tmp_path, "exit 0").stdout


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_of_the_users_own_in_place_of_the_link_stays(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "home" / ".local" / "bin" / "edge-tprune"
    mine.parent.mkdir(parents=True)
    if kind == "link":
        mine.symlink_to(tmp_path / "own")
        (tmp_path / "own").write_text("mine")
    else:
        mine.write_text("mine")
    done = install_with(tmp_path, "exit 0")
    assert done.returncode == 0, done.stderr
    assert f"{mine} is a {kind} of yours and stays" in done.stdout
    assert mine.read_text() == "mine"
    assert (tmp_path / "home" / ".edge-tprune" / "venv" / "install.sh.stamp").exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock (util-linux) is not installed")
def test_nothing_is_installed_under_a_measurement(tmp_path: Path) -> None:
    home = tmp_path / "home" / ".edge-tprune"
    (home / "venv").mkdir(parents=True)
    with (home / "running.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        done = install_with(tmp_path, "exit 0")
    assert (done.returncode, "something is being measured here" in done.stderr) == (1, True)
    assert list((home / "venv").iterdir()) == []


def test_a_campaign_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """The script of the service: begun, killed without warning, begun again, and over."""
    agent = tmp_path / ".edge-tprune"
    write_bundle(agent / "bundles" / "net", {"big": (3, 128), "small": (1, 64)})
    program = agent / "venv" / "bin" / "edge-tprune"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m edge_tprune "$@"\n')
    program.chmod(0o755)
    command = [
        str(DEPLOY / "systemd" / "campaign"),
        "net",
        "--rounds",
        "4",
        "--seconds",
        "0.05",
        "--warmup",
        "0.01",
        "--baseline",
        "0",
    ]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(DEPLOY.parent)}
    log = (tmp_path / "log").open("w")
    first = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    campaigns = agent / "campaigns" / "net"
    deadline = time.monotonic() + 240
    while not any('"kind":"round"' in file.read_text() for file in campaigns.glob("[!.]*/samples.jsonl")):
        assert first.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (profile,) = campaigns.iterdir()
    before = len(read_run(profile).turns)
    assert subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode == 0
    assert list(campaigns.iterdir()) == [profile]
    run = read_run(profile)
    assert run.end == "complete"
    assert len(run.turns) == 8 > before
    over = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "is over" in over.stdout
    log.close()


def campaign(tmp_path: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """A campaign whose agent writes its arguments into a file."""
    program = tmp_path / ".edge-tprune" / "venv" / "bin" / "edge-tprune"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >arguments\n')
    program.chmod(0o755)
    return [str(DEPLOY / "systemd" / "campaign"), "net", *options], {**os.environ, "HOME": str(tmp_path)}


def test_a_campaign_goes_on_with_the_same_images(tmp_path: Path) -> None:
    options = ["--rounds", "4", "--images", "my photos", "--seconds=2", "--data=val", "--trace", "--budgets", "1.0"]
    command, environment = campaign(tmp_path, *options)
    written = tmp_path / ".edge-tprune" / "arguments"
    subprocess.run(command, env=environment, check=True)
    assert written.read_text().splitlines() == ["profile", "bundles/net", "--out", "campaigns/net", *options]
    run = tmp_path / ".edge-tprune" / "campaigns" / "net" / "20260101T000000Z"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "samples.jsonl").write_text("")
    subprocess.run(command, env=environment, check=True)
    assert written.read_text().splitlines() == [
        *("profile", "bundles/net", "--resume", f"campaigns/net/{run.name}"),
        *("--images", "my photos", "--data=val", "--trace"),
    ]


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock (util-linux) is not installed")
def test_a_campaign_waits_for_a_measurement_that_runs(tmp_path: Path) -> None:
    command, environment = campaign(tmp_path)
    lock = tmp_path / ".edge-tprune" / "running.lock"
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "waiting for another measurement on this board to end\n"
        assert not (tmp_path / ".edge-tprune" / "arguments").exists()
    assert process.wait() == 0
    process.stdout.close()
    assert (tmp_path / ".edge-tprune" / "arguments").exists()


def test_the_unit_is_the_users_and_names_what_is_installed() -> None:
    text = (DEPLOY / "systemd" / "edge-tprune-campaign@.service").read_text()
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert settings["ExecStart"] == "%h/.edge-tprune/campaign %i $OPTIONS"
    assert "User" not in settings
    assert settings["WantedBy"] == "default.target"


def test_the_container_mounts_what_is_read(tmp_path: Path) -> None:
    environment = {**os.environ, "PRINT": "1"}
    done = subprocess.run(
        [DEPLOY / "docker" / "run.sh", "doctor"], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    words = done.stdout.split()
    assert words[:2] == ["docker", "run"]
    assert words[-2:] == ["edge-tprune", "doctor"]
    assert f"{tmp_path}:/work" in words
    assert "/sys:/sys:ro" in words
    assert "--privileged" not in words
