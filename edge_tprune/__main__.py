"""`python -m edge_tprune` is `edge-tprune`."""

from __future__ import annotations

import signal


def start() -> None:
    """Runs the command of the process. Until that can say how it was interrupted, Ctrl-C ends it without a word."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edge_tprune.cli import run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    start()
