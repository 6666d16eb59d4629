"""Ctrl-C, SIGTERM and SIGHUP end a command alike, also one that was started with the signal ignored, and no child is left."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from edge_tprune.record.lines import SAMPLES
from edge_tprune.record.reader import read_run
from tests.agent.tiny_bundle import write_bundle

LIMIT_S = 120


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", {"a": (1, 16)})


def start(bundle: Path, out: Path, ignored: signal.Signals | None) -> subprocess.Popen[str]:
    """`edge-tprune profile`, started as a shell or nohup would that ignores a signal; the others have their default."""

    def dispose() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    command = [sys.executable, "-m", "edge_tprune", "profile", str(bundle), "--out", str(out)]
    command += ["--rounds", "100000", "--seconds", "0", "--warmup", "0", "--baseline", "0", "--threads", "1"]
    pipes = partial(subprocess.Popen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return pipes(command, preexec_fn=dispose)


def wait_for_turns(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        if sum(file.read_bytes().count(b'"kind":"round"') for file in out.glob(f"[0-9]*/{SAMPLES}")) >= count:
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate(timeout=LIMIT_S))


@pytest.mark.parametrize(
    ("number", "ignored"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, None),
        (signal.SIGTERM, signal.SIGHUP),
    ],
)
def test_a_signal_ends_a_measurement_in_order(
    bundle: Path, tmp_path: Path, number: signal.Signals, ignored: signal.Signals | None
) -> None:
    out = tmp_path / "my runs"
    process = start(bundle, out, ignored)
    wait_for_turns(process, out, 3)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "no sampler is running"
    if ignored == signal.SIGHUP:  # nohup: the terminal is closed, and the measurement goes on
        process.send_signal(signal.SIGHUP)
        wait_for_turns(process, out, 30)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    (line,) = [line for line in said.splitlines() if line.startswith("edge-tprune: ")]
    (path,) = out.iterdir()
    again = shlex.split(line.partition("continue with: ")[2])
    assert again == ["edge-tprune", "profile", str(bundle), "--resume", str(path)]
    assert "Traceback" not in said
    assert psutil.wait_procs(children, timeout=LIMIT_S)[1] == []
    run = read_run(path)
    assert run.end == "interrupted"
    assert len(run.turns) >= 3
    assert (path / "summary.json").exists()


def test_a_signal_while_a_complete_profile_is_closed_leaves_it_complete(bundle: Path, tmp_path: Path) -> None:
    """The summary follows, and the line says where it all is."""
    code = (
        "import os, signal, sys\n"
        "from edge_tprune.agent import session\n"
        "from edge_tprune.cli import run\n"
        "write = session.write_summary\n"
        "def late(run):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return write(run)\n"
        "session.write_summary = late\n"
        "run()\n"
    )
    options = ["--rounds", "2", "--seconds", "0", "--warmup", "0", "--baseline", "0", "--threads", "1", "--trace"]
    words = [sys.executable, "-c", code, "profile", str(bundle), "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == -signal.SIGTERM, done.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert f"interrupted when all was measured: the profile in {path} is complete" in done.stderr.replace("\n", " ")
    assert read_run(path).end == "complete"
    assert (path / "summary.json").exists()
    assert (path / "trace.json").exists()
