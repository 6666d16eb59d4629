"""Which code a reduction is computed with: what was computed with other code is not taken for what this computes."""

from __future__ import annotations

import hashlib
import inspect
from functools import lru_cache
from pathlib import Path

from edge_tprune.reduction.own import is_own
from edge_tprune.reduction.registry import Reducer


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """SHA-256 of the package's reduction code."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    names = ("adapter", "families", "vit", "eva", "beit")
    files = [*(package / "reduction").rglob("*.py"), *(package / "models" / f"{name}.py" for name in names)]
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def method_code_sha256(method: type[Reducer]) -> str:
    """SHA-256 of the code that computes a method: the package's, and the file of one's own."""
    if not is_own(method):
        return code_sha256()
    try:
        own = Path(inspect.getsourcefile(method) or "").read_bytes()
    except (OSError, TypeError):  # typed into a notebook
        own = f"{method.__module__}.{method.__qualname__}".encode()
    return hashlib.sha256(code_sha256().encode() + own).hexdigest()
