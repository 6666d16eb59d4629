from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from edge_tprune.agent import progress as module
from edge_tprune.agent.progress import TerminalProgress


def test_nothing_but_warnings_where_nobody_watches() -> None:
    text = io.StringIO()
    with TerminalProgress(Console(file=text)) as progress:
        progress.step(1, 4, "round 1")
        progress.warn("budget [0.5] failed: \x1b[31mnode")
    assert text.getvalue() == "budget [0.5] failed: \N{REPLACEMENT CHARACTER}[31mnode\n"


def test_a_bar_with_time_left_on_a_terminal_and_no_thread_that_draws_while_timing() -> None:
    text = io.StringIO()
    threads = threading.active_count()
    with TerminalProgress(Console(file=text, force_terminal=True, width=100)) as progress:
        progress.step(1, 4, "round 1 of 2, budget [0.5]")
        assert threading.active_count() == threads
        assert "1/4" in text.getvalue()
        assert ":--" in text.getvalue()
        assert "round 1 of 2, budget [0.5]" in text.getvalue()


@pytest.mark.parametrize(("quiet", "lines"), [(False, 2), (True, 0)])
def test_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, quiet: bool, lines: int) -> None:
    text, now = io.StringIO(), [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with TerminalProgress(Console(file=text), quiet=quiet) as progress:
        for done in range(8):
            progress.step(done, 8, f"round {done}")
            now[0] += 10
    said = text.getvalue().splitlines()
    assert len(said) == lines
    assert quiet or said[0] == "round 3: 3 of 8 steps done, about 50 s left"
