"""How far a command is, on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from edge_tprune.cli.terminal import open_stderr, print_note
from edge_tprune.text import describe_seconds, printable

Advance = Callable[[str, int, int], None]  #: called as (what, done, of)

_INTERVAL_S = 30.0  #: between two lines where there is no terminal


class CountColumn(ProgressColumn):
    """'3/12'; nothing before it is known how many there are."""

    def render(self, task: Task) -> Text:
        """The text of the column."""
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


@contextmanager
def show_progress(what: str, quiet: bool = False) -> Iterator[Advance]:
    """Yields a function to be called with (what, done, of) as the work goes on.

    Args:
        what: the work, shown until something more precise is known.
        quiet: show nothing.
    """
    console = open_stderr()
    if not console.is_terminal:
        yield (lambda text, done, of: None) if quiet else _LineProgress().advance
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), CountColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda text, done, of: bar.update(task, description=printable(text), completed=done, total=of)


class _LineProgress:
    """A line at most every half a minute, with the time that is left of this part of the work: another total, or fewer done, begins another part."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._begin, self._first, self._done, self._of = self._last, 0, 0, -1

    def advance(self, text: str, done: int, of: int) -> None:
        now = time.monotonic()
        if of != self._of or done < self._done:
            self._begin, self._first, self._of = now, done, of
        self._done = done
        if now - self._last < _INTERVAL_S or done >= of:
            return
        self._last = now
        new = done - self._first
        left = f", about {describe_seconds((now - self._begin) / new * (of - done))} left" if new else ""
        print_note(f"{text}: {done} of {of}{left}")


class DrawingFilter:
    """Lets through what a progress bar needs, of what a board's program writes: colours, erasing a line, moving up. Nothing else steers
    this terminal: no title, no clipboard, no answer back, no hidden text."""

    _STYLE = r"(?:[0-4]|2[1-4]|3[0-79]|9[0-7]|38;5;\d{1,3}|38;2;\d{1,3};\d{1,3};\d{1,3})"
    _ALLOWED = re.compile(rf"\x1b\[((?:{_STYLE}(?:;{_STYLE})*)?m|\d{{0,2}}[AK]|\?25[lh])")
    _UNFINISHED = re.compile(r"\x1b(\[[\d;?]{0,30})?$")

    def __init__(self) -> None:
        self._rest = ""

    def pass_on(self, text: str) -> str:
        """The part of `text` that may be shown; a sequence that is cut off waits for the rest of it."""
        text, self._rest = self._rest + text, ""
        if unfinished := self._UNFINISHED.search(text):
            text, self._rest = text[: unfinished.start()], unfinished.group()
        kept, place = [], 0
        for match in self._ALLOWED.finditer(text):
            kept += [_printable_lines(text[place : match.start()]), match.group()]
            place = match.end()
        return "".join([*kept, _printable_lines(text[place:])])


def _printable_lines(text: str) -> str:
    return "".join(part if part in "\r\n" else printable(part) for part in re.split(r"([\r\n])", text))


class BoardProgress:
    """Steps as lines, copying as a bar, and what `profile` draws as it draws it; on stderr."""

    def __init__(self, quiet: bool) -> None:
        self._console = open_stderr()
        self._live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._filter = DrawingFilter()
        self._drawn = False  #: by a board's program, which need not have undone it
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._live)
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> BoardProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._undo_drawing()

    def _undo_drawing(self) -> None:
        """Plain text and a cursor again."""
        if self._drawn:
            self._drawn = False
            with suppress(OSError):
                self._console.file.write("\x1b[0m\x1b[?25h")
                self._console.file.flush()

    def step(self, text: str) -> None:
        """Something begins."""
        self._undo_drawing()
        self._bar.update(self._task, visible=False)
        if text == "profiling":
            self._bar.stop()  # the board draws now
        if not self._quiet:
            print_note(f"… {text}")

    def advance(self, done: int, of: int) -> None:
        """`done` of `of` bytes are copied."""
        self._bar.update(self._task, visible=True, completed=done, total=of)

    def live(self, text: str) -> None:
        """What a program on the board writes while it runs, as it comes."""
        if self._live:
            self._drawn = True
            self._console.file.write(self._filter.pass_on(text))
            self._console.file.flush()


class BoardLines:
    """Steps as lines that begin with the board's name, for several boards at once."""

    def __init__(self, name: str, quiet: bool) -> None:
        self._name, self._quiet = name, quiet

    def step(self, text: str) -> None:
        """Something begins."""
        if not self._quiet:
            print_note(f"{self._name}: {text}")

    def advance(self, done: int, of: int) -> None:
        """Nothing: bars of several boards would fight for the line."""

    def live(self, text: str) -> None:
        """Nothing, likewise."""
