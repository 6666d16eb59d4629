"""PyTorch's exporter to ONNX, quieter and quicker than it comes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

    That is a seventh of the time of a small graph. The table has no public name: where a release of PyTorch has another, nothing is kept and
    graphs take as long as before.
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
