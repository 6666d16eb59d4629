"""The edges of the process: signals, closed and full streams, readers that go away, terminals that know only ASCII."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edge_tprune.agent.doctor.finding import Diagnosis, Finding
from edge_tprune.cli import main
from edge_tprune.report import plot
from edge_tprune.telemetry.boards import identify
from tests.analysis.conftest import Profiles
from tests.cli.conftest import Outcome

Command = Callable[..., Outcome]
PROGRAM = [sys.executable, "-m", "edge_tprune"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    info = Profiles.info()
    info["environment"]["hostname"] = "Orin-é-模"
    return Profiles.write(tmp_path_factory.mktemp("edges") / "run", info)


def run(words: list[str], shell: str = 'exec "$@"', **options: object) -> subprocess.CompletedProcess[str]:
    """Runs the program through a shell that may close or redirect its streams."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(["sh", "-c", shell, "sh", *PROGRAM, *words], text=True, timeout=200, check=False, **pipes)  # type: ignore[call-overload]


def on_terminal(words: list[str], environment: dict[str, str]) -> bytes:
    """What the program shows on a terminal."""
    ours, its = pty.openpty()
    shown = b""
    with subprocess.Popen([*PROGRAM, *words], stdin=its, stdout=its, stderr=its, env=environment) as child:
        os.close(its)
        with suppress(OSError):  # Linux says so that the other end is closed
            while block := os.read(ours, 4096):
                shown += block
    os.close(ours)
    assert child.returncode == 0
    return shown


