"""`python -m edge_tprune` is `edge-tprune`."""

from edge_tprune.cli import run

run()
