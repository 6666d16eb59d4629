"""Methods of one's own: from a file that is named (`--plugin FILE.py`), or from an installed package that announces them.

A package announces its methods in its `pyproject.toml`; the value is a module that registers some, or a `Reducer` class:

    [project.entry-points."edge_tprune.methods"]
    keep_longest = "my_package.reducers"
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from edge_tprune.errors import UserError
from edge_tprune.reduction import registry
from edge_tprune.reduction.own import describe_own_error, keep_torch_settings
from edge_tprune.reduction.registry import Reducer
from edge_tprune.text import PLUGIN_MODULE, one_line

GROUP = "edge_tprune.methods"


def load_plugin(file: Path) -> list[str]:
    """Runs a Python file and returns the names of the methods that it registered.

    Raises:
        UserError: no such file, an error in it, or it registers no method.
    """
    if not file.is_file():
        what = "is no file" if file.exists() else "does not exist"
        raise UserError(f"plugin {file} {what}: give a Python file that registers a method")
    before = dict(registry.methods())
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    name = f"{PLUGIN_MODULE}{digest}_{file.stem.replace('-', '_').replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):  # a method's source is part of what it is known by
        raise UserError(f"plugin {file} is not a Python file: give one whose name ends with .py")
    _check_namesakes(file)
    known = set(sys.modules)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a class's source is looked for
    beside = str(file.resolve().parent)
    sys.path.insert(0, beside)  # as of a script: modules beside it can be imported
    try:
        with keep_torch_settings():
            spec.loader.exec_module(module)
    except BaseException as error:  # also SystemExit, and kinds of its own
        sys.modules.pop(name, None)  # it may have taken itself out
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"plugin {file} cannot be run: {_where(error, file)}") from error
    finally:
        with suppress(ValueError):  # the plugin may have changed the path
            sys.path.remove(beside)
    _HELPERS.update(set(sys.modules) - known)
    added = [key for key, cls in registry.methods().items() if before.get(key) is not cls]
    if not added:
        raise UserError(
            f"plugin {file} registers no method: decorate a subclass of edge_tprune.reduction.Reducer with @edge_tprune.reduction.register"
        )
    return added


_HELPERS: set[str] = set()  #: names of modules that plugins imported


def _check_namesakes(file: Path) -> None:
    """Refuses a plugin beside which a module lies whose name another plugin's module has: Python would give it that one."""
    for name in sorted(_HELPERS & set(sys.modules)):
        own, other = file.resolve().parent / f"{name}.py", getattr(sys.modules[name], "__file__", None)
        if own.is_file() and other and Path(other).resolve() != own:
            raise UserError(
                f"plugin {file} has a module {name} beside it, and another plugin has one too, {other}: rename one of them"
            )


@lru_cache(maxsize=1)
def load_announced() -> dict[str, str]:
    """Loads the methods that installed packages announce; returns what is wrong with those that cannot be loaded, by name."""
    wrong = {}
    for point in entry_points(group=GROUP):
        try:
            _load(point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # one broken package must not keep all others from working, nor end the program
            package = point.dist.name if point.dist is not None else point.value
            wrong[point.name] = (
                f"the package {package} announces it, and it cannot be loaded ({type(error).__name__}: {one_line(error)})"
            )
    return wrong


def _load(point: EntryPoint) -> None:
    found = point.load()
    if isinstance(found, type) and issubclass(found, Reducer) and found.name not in registry.methods():
        registry.register(found)


def plugin_file(method: type[Reducer]) -> str | None:
    """The file to name with --plugin, for a method that comes from one."""
    if not method.__module__.startswith(PLUGIN_MODULE):
        return None
    return inspect.getsourcefile(method)


def plugin_files(names: Iterable[str]) -> list[Path]:
    """The files that another process must load (`load_plugin`) to know these methods.

    Raises:
        UserError: a method that no other process can load.
    """
    found: dict[Path, None] = {}
    for name in names:
        cls = registry.method(name)
        if (file := plugin_file(cls)) is not None:
            found[Path(file)] = None
        elif cls.__module__ == "__main__":
            raise UserError(
                f"method {name} was defined in this program, where other processes cannot find it: put it into a file and load that "
                "(edge_tprune.reduction.plugins.load_plugin), or use one worker"
            )
    return list(found)


def _where(error: BaseException, file: Path) -> str:
    """The error, and the line of the plugin that it arose in."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    if isinstance(error, SystemExit):
        return "it ends the program (sys.exit). Put that under: if __name__ == '__main__'"
    return describe_own_error(error, str(file))
