"""How a command stops before its end: Ctrl-C, or a signal."""

from __future__ import annotations


class Interruption(Exception):
    """Ctrl-C, with a word on where what was done is kept. Not a KeyboardInterrupt, which typer would end without a word."""
