"""One board over the system's OpenSSH: a shared connection, and requests to the program in `remote.py`.

The user's configuration, keys and agent decide how to log in. Nothing here asks for a password (BatchMode), and a host key that
OpenSSH does not know or that has changed is an error. Commands are lists of arguments; the one string that OpenSSH wants for the
board's shell is quoted word by word.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar, cast

import msgspec

from edge_tprune.deploy import remote
from edge_tprune.deploy.answers import LINE_BYTES, ProgramPath, not_understood, read_answer
from edge_tprune.deploy.hosts import Target
from edge_tprune.deploy.remote import Json
from edge_tprune.errors import ConnectionLost, UserError
from edge_tprune.files import mark_in_use, open_regular, remove_stale, temporary_names
from edge_tprune.text import command_line

_OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=8", "ClearAllForwardings=yes",
    "RemoteCommand=none", "RequestTTY=no",  # of a configuration for people who log in
)  # fmt: skip
T = TypeVar("T")

_LAST_WORDS = 300  #: characters of what ssh or a board says last
_KEPT_BYTES = 1 << 16  #: of the end of what a program writes to stderr
_LOGIN_S = 120  #: how long logging in may take: somebody may have to touch a key
_END_S = 1  #: how long a program on a board may take to end after its answer
_NOT_FOUND = 127  #: a shell's exit code where there is no such program
_SOCKETS = "etp-ssh-"  #: how the directory of a connection is called
_TMPDIR_BYTES = 70  #: what a socket's path has room for beside the names below
_IDLE_S = 300  #: how long a shared connection outlives a process that could not close it
_NEWEST, _OLDEST = 14, 10  #: minor versions of Python 3 that are looked for on a board

#: Begins each program: modules are not looked for in the current directory, which is a person's home.
_NOT_HERE = "import sys; sys.path[:] = filter(None, sys.path)"
#: Runs on whatever Python is there, old ones too, and says which ones are new enough.
_PROBE = f"""
{_NOT_HERE}
import json, subprocess
found = [[sys.executable, sys.version_info[0], sys.version_info[1]]]
names = ["python3.%d" % minor for minor in range({_NEWEST}, {_OLDEST - 1}, -1)]
for name in names if sys.version_info < (3, {_OLDEST}) else []:
    try:
        out = subprocess.check_output([name, "-c", "import sys; print(sys.executable, sys.version_info[0], sys.version_info[1])"])
        path, major, minor = out.decode().rsplit(None, 2)
        found.append([path, int(major), int(minor)])
    except Exception:
        pass
print("\\n@pythons " + json.dumps(found))
"""


_talking: set[subprocess.Popen[bytes] | subprocess.Popen[str]] = set()


def hang_up() -> None:
    """Ends every login, request and download that is under way, in whichever thread."""
    for process in list(_talking):
        process.kill()


@contextmanager
def until_hang_up(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[None]:
    """Around the wait for a process that `hang_up` ends."""
    _talking.add(process)
    try:
        yield
    finally:
        _talking.discard(process)


class _LastWords:
    """The end of what programs write into a pipe, read as it comes: a board may write without end."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> _LastWords:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes this process's end for writing, once a program has its own."""
        os.close(self.write_end)

    def _read(self) -> None:
        with os.fdopen(self._read_end, "rb", buffering=0) as stream:
            while block := stream.read(_KEPT_BYTES):
                self._kept = (self._kept + block)[-_KEPT_BYTES:]

    def text(self) -> str:
        """What has come. Waits a little for the end of a program that was ended."""
        self._thread.join(_END_S)
        return self._kept.decode(errors="replace")


class _Program:
    """A program on a board. One of which nothing is heard for too long is ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said = ""  #: the end of what it wrote to stderr, once it has ended
        self.has_begun = False  #: to answer
        self.is_late = False
        self._heard_s, self._ended = time.monotonic(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def heard(self) -> None:
        """It answered, or took something."""
        self._heard_s = time.monotonic()

    def begins(self) -> None:
        """Its own words begin, behind those of a login script."""
        self.has_begun = True
        self.heard()

    def ended(self) -> None:
        """It need not be watched any more."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, remote.LOST_S / 4)):
            if time.monotonic() - self._heard_s > remote.LOST_S:
                self.is_late = True
                self.process.kill()
                return


