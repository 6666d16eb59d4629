"""How a command ends early. Each kind of end has a type of its own, and an exit code that scripts can rely on:

| type | exit code | meaning |
|---|---|---|
| `NegativeAnswer` | 1 | the question was fine and the answer is no |
| `UserError` | 2 | something that the person can put right: an argument, a file, a full disk, a lost connection |
| `InternalError` | 3 | a fault of edge-tprune: please report it |
| `UnresolvedAnswer` | 3 | a gate asked, and the measurement cannot tell: measure more |

A script that gates on an answer therefore passes on 0 alone, and tells "no" (1) from "don't know" (3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class EdgeTPruneError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code: ClassVar[int] = 3


class NegativeAnswer(EdgeTPruneError):
    """The question was fine and the answer is no: no budget meets the constraints, a budget failed its check, something got worse."""

    exit_code = 1


class UserError(EdgeTPruneError):
    """Something the person can put right. One line: what is wrong, which value, what to do."""

    exit_code = 2


class ConnectionLost(UserError):
    """The connection to a board broke. Nobody's fault; what arrived stays on the board, and repeating the command goes on from it."""


class InternalError(EdgeTPruneError):
    """A promise that this package makes to itself was broken. The command line asks for a report, and writes what belongs into it to a file."""


class UnresolvedAnswer(EdgeTPruneError):
    """A gate asked a question that the measurement is too noisy or too short to answer. Neither yes nor no."""


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """' Did you mean a, b?' for near matches of `word` among `known`, or '' where nothing is near."""
    import difflib  # here: whatever is imported while the command starts is time in which Ctrl-C is not answered in a line

    near = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def missing_package(package: str, extra: str, error: ImportError | None = None) -> UserError:
    """The error for an optional package that is not installed, with the command that installs it; or that is, and cannot be loaded.

    Args:
        package: its name.
        extra: the extra of edge-tprune that has it.
        error: what importing it raised: too little memory or too few file handles are no missing package.
    """
    if error is not None and not (isinstance(error, ModuleNotFoundError) and error.name in (None, package)):
        return UserError(f"the package {package} is installed and cannot be loaded: {error}")
    board = ". On a board: sudo apt-get install python3-pil" if package == "pillow" else ""
    return UserError(
        f"this needs the package {package}, which is not installed. Run: pip install 'edge-tprune[{extra}]'{board}"
    )
