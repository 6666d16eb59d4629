"""What becomes of a fault of edge-tprune itself: one line for the person, and a file with everything that a report needs."""

from __future__ import annotations

import platform
import tempfile
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge_tprune.text import PLUGIN_MODULE, command_line, first_line
from edge_tprune.version import __version__

#: Packages whose version a report needs, where they are installed.
_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "scipy", "polars", "typer", "rich")


def describe_fault(error: BaseException, arguments: Sequence[str], debug: bool) -> str:
    """The line that ends a command which failed through no fault of the person.

    Args:
        error: what went wrong. Its traceback goes to a file, or to stderr with `debug`.
        arguments: the command line, without the program's name.
        debug: print the traceback instead of writing it to a file.
    """
    what = str(error) or "no message"
    named = what if type(error).__module__.startswith("edge_tprune") else f"{type(error).__name__}: {what}"
    place = None if debug else write_fault(error, arguments)
    if place is not None:
        return f"internal error: {named}. Please report this and attach {place}"
    if debug:
        traceback.print_exception(error)
        return f"internal error: {named}. Please report this with the traceback above"
    return f"internal error: {named}. Please report this with the output of: {_command(['--debug', *arguments])}"


def describe_plugin_fault(error: BaseException) -> str | None:
    """What ended a command in the code of a plugin, on one line; None where it arose elsewhere."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).startswith(PLUGIN_MODULE):
            from edge_tprune.reduction.own import describe_own_error

            file = frame.f_code.co_filename
            return f"plugin {file} fails: {describe_own_error(error, file)}"
    return None


def describe_import_fault(error: BaseException) -> str | None:
    """What ended a command while a package of others was imported, on one line; None where it was not.

    Such packages read environment variables, and raise whatever they meet there.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    ours = max((place for place, name in enumerate(names) if name in ("edge_tprune", "__main__")), default=-1)
    package = next(
        (name for frame, name in zip(frames[ours + 1 :], names[ours + 1 :]) if frame.f_code.co_name == "<module>"), None
    )
    if package is None:
        return None
    what = first_line(error).rstrip(".")
    return (
        f"the package {package} cannot be loaded: {type(error).__name__}: {what}. "
        "Check the environment variables that it reads, or install it again"
    )


def write_fault(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Writes the command line, versions and traceback to a new file in the temporary directory; None where that cannot be written."""
    text = "".join(traceback.format_exception(error))
    lines = [
        f"command: {_command(arguments)}",
        f"directory: {_directory()}",
        f"edge-tprune {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"packages: {', '.join(_versions())}",
        "",
        text,
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="edge-tprune-", suffix=".log", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write("\n".join(lines))
    except OSError:
        return None
    return Path(file.name)


def _command(arguments: Sequence[str]) -> str:
    return command_line("edge-tprune", *arguments)


def _directory() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "unknown"


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
