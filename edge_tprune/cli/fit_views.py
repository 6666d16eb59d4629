"""What `fit` shows: what was predicted beside what was measured, and the answer as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_tprune.analysis.choice import Answer
from edge_tprune.analysis.documents import answer_document as choice_document
from edge_tprune.analysis.table import Row
from edge_tprune.cli.model_views import schedule_text
from edge_tprune.cli.terminal import Heading, Table
from edge_tprune.search.fit import Round


def round_table(of: Round, rows: Sequence[Row], images: str) -> Table:
    """One row per network that was measured."""
    candidates = {candidate.name: candidate for candidate in of.candidates}
    several = len({row.precision for row in rows}) > 1
    cells = []
    for row in rows:
        name = row.budget.partition("@")[0]
        candidate = candidates.get(name)
        said = candidate.predicted if candidate is not None and candidate.precision == row.precision else None
        cells.append(
            [
                name,
                *([row.precision] if several else []),
                "" if row.unpruned else row.method,
                schedule_text(row.schedule),
                "" if said is None or said.low is None else f"{said.value:.2f} ±{said.value - said.low:.2f}",
                _number(row.value("p50_ms"), 2),
                _number(row.value("p95_ms"), 2),
                _number(row.value("agreement_percent"), 1),
                _number(row.value("kl_nats"), 4),
            ]
        )
    aims = ", ".join(f"{aim:.4g}" + (f" in {precision}" if several else "") for precision, aim in of.aims.items())
    numbers = [Heading(label, right=True) for label in ("predicted", "p50 (ms)", "p95 (ms)", "agrees (%)", "KL (nats)")]
    names = [
        Heading("network"),
        *([Heading("precision")] if several else []),
        Heading("method"),
        Heading("tokens after blocks", fold=True),
    ]
    return Table([*names, *numbers], cells, f"aimed at {aims}; accuracy on {images}")


def answer_document(out: Path, of: Round, answer: Answer, rows: Sequence[Row]) -> dict[str, object]:
    """The answer as JSON: the choice as `select --json` gives it, and where it lies."""
    predicted = {c.name: None if c.predicted is None else c.predicted.to_json() for c in of.candidates}
    return {
        "fit": str(out),
        "bundle": str(out / of.bundle),
        "profile": None if of.profile is None else str(out / of.profile),
        "aims": of.aims,
        "predicted": predicted,
        "schedules": {row.budget: list(row.schedule) for row in rows},
        "answer": choice_document(answer),
    }


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
