"""How the command line ends, whatever happens inside."""

from __future__ import annotations

import errno
import json
import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edge_tprune import __version__
from edge_tprune.errors import ConnectionLost, InternalError, NegativeAnswer, UnresolvedAnswer, UserError
from tests.cli.conftest import Outcome

Command = Callable[..., Outcome]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], None]:
    """Makes the command `doctor` raise what is given."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail_with(error: BaseException) -> None:
        def examine(*_: object) -> None:
            raise error

        monkeypatch.setattr("edge_tprune.agent.doctor.examine", examine)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NegativeAnswer("no budget\n fits"), 1),
        (UserError("no budget\n fits"), 2),
        (ConnectionLost("no budget fits"), 2),
        (UnresolvedAnswer("no budget fits"), 3),
    ],
)
def test_what_is_raised_on_purpose_is_one_line(
    command: Command, failing: Callable[..., None], error: Exception, code: int
) -> None:
    failing(error)
    outcome = command("doctor")
    assert (outcome.code, outcome.err) == (code, "edge-tprune: no budget fits\n")


def test_no_is_an_answer_in_json_too(command: Command, failing: Callable[..., None]) -> None:
    failing(NegativeAnswer("no budget\n fits"))
    assert command("doctor").out == ""
    outcome = command("doctor", "--json")
    assert (outcome.code, outcome.err) == (1, "edge-tprune: no budget fits\n")
    assert json.loads(outcome.out) == {"reason": "no budget\n fits"}


@pytest.mark.parametrize(
    ("error", "named"),
    [(KeyError("x"), "KeyError: 'x'"), (ValueError(), "ValueError: no message"), (InternalError("odd"), "odd")],
)
def test_a_fault_asks_for_a_report_with_a_file(
    command: Command, failing: Callable[..., None], error: Exception, named: str
) -> None:
    failing(error)
    outcome = command("doctor", "--sysroot", "/")
    assert outcome.code == 3
    match = re.fullmatch(
        rf"edge-tprune: internal error: {re.escape(named)}\. Please report this and attach (\S+)\n", outcome.err
    )
    assert match, outcome.err
    text = Path(match[1]).read_text()
    assert "command: edge-tprune doctor --sysroot /" in text
    assert f"edge-tprune {__version__}, Python 3." in text
    assert "Traceback" in text
    assert type(error).__name__ in text
    assert Path(match[1]).stat().st_mode & 0o077 == 0, "a command line may name what is private"


@pytest.mark.parametrize("words", [["compare"], ["eval"], ["export", "--budget", "1.0", "--out", "e"], ["doctor", "--sysroot"]])
def test_a_loop_of_links_is_one_line(command: Command, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    outcome = command(*words, tmp_path / "loop" if words[-1] != "e" else tmp_path / "loop" / "x")
    assert outcome.code == 2, outcome.err
    assert outcome.err.count("\n") == 1


def test_debug_shows_the_traceback_and_writes_nothing(command: Command, failing: Callable[..., None], tmp_path: Path) -> None:
    failing(KeyError("x"))
    outcome = command("--debug", "doctor")
    assert outcome.code == 3
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("edge-tprune: internal error: KeyError: 'x'")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_cannot_be_written_names_the_command_to_repeat(
    command: Command, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(KeyError("x"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    outcome = command("doctor", "--sysroot", "/")
    assert outcome.code == 3
    again = outcome.err.strip().rpartition("output of: ")[2]
    assert shlex.split(again) == ["edge-tprune", "--debug", "doctor", "--sysroot", "/"]


NO_PROCESS = "no more processes or threads can be started: end others of this user, or raise the limit (ulimit -u)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, "Too many open files", "/x"), "Too many open files: /x"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "File name too long"),
        (OSError(errno.EFBIG, "File too large"), "File too large"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/']"),
            "there is no directory for temporary files: set TMPDIR to one that can be written",
        ),
        (
            OSError("Matplotlib requires access to a writable cache directory, but there was an issue with the default path"),
            "there is no directory for temporary files: set TMPDIR to one that can be written",
        ),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), NO_PROCESS),
        (RuntimeError("can't start new thread"), NO_PROCESS),
        (RuntimeError("std::bad_alloc"), "out of memory: close what else uses it, or give smaller numbers"),
        (MemoryError(), "out of memory: close what else uses it, or give smaller numbers"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            "out of memory: close what else uses it, or give smaller numbers",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "out of memory: close what else uses it, or give smaller numbers",
        ),
    ],
)
def test_what_the_machine_refuses_is_no_fault(
    command: Command, failing: Callable[..., None], error: Exception, line: str
) -> None:
    failing(error)
    outcome = command("doctor")
    assert (outcome.code, outcome.err) == (2, f"edge-tprune: {line}\n")


def test_whatever_fails_with_little_memory_left_is_no_fault(
    command: Command, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(RuntimeError("operator torchvision::nms does not exist"))
    monkeypatch.setattr("edge_tprune.cli.memory_left", lambda: 100 << 20)
    outcome = command("doctor")
    assert (outcome.code, outcome.err) == (2, "edge-tprune: out of memory: close what else uses it, or give smaller numbers\n")


@pytest.mark.parametrize("arguments", [["compare"], ["compare", "--markdwn", "x"], ["select", "x", "--max-p95-ms", "fast"]])
def test_a_usage_error_points_to_the_help_of_its_command(command: Command, arguments: list[str]) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.err.endswith(f"See: edge-tprune {arguments[0]} --help\n")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["compare", ""], "the argument after compare"),
        (["build", "reference", "--out="], "--out="),
        (["", "x"], "the argument after edge-tprune"),
    ],
)
def test_an_empty_argument_is_no_directory(command: Command, arguments: list[str], where: str) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"edge-tprune: {where} is empty")


@pytest.mark.parametrize("digits", [20, 308, 309, 400, 4000])
def test_a_number_of_any_length_is_out_of_range(command: Command, digits: int) -> None:
    outcome = command("eval", "x", "--limit", "9" * digits)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "out of range" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "reference", "--budgets", "", "--data", "x"],
        ["deploy", "x", "y", "--profile="],
        ["deploy", "x", "y", "--profile", ""],
    ],
)
def test_an_option_of_which_nothing_means_none_may_be_empty(command: Command, arguments: list[str]) -> None:
    assert "is empty" not in command(*arguments).err
