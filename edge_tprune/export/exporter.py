"""PyTorch's exporter to ONNX, quieter and quicker than it comes.

What is quicker replaces parts of the exporter that have no public name: where a release of PyTorch has other names, that
part stays as it is and graphs take longer.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.export import ExportedProgram

from edge_tprune.export.lowering import lower

_CHATTY = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir")
_tables: dict[tuple[Any, ...], Any] = {}  #: by what was asked for: the opset


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's progress chatter off the person's terminal."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def kept_translations() -> Iterator[None]:
    """Keeps the exporter's table of how ONNX writes each operator, which it would make again for every graph.

    That is a seventh of the time of a small graph.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
        _ = ONNXRegistry().functions  # what is copied below
    except (ImportError, KeyError, AttributeError):
        yield
        return
    make = ONNXRegistry.from_torchlib

    def read(*asked: Any, **named: Any) -> Any:
        key = (*asked, *sorted(named.items()))
        if key not in _tables:
            _tables[key] = make(*asked, **named)
        table = copy.copy(_tables[key])
        table.functions = {target: list(ways) for target, ways in table.functions.items()}  # a graph may add its own operators
        return table

    setattr(ONNXRegistry, "from_torchlib", staticmethod(read))  # noqa: B010  # mypy knows it as a method
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", original)  # noqa: B010


@contextmanager
def lowered_in_place() -> Iterator[None]:
    """Rewrites a captured program by `lower`, where the exporter would trace it again: a third of the time of a graph."""
    try:
        from torch.onnx._internal.exporter import _fx_passes
        from torch.onnx._internal.exporter._decomp import get_onnx_implemented_overloads

        original = _fx_passes.decompose_with_registry
    except (ImportError, AttributeError):
        yield
        return

    def decompose(program: ExportedProgram, registry: Any) -> ExportedProgram:
        return program if lower(program, frozenset(get_onnx_implemented_overloads(registry))) else original(program, registry)

    setattr(_fx_passes, "decompose_with_registry", decompose)  # noqa: B010  # mypy holds it to its first type
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = original


_IDLE_RULES = (
    "Fuse",
    "NormalizePad",
    "Scatter",
    "SlicesSplit",
)  #: how the names of rules begin that change no plain vision transformer's graph


@contextmanager
def fewer_rules() -> Iterator[None]:
    """Leaves out rules of the exporter's optimizer that are for other networks (batch norms, ReLUs, padded convolutions).

    The optimizer tries each rule on each node, a third of the time of a graph.
    """
    try:
        from onnxscript import rewriter

        original = rewriter._DEFAULT_REWRITE_RULES
        kept = tuple(rule for rule in original if not str(rule.name).startswith(_IDLE_RULES))
    except (ImportError, AttributeError, TypeError):
        yield
        return
    rewriter._DEFAULT_REWRITE_RULES = kept or original  # the optimizer refuses an empty tuple
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = original


@contextmanager
def quick_exporter() -> Iterator[None]:
    """All of the above."""
    with quiet_exporter(), kept_translations(), lowered_in_place(), fewer_rules():
        yield
