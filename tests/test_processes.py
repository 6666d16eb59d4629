"""How signals are called."""

from __future__ import annotations

import signal

from edge_tprune.processes import signal_name


def test_every_signal_has_a_name() -> None:
    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(40) == "signal 40"
    assert all(signal_name(number) for number in range(1, signal.NSIG))
