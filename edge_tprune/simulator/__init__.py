"""Boards to test against without a board: their power follows the load by a known law, so the true energy is known.

Two forms of one law: `virtual` gives sources on a clock that is advanced by hand (hundreds of runs in seconds); `tree` keeps a
directory shaped like a board's /sys and /proc in real time (`python -m edge_tprune.simulator orin-nano DIR`).
A simulated board says so: its model is called simulated.
"""
