"""The two ways something ends early: the user can mend it (`UserError`), or the answer is honestly no (`HonestNo`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgeTPruneError(Exception):
    """Base of everything this package raises on purpose."""


class UserError(EdgeTPruneError):
    """A mistake that the caller can mend. One line: what is wrong, which value, what to do. Exit code 2."""


class HonestNo(EdgeTPruneError):
    """The question was fine and the answer is no (no budget meets the constraints, a check failed). Exit code 1."""


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """' Did you mean a, b?' for near matches of `word` among `known`, or '' where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def missing_package(package: str, extra: str) -> UserError:
    """The error for an optional package that is not installed, with the command that installs it."""
    return UserError(f"this needs the package {package}, which is not installed. Run: pip install 'edge-tprune[{extra}]'")
