"""The SSH side with a stand-in for the program ssh; the real one is used by test_board.py, where there is a board."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from edge_tprune.deploy import remote
from edge_tprune.deploy.answers import Done, Facts, Listing
from edge_tprune.deploy.hosts import Target, parse_target
from edge_tprune.deploy.ssh import Connection, _login_error
from edge_tprune.errors import ConnectionLost, UserError

# Logs its arguments, fails as asked, and otherwise runs the command here with a login script's chatter before it.
STAND_IN = """#!{python}
import os, sys
log = open(os.environ["SSH_LOG"], "a")
print(*sys.argv[1:], sep="\\x1f", file=log)
log.close()
if "-f" in sys.argv and "SSH_HANGS" in os.environ:
    os.execvp("sleep", ["sleep", "30"])
said = os.environ.get("SSH_SAYS")
if said and (os.environ.get("SSH_FAILS", "login") == "login" or "-f" not in sys.argv):
    print(said, file=sys.stderr)
    sys.exit(255)
if "-f" in sys.argv or "-O" in sys.argv:
    sys.exit(0)
if "-G" in sys.argv:
    print("host orin", os.environ.get("SSH_CONFIG", ""), sep="\\n")
    sys.exit(0)
login = os.environ.get("SSH_LOGIN", "echo Welcome to the board")
os.execvp("sh", ["sh", "-c", login + "\\nexec " + sys.argv[-1]])
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SSH_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "log"


def calls(log: Path) -> list[list[str]]:
    return [line.split("\x1f") for line in log.read_text().splitlines() if line.startswith("-o")]


def test_one_login_for_everything_and_no_prompt(log: Path) -> None:
    with Connection(parse_target("jetson@orin:2222")) as board:
        assert board.call("check", Facts).system == "linux"
        assert board.call("list", Listing, directory="profiles").files == {}
    made = calls(log)
    for words in made:
        assert "BatchMode=yes" in words
        assert words[words.index("-p") + 1] == "2222"
        assert words[words.index("-l") + 1] == "jetson"
    sockets = {words[words.index("-S") + 1] for words in made}
    assert len(sockets) == 1
    assert len([words for words in made if "-M" in words]) == 1
    assert made[-1][-2:] == ["exit", "orin"]
    assert not Path(sockets.pop()).parent.exists()


