"""What a person sees while a profile runs. Nothing is drawn while something is timed: there is no refreshing thread."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from edge_tprune.text import describe_seconds, printable

_INTERVAL_S = 30.0  # between two lines where there is no terminal


class Progress:
    """Shows nothing."""

    def step(self, done: int, total: int, doing: str) -> None:
        """`done` of `total` steps are over and `doing` begins."""

    def warn(self, text: str) -> None:
        """Something that a person should know now."""


class TerminalProgress(Progress):
    """A bar with the time left where `console` is a terminal, a line now and then elsewhere, and warnings in any case. A context manager.

    Args:
        console: stderr by default.
        quiet: warnings only.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
        on = self._console.is_terminal and not quiet
        self._lines = not self._console.is_terminal and not quiet
        self._begin = self._last = time.monotonic()
        self._bar = Bar(*columns, console=self._console, transient=True, auto_refresh=False, disable=not on)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> TerminalProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, done: int, total: int, doing: str) -> None:
        """Draws the bar once, or prints a line if the last one was half a minute ago."""
        self._bar.update(self._task, completed=done, total=total, description=doing, refresh=True)
        now = time.monotonic()
        if self._lines and now - self._last >= _INTERVAL_S and done < total:
            self._last = now
            left = f", about {describe_seconds((now - self._begin) / done * (total - done))} left" if done else ""
            self.warn(f"{doing}: {done} of {total} steps done{left}")

    def warn(self, text: str) -> None:
        """Prints one line above the bar."""
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
