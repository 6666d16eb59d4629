"""Which code a reduction is computed with: what was computed with other code is not taken for what this computes."""

from __future__ import annotations

import hashlib
import inspect
import sys
from functools import lru_cache
from modulefinder import ModuleFinder
from pathlib import Path

from edge_tprune.reduction.own import is_own
from edge_tprune.reduction.registry import Reducer
from edge_tprune.text import PLUGIN_MODULE


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
        for file in [own, *_parts(method, own)]:
            digest.update(file.read_bytes())
    except (OSError, TypeError):  # typed into a notebook
        digest.update(f"{method.__module__}.{method.__qualname__}".encode())
    return digest.hexdigest()


def _loaded_below(directory: Path) -> set[Path]:
    """Modules from a directory that are loaded, however they were imported; without installed packages and this one."""
    found = set()
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "").resolve()
        is_other = name.partition(".")[0] in ("edge_tprune", "__main__") or {"site-packages", "dist-packages"} & set(file.parts)
        if not is_other and file.suffix == ".py" and file.is_relative_to(directory) and file.is_file():
            found.add(file)
    return found


def _parts(method: type[Reducer], own: Path) -> list[Path]:
    """Other files of the code of one's own: what a plugin imports from its directory, or those of an installed package."""
    if method.__module__.startswith(PLUGIN_MODULE):
        beside = own.resolve().parent
        finder = ModuleFinder([str(beside)], excludes=["edge_tprune"])
        try:
            finder.run_script(str(own))  # reads it, and runs nothing
        except Exception:  # it does not know every way of importing, such as from a directory without __init__.py
            files = {file for pattern in ("*.py", "*/*.py") for file in beside.glob(pattern) if file.is_file()}
        else:
            files = {Path(file) for module in finder.modules.values() if (file := getattr(module, "__file__", None))}
        return sorted(({file.resolve() for file in files} | _loaded_below(beside)) - {own.resolve()})
    package = getattr(sys.modules.get(method.__module__.partition(".")[0]), "__file__", None) or ""
    return sorted(filter(Path.is_file, Path(package).parent.rglob("*.py"))) if Path(package).name == "__init__.py" else []