@pytest.mark.parametrize("length", [40, 120])
def test_the_path_of_its_socket_is_short(log: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Linux takes 107 bytes, and while it binds ssh adds 17 of its own."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    long = place / ("d" * (length - len(str(place)) - 1))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Connection(Target("orin")) as board:
        assert board.call("check", Facts).system == "linux"
    socket = calls(log)[0][calls(log)[0].index("-S") + 1]
    assert len(socket) + 17 <= 107
    assert socket.startswith(str(long)) == (length == 40)
    shutil.rmtree(place)


def test_what_a_killed_deployment_left_is_removed_and_nothing_else(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr("edge_tprune.deploy.ssh._TMPDIR_BYTES", 1000)
    monkeypatch.setattr("edge_tprune.files._STALE_S", -1)
    for name in ("etp-ssh-abcdefgh", "etp-ssh-mine", "etp-abcdefgh"):
        (place / name).mkdir()
    with Connection(Target("orin")), Connection(Target("other")) as second:
        assert second.call("check", Facts).system == "linux"
        assert len(list(place.glob("etp-ssh-????????"))) == 2, "those in use stay"
    assert sorted(path.name for path in place.iterdir()) == ["etp-abcdefgh", "etp-ssh-mine"]


@pytest.mark.parametrize("name", ["t%p", "t${HOME}"])
def test_what_ssh_would_expand_is_no_part_of_the_path_of_its_socket(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    monkeypatch.setattr("edge_tprune.deploy.ssh._TMPDIR_BYTES", 1000)
    with Connection(Target("orin")):
        pass
    assert name not in calls(log)[0][calls(log)[0].index("-S") + 1]


def test_what_lies_in_the_home_of_a_board_is_not_imported(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    for name in ("json", "types", "hashlib", "platform"):
        (home / f"{name}.py").write_text("print('mine')")
    (home / "tensorrt").mkdir()
    (home / "mine-9.egg-info").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 9\n")
    monkeypatch.setenv("SSH_LOGIN", 'cd "$HOME"')
    with Connection(Target("orin")) as board:
        facts = board.call("check", Facts)
    assert "mine" not in facts.packages
    assert facts.tensorrt is (importlib.util.find_spec("tensorrt") is not None)


@pytest.mark.parametrize("said", ["stdinnull yes", "stdinnull no", ""])
def test_what_a_configuration_says_about_stdin_is_undone(log: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """An older ssh does not know the option, and would not run with it."""
    monkeypatch.setenv("SSH_CONFIG", said)
    with Connection(Target("orin")) as board:
        assert board.call("check", Facts).system == "linux"
    assert ("StdinNull=no" in calls(log)[-2]) == (said == "stdinnull yes")


def test_an_ssh_configuration_of_ones_own(log: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--ssh-config .*config cannot be read: No such file"):
        Connection(Target("orin"), ssh_config=tmp_path / "config")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"--ssh-config .*pipe cannot be read: it is a named pipe"):
        Connection(Target("orin"), ssh_config=tmp_path / "pipe")
    (tmp_path / "config").touch()
    with Connection(Target("orin"), ssh_config=tmp_path / "config"):
        pass
    assert all(words[words.index("-F") + 1] == str(tmp_path / "config") for words in calls(log))


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R orin"),
        ("No ED25519 host key is known for orin.\nHost key verification failed.", "not known yet"),
        ("jetson@orin: Permission denied (publickey,password).", "ssh-copy-id jetson@orin"),
        ("ssh: Could not resolve hostname orin: Name or service not known", "no such host"),
        ("ssh: connect to host orin port 22: Connection refused", "connection refused"),
        ("ssh: connect to host orin port 22: Connection timed out", "no answer"),
        ("something new", "something new"),
    ],
)
def test_why_a_login_fails_is_said_with_what_to_do(log: Path, monkeypatch: pytest.MonkeyPatch, said: str, remedy: str) -> None:
    monkeypatch.setenv("SSH_SAYS", said)
    with pytest.raises(UserError, match=remedy) as raised, Connection(parse_target("jetson@orin")):
        pass
    assert "jetson@orin" in str(raised.value)


def test_a_connection_that_breaks_is_no_mistake_of_the_user(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_SAYS", "client_loop: send disconnect: Broken pipe")
    monkeypatch.setenv("SSH_FAILS", "later")
    with pytest.raises(ConnectionLost, match="Broken pipe"), Connection(Target("orin")) as board:
        board.call("check", Facts)


def test_a_refusal_of_the_board_names_it(log: Path) -> None:
    with Connection(Target("orin")) as board, pytest.raises(UserError, match=r"^orin: not a usable name"):
        board.call("bundle", Done, name="../x", files={})


def test_without_ssh_the_package_is_named(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(log.parent / "nothing"))
    with pytest.raises(UserError, match="openssh-client"), Connection(Target("orin")):
        pass


def test_a_board_with_an_old_python_only_is_told_so(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = "import sys; sys.version_info = (3, 8, 10); exec(sys.argv[1])"
    python = log.parent / "bin" / "python3"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{old}' \"$2\"\n")
    python.chmod(0o755)
    for minor in range(10, 15):  # whatever else is here says that it is as old
        (log.parent / "bin" / f"python3.{minor}").symlink_to(python)
    with pytest.raises(UserError, match=r"Python 3\.8, and the agent needs 3\.10"), Connection(Target("orin")):
        pass


def test_what_a_login_script_prints_or_leaves_running_does_no_harm(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_LOGIN", "printf '\\033[31m' >&2; sleep 30 & printf 'no line end'")
    monkeypatch.setattr("edge_tprune.deploy.ssh._END_S", 0.1)
    with Connection(Target("orin")) as board:
        assert board.call("list", Listing, directory="profiles").files == {}


@pytest.mark.parametrize(
    ("login", "message"),
    [
        ("exit 127", "orin has no python3. Run there"),
        ("echo Not available.; exit 1", r"orin does not run python3 \(exit code 1: Not available.\). Try: ssh orin"),
    ],
)
def test_an_account_that_runs_no_python_is_told_from_a_board_without_python(
    login: str, message: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_LOGIN", login)
    with pytest.raises(UserError, match=message), Connection(Target("orin")):
        pass


def test_a_login_that_never_ends_is_not_waited_for(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_HANGS", "1")
    monkeypatch.setattr("edge_tprune.deploy.ssh._LOGIN_S", 0.3)
    with (
        pytest.raises(UserError, match=r"cannot log in to orin: no end of the login within 0.3 s. Try: ssh orin"),
        Connection(Target("orin")),
    ):
        pass


def test_of_what_a_board_writes_without_end_the_end_is_kept(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_LOGIN", "yes | head -c 5000000 >&2; echo the end >&2; exit 9")
    with pytest.raises(UserError, match=r"\(exit code 9: the end\)") as raised, Connection(Target("orin")):
        pass
    assert len(str(raised.value)) < 1000


def speaking(log: Path, words: str) -> str:
    """A Python on the board that runs no program of ours: it says `words`."""
    program = log.parent / "py"
    program.write_text(f"#!/bin/sh\necho\necho '{remote.MARK.decode().strip()}'\n{words}\n")
    program.chmod(0o755)
    return str(program)


def test_a_board_that_falls_silent_is_not_waited_for(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Connection(Target("orin")) as board:
        board._python = speaking(log, "exec sleep 30")
        monkeypatch.setattr("edge_tprune.deploy.remote.LOST_S", 0.4)
        with pytest.raises(ConnectionLost, match=r"nothing was heard for 0.4 s"):
            board.call("check", Done)


def test_a_board_that_is_at_work_is_waited_for(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Connection(Target("orin")) as board:
        board._python = speaking(log, "for i in 1 2 3 4 5 6 7 8; do sleep 0.2; echo; done; echo '{}'")
        monkeypatch.setattr("edge_tprune.deploy.remote.LOST_S", 1.0)
        assert board.call("check", Done) == Done()


@pytest.mark.parametrize("path", ["-oProxyCommand=touch x", "/a\\u0000b", "/" + "a" * 200_000, "python3", "/a\\nb"])
def test_a_python_whose_path_is_none_is_not_run(path: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (log.parent / "answer").write_text(f'\n@pythons [["{path}", 3, 12]]\n')
    monkeypatch.setenv("SSH_LOGIN", f"exec cat {log.parent}/answer")
    with pytest.raises(UserError, match="orin gave an answer that is not understood"), Connection(Target("orin")):
        pass


@pytest.mark.parametrize("login", ["exec sleep 30", "while :; do echo motd; done"])
def test_a_board_that_never_answers_is_not_waited_for(login: str, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_LOGIN", login)
    monkeypatch.setattr("edge_tprune.deploy.remote.LOST_S", 0.3)
    with (
        pytest.raises(UserError, match=r"no answer within 0.3 s. Does a login script wait for input"),
        Connection(Target("orin")),
    ):
        pass


def test_a_login_script_that_waits_for_input_is_not_waited_for(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_LOGIN", "read answer || true")
    with pytest.raises(UserError, match=r"Does a login script wait for input"), Connection(Target("orin")) as board:
        monkeypatch.setattr("edge_tprune.deploy.remote.LOST_S", 0.5)
        board.call("check", Facts)


@pytest.mark.parametrize("said", ["Host key verification failed", "UNKNOWN port 65535", ""])
def test_a_failed_login_names_the_command_to_try(said: str) -> None:
    error = str(_login_error(parse_target("jetson@orin:2222"), said))
    assert error.endswith(": ssh -p 2222 jetson@orin")
    assert "ssh ssh" not in error
