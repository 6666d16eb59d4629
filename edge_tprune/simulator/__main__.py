"""`python -m edge_tprune.simulator`: see `command`."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command can say how it was interrupted
    from edge_tprune.simulator.command import main

    signal.signal(signal.SIGINT, before)
    sys.exit(main(sys.argv[1:]))
