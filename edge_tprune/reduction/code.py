"""Which code a reduction is computed with: what was computed with other code is not taken for what this computes."""

from __future__ import annotations

import hashlib
import inspect
import sys
from functools import lru_cache
from pathlib import Path

from edge_tprune.reduction.own import is_own
from edge_tprune.reduction.registry import Reducer

HELPERS: dict[str, tuple[Path, ...]] = {}
"""Module of a plugin -> the files that it imported from its directory."""


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
    """SHA-256 of the code that computes a method: the package's, and for one's own its file and the modules that it imports from beside it."""
    if not is_own(method):
        return code_sha256()
    digest = hashlib.sha256(code_sha256().encode())
    try:
        own = Path(inspect.getsourcefile(method) or "")
        for file in [own, *_parts(method)]:
            digest.update(file.read_bytes())
    except (OSError, TypeError):  # typed into a notebook
        digest.update(f"{method.__module__}.{method.__qualname__}".encode())
    return digest.hexdigest()


def _parts(method: type[Reducer]) -> list[Path]:
    """Other files of the code of one's own: what a plugin imported from its directory, or the modules of an installed package."""
    if method.__module__ in HELPERS:
        return list(HELPERS[method.__module__])
    package = method.__module__.partition(".")[0]
    modules = [
        module for name, module in list(sys.modules.items()) if name.startswith(f"{package}.") and name != method.__module__
    ]
    return sorted({Path(file) for module in modules if (file := getattr(module, "__file__", None))})
