"""What the commands about latency models show, as tables."""

from __future__ import annotations

from edge_tprune.cli.model_views import schedule_text
from edge_tprune.cli.terminal import Heading, Table
from edge_tprune.schedule.latency import Latency


def latency_table(found: Latency) -> Table:
    """Per graph what was measured, and what the others say of it."""
    model = found.costs["p50_ms"]
    rows = []
    for probe in model.probes:
        if probe.predicted is None:
            predicted, off = "not known", ""
        else:
            predicted, off = f"{probe.predicted:.3f}", f"{100 * (probe.predicted / probe.measured - 1):+.1f}"
        rows.append([probe.method, schedule_text(probe.schedule), f"{probe.measured:.3f}", predicted, off])
    numbers = [Heading(label, right=True) for label in ("p50 (ms)", "from the others", "off (%)")]
    title = (
        f"{found.network.name} on {found.machine}, {found.runtime}, batch {found.batch}: "
        f"p50 of a schedule ±{100 * model.reach:.1f} %, known from {model.tokens[0]} to {model.tokens[-1]} tokens"
    )
    return Table([Heading("method"), Heading("tokens after blocks", fold=True), *numbers], rows, title)
