"""Kinds of error and their exit codes."""

from __future__ import annotations

import importlib
import pkgutil

import edge_tprune
from edge_tprune import errors


def test_every_kind_has_its_exit_code() -> None:
    codes = {kind.__name__: kind.exit_code for kind in (errors.NegativeAnswer, errors.UserError, errors.InternalError)}
    assert codes == {"NegativeAnswer": 1, "UserError": 2, "InternalError": 3}
    assert errors.UnresolvedAnswer.exit_code == 3
    assert issubclass(errors.ConnectionLost, errors.UserError)


def test_every_error_of_the_package_is_of_exactly_one_kind() -> None:
    for module in pkgutil.walk_packages(edge_tprune.__path__, "edge_tprune."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ImportError:  # an optional package is not here
                continue
    kinds = (errors.NegativeAnswer, errors.UserError, errors.InternalError, errors.UnresolvedAnswer)
    found, waiting = [], [errors.EdgeTPruneError]
    while waiting:
        found += (more := waiting.pop().__subclasses__())
        waiting += more
    assert len(found) > len(kinds)
    for kind in found:
        assert sum(issubclass(kind, each) for each in kinds) == 1, kind
