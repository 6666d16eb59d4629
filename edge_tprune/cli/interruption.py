"""How a command says what it kept when it was interrupted."""

from __future__ import annotations


class Interruption(Exception):
    """Ctrl-C or a signal, with a word on where what was done is kept. Not a KeyboardInterrupt, which typer would end without a word."""
