"""The lines that say how far a command is, where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edge_tprune.cli import progress


def test_the_time_left_is_of_this_part_of_the_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten minutes of one part say nothing of how long the next one takes."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.show_progress("work") as advance:
        for seconds, text, done, of in (
            (0.0, "building", 0, 10), (600.0, "building", 6, 10), (640.0, "photos", 0, 100), (680.0, "photos", 20, 100),
            (720.0, "accuracy", 0, 100), (760.0, "accuracy", 50, 100),
        ):  # fmt: skip
            now = seconds
            advance(text, done, of)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "building: 6 of 10, about 7 min left",
        "photos: 0 of 100",
        "photos: 20 of 100, about 3 min left",
        "accuracy: 0 of 100",
        "accuracy: 50 of 100, about 40 s left",
    ]


@pytest.mark.parametrize("code", ["", "0", "1;36", "38;5;237", "38;2;249;38;114", "3;90", "39"])
def test_a_progress_bar_of_a_board_may_have_colours(code: str) -> None:
    assert progress.DrawingFilter().pass_on(f"a\x1b[{code}mb") == f"a\x1b[{code}mb"


@pytest.mark.parametrize("code", ["8", "1;8", "5", "7", "30;40", "48;5;1", "38;5", "38;8", "100"])
def test_a_board_may_not_hide_text(code: str) -> None:
    assert "\x1b" not in progress.DrawingFilter().pass_on(f"a\x1b[{code}mb")


@pytest.mark.parametrize("then", [None, "collecting profiles"])
def test_what_a_board_draws_is_undone(then: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "open_stderr", lambda: Console(file=screen, force_terminal=True))
    with progress.BoardProgress(quiet=False) as watcher:
        watcher.step("profiling")
        watcher.live("\x1b[?25l\x1b[31mred")
        if then is not None:
            watcher.step(then)
    assert screen.getvalue().endswith("\x1b[?25l\x1b[31mred\x1b[0m\x1b[?25h")