def one_line(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    assert done.returncode == code, done.stderr
    assert re.fullmatch(rf"edge-tprune: .*{says}.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("option", [[], ["--json"], ["--markdown"], ["--help"]])
def test_a_reader_that_goes_away_is_no_no(profile: Path, option: list[str]) -> None:
    """`| head -1` must never read as exit code 1, "the answer is no"."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stream:
        done = run(["compare", str(profile), *option], stdout=stream)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_behind_stdout_is_said(profile: Path) -> None:
    one_line(run(["compare", str(profile), "--json"], 'exec "$@" > /dev/full'), 2, "No space left on device")
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    one_line(run(["--version"], 'exec "$@" > /dev/full', env=unbuffered), 2, "No space left on device: stdout")
    one_line(run(["compare", str(profile)], 'exec "$@" > /dev/full'), 2, "No space left on device")


def test_a_closed_stdout_is_said_before_any_work(profile: Path) -> None:
    one_line(run(["compare", str(profile)], 'exec "$@" >&-'), 2, "stdout is closed")


def test_a_closed_stderr_or_stdin_changes_nothing(profile: Path, tmp_path: Path) -> None:
    plain = run(["compare", str(profile)])
    assert plain.returncode == 0
    file = tmp_path / "rows.csv"
    for shell in ('exec "$@" 2>&-', 'exec "$@" <&-', 'exec "$@" <&- 2>&-'):
        done = run(["compare", str(profile), "--export", str(file)], shell)
        assert (done.returncode, done.stdout) == (0, plain.stdout)
        assert file.read_text().startswith("profile,")  # no message was written into it
    assert run(["compare", "absent"], 'exec "$@" 2>&-').returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_log_that_is_full_ends_no_measurement(unbuffered: str) -> None:
    """`profile 2> log` goes on where the disk with the log is full, or who read it is gone."""
    code = "from edge_tprune.cli.streams import prepare_streams as p; p(); import sys; print('note', file=sys.stderr, flush=True); print('done')"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2> /dev/full', "sh", sys.executable, "-c", code], env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert done.stdout == "done\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_larger_than_the_disk_is_said(tmp_path: Path, unbuffered: str) -> None:
    """The last bytes that fit are written by a call that raises nothing."""
    done = run(
        ["methods", "--json"],
        f'ulimit -f 4; exec "$@" > "{tmp_path}/answer"',
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    one_line(done, 2, "File too large")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_waits_for_a_slow_reader(unbuffered: str) -> None:
    """A pipe that was made not to wait, as Node and asyncio hand on, takes 64 kB at a time."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    command = [sys.executable, "-m", "edge_tprune", "methods", "--json"]
    with subprocess.Popen(command, stdout=writing, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}) as child:
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            answer = json.loads(stream.read())
    assert child.returncode == 0
    assert answer


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_slow_reader_of_messages_ends_no_command(profile: Path, tmp_path: Path, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    done = subprocess.run(
        [sys.executable, "-m", "edge_tprune", "report", str(profile), "--out", str(tmp_path / "report.html")],
        stderr=writing, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, check=True, timeout=100,
    )  # fmt: skip
    os.close(writing)
    os.close(reading)
    assert done.stdout.strip().endswith("report.html")


def test_a_directory_that_was_removed_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    one_line(run(["--version"], 'rmdir "$PWD" && exec "$@"', cwd=gone), 2, "the current directory was removed")


@pytest.mark.parametrize("words", [["--markdown"], [], ["--json"]])
def test_ascii_output_ends_no_command(profile: Path, words: list[str]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = run(["compare", str(profile), *words], env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "197" in done.stdout


def test_help_is_there_without_docstrings() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "edge_tprune", "compare", "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "TERMINAL_WIDTH": "wide"},
    )  # fmt: skip  # typer takes the width for a number, whatever it is
    assert "Show one row per budget" in done.stdout


def test_methods_have_their_summaries_without_docstrings() -> None:
    done = subprocess.run([sys.executable, "-OO", "-m", "edge_tprune", "methods"], capture_output=True, text=True, check=True)
    assert re.search(r"^tome +Merges the most similar pairs of tokens", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("setting", "package"), [("TORCH_LOGS=nonsense", "torch"), ("TIMM_FUSED_ATTN=x", "timm"), ("TQDM_MININTERVAL=x", "torch")]
)
def test_a_package_that_fails_over_the_environment_is_named(tmp_path: Path, setting: str, package: str) -> None:
    name, value = setting.split("=")
    done = run(["build", "reference", "--weights", "random", "--out", str(tmp_path / "b")], env={**os.environ, name: value})
    one_line(done, 2, f"the package {package} cannot be loaded: ValueError: ")
    assert not list(tmp_path.iterdir())


def test_a_width_of_the_terminal_that_is_no_number_is_ignored(profile: Path, tmp_path: Path) -> None:
    for words in (["--help"], ["compare", str(profile)]):
        assert run(words, env={**os.environ, "COLUMNS": "\N{SUPERSCRIPT TWO}", "LINES": "x"}).returncode == 0
    plain = os.environ.keys() - {"COLUMNS", "LINES"}
    answers = []
    for width in ("0", "9" * 5000, ""):
        environment = {name: os.environ[name] for name in plain} | {"COLUMNS": width}
        answers.append(on_terminal(["compare", str(profile)], environment))
    assert b"197" in answers[2]
    assert answers[0] == answers[1] == answers[2]
    done = run(
        ["compare", str(profile), "--export", str(tmp_path / "t.parquet")], env={**os.environ, "POLARS_MAX_THREADS": "0"}
    )
    assert done.returncode == 2
    assert "polars cannot make the table: Worker threads cannot be set to 0" in done.stderr


@pytest.mark.parametrize(("number", "says"), [(signal.SIGTERM, "ended by SIGTERM"), (signal.SIGHUP, "ended by SIGHUP")])
def test_a_signal_ends_a_command_in_order(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, says: str
) -> None:
    cleaned = []

    def examine(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(20)
        finally:
            os.kill(os.getpid(), number)  # a second one does not cut the cleaning up short
            cleaned.append(True)

    monkeypatch.setattr("edge_tprune.agent.doctor.examine", examine)
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, and so would the command
    try:
        outcome = command("doctor")
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert (outcome.code, outcome.err) == (128 + number, f"edge-tprune: {says}\n")
    assert cleaned == [True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_process_ends_by_the_signal(number: signal.Signals) -> None:
    code = (
        "import os, signal, sys, time, edge_tprune.agent.doctor as doctor\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"def examine(*_): os.kill(os.getpid(), {int(number)}); time.sleep(20)\n"
        "doctor.examine = examine; sys.argv[1:] = ['doctor']\n"
        "from edge_tprune.cli import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == -number
    assert done.stderr.count("\n") == 1


def test_memory_that_does_not_even_suffice_for_words_ends_in_a_line() -> None:
    code = (
        "import sys, edge_tprune.cli as cli\n"
        "def exhausted(*_): raise MemoryError\n"
        "cli._run = cli._fail = exhausted; sys.argv[1:] = ['doctor']; cli.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edge-tprune: out of memory: close what else uses it, or give smaller numbers\n"


def test_an_interruption_while_the_command_is_loaded_says_nothing() -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'edge_tprune.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.meta_path.insert(0, Interrupt)\n"
        "sys.argv = ['edge-tprune', '--version']; runpy.run_module('edge_tprune', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_another_signal_while_the_process_ends_says_nothing_more(second: signal.Signals) -> None:
    """Of two that come at nearly the same time the first one counts; the other hits a process that is saying so, or already leaving."""
    code = (
        "import atexit, os, signal, sys, time, edge_tprune.agent.doctor as doctor, edge_tprune.cli as cli\n"
        f"def again(): os.kill(os.getpid(), {int(second)}); time.sleep(0)\n"
        "def examine(*_): os.kill(os.getpid(), signal.SIGINT); time.sleep(20)\n"
        "def say(message, code, fail=cli._fail): again(); return fail(message, code)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "doctor.examine, cli._fail = examine, say; sys.argv[1:] = ['doctor']; atexit.register(again)\n"
        "cli.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (130, "edge-tprune: interrupted\n")


def test_what_nohup_ignores_stays_ignored(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(*_: object) -> Diagnosis:
        os.kill(os.getpid(), signal.SIGHUP)
        fine = (Finding("x", "ok", "fine"),)
        return Diagnosis(format="", version=2, tool_version="", root="/", board=identify(), ready=True, findings=fine)

    monkeypatch.setattr("edge_tprune.agent.doctor.examine", examine)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command("doctor").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_kept_is_said(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load_rows(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_tprune.analysis.loading.load_rows", load_rows)
    outcome = command("report", tmp_path)
    assert (outcome.code, outcome.err) == (130, "edge-tprune: interrupted: nothing was written\n")


def test_what_was_written_before_an_interruption_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch, profile: Path, tmp_path: Path
) -> None:
    first, second, page = (tmp_path / name for name in ("one.png", "two.png", "page.html"))
    save = plot.save

    def save_one(drawing: object, path: Path) -> None:
        if path == second:
            raise KeyboardInterrupt
        save(drawing, path)  # type: ignore[arg-type]

    monkeypatch.setattr(plot, "save", save_one)
    outcome = command("report", profile, "--out", page, "--picture", f"tokens={first}", "--picture", f"latency={second}")
    assert outcome.code == 130
    assert outcome.err.endswith(f"edge-tprune: interrupted: written before that: {first}\n")
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_a_package_that_cannot_be_loaded_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], profile: Path, tmp_path: Path
) -> None:
    (tmp_path / "polars.py").write_text("raise ImportError('failed to map segment from shared object')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "polars", raising=False)
    assert main(["compare", str(profile), "--export", str(tmp_path / "rows.parquet")]) == 2
    assert "polars is installed and cannot be loaded: failed to map segment" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_code_of_others_cannot_close_the_streams(unbuffered: str) -> None:
    code = (
        "import sys; from edge_tprune.cli.streams import prepare_streams; prepare_streams()\n"
        "for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__): stream.close()\n"
        "print('answer'); print('word', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer\n", "word\n")