class _Heard:
    """A stream of a program's; whatever passes through it, the program was heard."""

    def __init__(self, stream: IO[bytes], program: _Program) -> None:
        self._stream, self._program = stream, program

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._program.heard()
        return data

    def write(self, data: bytes) -> int:
        written = self._stream.write(data)
        self._program.heard()
        return written


class Connection:
    """A connection to a board. A context manager: leaving it closes the connection.

    Args:
        target: which board.
        ssh_config: instead of the user's own SSH configuration.

    Raises:
        UserError: `ssh_config` cannot be read.
    """

    def __init__(self, target: Target, *, ssh_config: Path | None = None) -> None:
        if ssh_config is not None:
            try:
                open_regular(ssh_config).close()  # ssh would wait for a named pipe
            except OSError as error:
                raise UserError(f"--ssh-config {ssh_config} cannot be read: {error.strerror}") from error
        self.target = target
        self._directory = _make_socket_directory()
        self._in_use: int | None = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        mark_in_use(self._in_use)
        self._ssh = ["ssh", *(word for option in _OPTIONS for word in ("-o", option)), "-S", str(self._directory / "s")]
        if ssh_config is not None:
            self._ssh += ["-F", str(ssh_config)]
        if target.port is not None:
            self._ssh += ["-p", str(target.port)]
        if target.user is not None:
            self._ssh += ["-l", target.user]
        self._python = "python3"

    def __enter__(self) -> Connection:
        try:
            self._connect()
            self._ssh += self._undo()
            self._python = self._find_python()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. A second call does nothing."""
        if self._directory.exists():
            with suppress(OSError):
                subprocess.run([*self._ssh, "-O", "exit", self.target.host], capture_output=True, check=False)
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._in_use is not None:
            os.close(self._in_use)
            self._in_use = None

    def _connect(self) -> None:
        """Logs in once; everything after goes through this connection."""
        master = ["-M", "-N", "-f", "-o", f"ControlPersist={_IDLE_S}", self.target.host]
        with _LastWords() as words:  # the connection's process keeps writing there
            try:
                process = subprocess.Popen(
                    [*self._ssh, *master], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words.write_end
                )
            except FileNotFoundError as error:
                raise UserError(
                    "this needs OpenSSH's ssh, which is not installed. Run: sudo apt-get install openssh-client"
                ) from error
        with process, until_hang_up(process):
            try:
                process.wait(_LOGIN_S)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise UserError(
                    f"cannot log in to {self.target}: no end of the login within {_LOGIN_S} s. Try: {self.target.command('ssh')}"
                ) from error
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise _login_error(self.target, words.text())

    def _undo(self) -> list[str]:
        """Options against what a configuration says that keeps a request from its program; a version of ssh that does not know them has none."""
        with suppress(OSError, subprocess.TimeoutExpired):
            asked = subprocess.run(
                [*self._ssh, "-G", self.target.host],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_LOGIN_S,
                check=False,
            )
            said = asked.stdout.lower().splitlines()
            wrong = {"StdinNull": b"stdinnull yes", "ForkAfterAuthentication": b"forkafterauthentication yes"}
            return [word for name, line in wrong.items() if line in said for word in ("-o", f"{name}=no")]
        return []

    def _find_python(self) -> str:
        """The path of a Python on the board that is new enough: the system's own where possible, because JetPack's packages are there."""
        mark = b"@pythons "
        with self._program(["python3", "-c", _PROBE], subprocess.DEVNULL) as program:
            assert program.process.stdout is not None
            said, found = b"", None
            for line in _lines(program.process.stdout, str(self.target)):
                if line.startswith(mark):
                    found = line.removeprefix(mark)
                    break
                said = line if line.strip() else said
        if found is None:
            raise self._no_python(program, said.decode(errors="replace"))
        answer = read_answer(found, list[tuple[ProgramPath, int, int]], str(self.target))
        pythons = [(path, minor) for path, major, minor in answer if major == 3]
        for path, minor in pythons:
            if minor >= _OLDEST:
                return str(path)
        newest = max((minor for _, minor in pythons), default=0)
        raise UserError(
            f"{self.target} has Python 3.{newest}, and the agent needs 3.{_OLDEST} or newer (JetPack 5 has 3.8). "
            "Run deploy/install.sh there, which says how to get one"
        )

    def _no_python(self, program: _Program, said: str) -> UserError:
        """Why no Python answered, by how `program` ended and the last line that it wrote."""
        if program.is_late:
            return self._silent()
        code = program.process.returncode
        if code == 255:
            return self._lost(program.said)
        if code == _NOT_FOUND:
            return UserError(f"{self.target} has no python3. Run there: sudo apt-get install python3 python3-venv")
        return UserError(
            f"{self.target} does not run python3 (exit code {code}: {_last_line(program.said or said)}). "
            f"Try: {self.target.command('ssh')} python3 --version"
        )

    @contextmanager
    def _program(self, words: list[str], stdin: int) -> Iterator[_Program]:
        """A program on the board, started; ended with the block. One that does not answer in time (see `_Program.answers`) is ended, too."""
        command = [*self._ssh, self.target.host, "--", shlex.join(words)]  # ssh looks for options behind the host, too
        with _LastWords() as said:
            process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=said.write_end)
        program = _Program(process)
        with process, until_hang_up(process):
            try:
                yield program
                _close(process.stdin)
                with suppress(subprocess.TimeoutExpired):  # what a login script left running keeps the connection open
                    process.wait(_END_S)
            finally:
                program.ended()
                process.kill()
                _close(process.stdin)
        program.said = said.text()

    def call(
        self,
        do: str,
        kind: type[T],
        payload: Callable[[IO[bytes]], None] | None = None,
        on_stderr: Callable[[str], None] | None = None,
        on_frame: Callable[[Json, IO[bytes]], None] | None = None,
        **request: Any,
    ) -> T:
        """Does one request on the board (see `remote.py`) and returns its answer.

        Args:
            do: which.
            kind: of the answer, see `edge_tprune.deploy.answers`.
            payload: writes what follows the request, frame by frame.
            on_stderr: called with what a program on the board writes while it runs.
            on_frame: called with each frame that comes back, with the stream that its bytes must be read from.
            request: the rest of the request.

        Raises:
            UserError: the board refuses, with its reason; what it answers is not understood; or the program there failed.
            ConnectionLost: the connection broke.
        """
        source = Path(remote.__file__).read_bytes()
        code = f"{_NOT_HERE}; exec(compile(sys.stdin.buffer.read({len(source)}), 'remote.py', 'exec'))"
        with self._program([self._python, "-c", code], subprocess.PIPE) as program:
            stdin, stdout = program.process.stdin, program.process.stdout
            assert stdin is not None
            assert stdout is not None
            lines = _lines(stdout, str(self.target))
            with suppress(BrokenPipeError):  # its reason for hanging up follows
                stdin.write(source + json.dumps({"do": do, **request}).encode() + b"\n")
                stdin.flush()
                if remote.MARK in lines:  # what a login script prints comes before
                    program.begins()
                    if payload is not None:
                        payload(cast("IO[bytes]", _Heard(stdin, program)))
                        stdin.flush()
            with remote.beating(stdin, nullcontext()):
                heard = cast("IO[bytes]", _Heard(stdout, program))
                answer = _read_answer(_watched(lines, program), heard, on_stderr, on_frame, str(self.target))
        if answer is None:
            if program.is_late:
                raise self._lost(f"nothing was heard for {remote.LOST_S} s") if program.has_begun else self._silent()
            if program.process.returncode == 255:
                raise self._lost(program.said)
            raise UserError(
                f"{self.target}: the program on the board ended unexpectedly: {_last_line(program.said)}. Repeat the command; "
                "if it ends so again, please report it"
            )
        if "error" in answer:
            raise UserError(f"{self.target}: {answer['error']}")
        return read_answer(msgspec.json.encode(answer), kind, str(self.target))

    def _silent(self) -> UserError:
        return UserError(
            f"{self.target}: python3 there gave no answer within {remote.LOST_S} s. Does a login script wait for input, or print without end? "
            f"Try: {self.target.command('ssh')} python3 --version"
        )

    def _lost(self, said: str) -> ConnectionLost:
        return ConnectionLost(
            f"{self.target}: the connection was lost ({_last_line(said)}). What arrived stays there: repeat the command to continue"
        )


def _make_socket_directory() -> Path:
    """A temporary directory with a name so short that the path of ssh's socket in it stays below the limit of 108 bytes, which ssh's own
    ending counts to, and without what ssh would put something else for."""
    usual = tempfile.gettempdir()
    is_fit = len(os.fsencode(usual)) <= _TMPDIR_BYTES and "%" not in usual and "${" not in usual
    place = Path(usual if is_fit else "/tmp")
    remove_stale(place, temporary_names(_SOCKETS), folders=True)  # of a deployment that was killed
    return Path(tempfile.mkdtemp(prefix=_SOCKETS, dir=place))


def _read_answer(
    lines: Iterator[bytes],
    stream: IO[bytes],
    on_stderr: Callable[[str], None] | None,
    on_frame: Callable[[Json, IO[bytes]], None] | None,
    who: str,
) -> Json | None:
    """The last of the lines, without those that come before the answer; None where the stream ended before it."""
    for line in lines:
        if not line.endswith(b"\n"):
            return None  # cut off in the middle
        if line == b"\n":
            continue  # it is still at work
        value = read_answer(line, Json, who)
        if "stderr" in value:
            if on_stderr is not None:
                on_stderr(str(value["stderr"]))
        elif on_frame is not None and "path" in value:
            on_frame(value, stream)
        else:
            return value
    return None


def _watched(lines: Iterator[bytes], program: _Program) -> Iterator[bytes]:
    """The lines of a program; each one was heard, once it speaks itself."""
    for line in lines:
        if program.has_begun:
            program.heard()
        yield line


def _lines(stream: IO[bytes], who: str) -> Iterator[bytes]:
    while line := stream.readline(LINE_BYTES):
        if len(line) == LINE_BYTES:
            raise not_understood(who, f"a line of more than {LINE_BYTES / 1e6:.0f} MB")
        yield line


def _login_error(target: Target, said: str) -> UserError:
    """Why logging in failed, with what to do."""
    remedies = {
        "IDENTIFICATION HAS CHANGED": "its host key is not the one that was seen before. If the board was flashed again, forget the old key: "
        f"{command_line('ssh-keygen', '-R', target.known_as)}",
        "Host key verification failed": f"its host key is not known yet. Log in once and compare it: {target.command('ssh')}",
        "Permission denied": f"it does not accept your key. Put it there: {target.command('ssh-copy-id')}",
        "Could not resolve hostname": "no such host. Is the name right?",
        "Connection refused": "connection refused. Is the board up, is sshd running, and is the port right?",
        "timed out": "no answer. Is the board on, and on this network?",
        "UNKNOWN port": "the jump host or proxy command of your SSH configuration does not reach it. It says why: "
        + target.command("ssh"),
        "No route to host": "it cannot be reached from this machine. Is the board on, and on this network?",
    }
    for sign, remedy in remedies.items():
        if sign in said:
            return UserError(f"cannot log in to {target}: {remedy}")
    named = [line for line in said.splitlines() if " line " in line]  # of the configuration
    why = _last_line(named[0] if named else said) if said.strip() else f"ssh does not say why. Try: {target.command('ssh')}"
    return UserError(f"cannot log in to {target}: {why}")


def _close(stdin: IO[bytes] | None) -> None:
    if stdin is not None:
        with suppress(OSError):  # what was not sent, nobody reads any more
            stdin.close()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LAST_WORDS] if lines else "no reason was given"
