"""How a method's default form did beside the form of its authors (`Reducer.faithful`), as `python -m tests.benchmarks.faithful` found it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

FAITHFUL_EVIDENCE = Path(__file__).parent / "faithful_evidence.json"


@lru_cache
def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FAITHFUL_EVIDENCE.read_text(encoding="utf-8"))
    return found


def faithful_evidence(method: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Network -> budget -> `default` and `faithful`, each with `kl` in nats and `top1_change_points`, and the default less the authors' form, paired by image:
    `kl_difference` and `top1_difference_points`, each with its interval. `same` where both forms are one. Empty where a method has one form."""
    return {
        network: {row["budget"]: row for row in found["rows"] if row["method"] == method}
        for network, found in _document().items()
        if any(row["method"] == method for row in found["rows"])
    }
