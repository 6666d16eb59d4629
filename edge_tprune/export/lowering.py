"""Rewrites the few operations of a captured program that ONNX has no translation for, in place.

PyTorch's exporter does this by tracing the whole program again, which is a third of the time of an export.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_aten = torch.ops.aten

_SAME_VALUES = {_aten.alias.default, _aten.dropout.default, _aten.contiguous.default}  #: of a network in evaluation
_RESHAPES = {_aten.reshape.default, _aten.flatten.using_ints, _aten.view.default, _aten.unflatten.int}
_OTHER_NAMES = {_aten.__and__.Tensor: _aten.bitwise_and.Tensor, _aten.__or__.Tensor: _aten.bitwise_or.Tensor}


def lower(program: ExportedProgram, translated: Collection[Any]) -> bool:
    """Rewrites `program` so that ONNX has a translation for each of its operations.

    Args:
        translated: the operations that have one.

    Returns:
        False, and the program as it was, where it holds an operation that this file does not know, or one that writes
        into its input.
    """
    graph = program.graph_module.graph
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    if not all(_is_known(node, translated) for node in nodes):
        return False
    for node in nodes:
        if node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        else:
            _lower_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return True


def _is_known(node: Node, translated: Collection[Any]) -> bool:
    target: Any = node.target
    if target is operator.getitem:
        return True
    schema = getattr(target, "_schema", None)
    if schema is None or schema.is_mutable or (target is _aten.dropout.default and node.args[2]):
        return False
    return target in translated or target in _REWRITTEN or target.namespace == "onnx"


def _lower_node(node: Node) -> None:
    target: Any = node.target
    value: Any = node.meta["val"]
    source = node.args[0] if node.args else None
    if target is _aten.to.dtype:
        assert isinstance(source, Node)
        if source.meta["val"].dtype == value.dtype:
            _replace(node, source)
        else:
            node.target, node.args, node.kwargs = _aten._to_copy.default, (source,), {"dtype": value.dtype}
    elif target in _SAME_VALUES:
        assert isinstance(source, Node)
        _replace(node, source)
    elif target in _RESHAPES:
        node.target, node.args, node.kwargs = _aten.reshape.default, (source, list(value.shape)), {}
    elif target is _aten.chunk.default:
        dimension = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        node.target, node.args, node.kwargs = _aten.split.Tensor, (source, value[0].shape[dimension], dimension), {}
    elif target in _OTHER_NAMES:
        node.target = _OTHER_NAMES[target]


_REWRITTEN = {
    _aten.to.dtype,
    _aten._assert_tensor_metadata.default,
    _aten.chunk.default,
    *_SAME_VALUES,
    *_RESHAPES,
    *_OTHER_NAMES,
}


def _replace(node: Node, source: Node) -> None:
    """Lets what reads `node` read `source`. An output of the program keeps the name that its signature has for it."""
    node.replace_all_uses_with(source, delete_user_cb=lambda user: user.op != "output")
    node.target, node.args, node.kwargs = _aten.alias.default, (source,), {}
