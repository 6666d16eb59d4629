"""Edits of a graph by which a wrong engine is examined and avoided: cut after a block, or computed in float32 in part.

All work on the graphs that `build` writes, whose nodes are named after the modules they came from ("model.blocks.3.attn.qkv/MatMul_9") and lie in the
order of the network (`edge_tprune.export.graph`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from edge_tprune.bundle.graph_file import FLOAT, HALF, GraphFile, Node, cast_node, output_entry

_BLOCK = re.compile(r"model\.blocks\.(\d+)\.")
_NORM = re.compile(r"norm\d?(\.\w+)?/")
_MODULES = ("model.blocks.", "model.patch_embed.", "model.head", "model.norm", "model.fc_norm")
_WIDE = "/float32"  # ends the name of a value that stands for a half precision one
_PROBE = "probe"


def block_ends(graph: GraphFile) -> tuple[int, ...]:
    """The places of the nodes that give the residual stream after each block: the sum that what its last module gave goes into.

    Raises:
        ValueError: the graph is not like that.
    """
    last: dict[int, int] = {}
    for place, node in enumerate(graph.nodes):
        if match := _BLOCK.match(node.name):
            last[int(match[1])] = place
    if not last or sorted(last) != list(range(len(last))):
        raise ValueError("its nodes are not named after blocks")
    ends = tuple(_residual_sum(graph, last[block]) for block in range(len(last)))
    if list(ends) != sorted(set(ends)):
        raise ValueError("its blocks are not one after the other")
    return ends


def _residual_sum(graph: GraphFile, place: int) -> int:
    """The first Add of two computed values that follows a node."""
    made = graph.producers()
    values = set(graph.nodes[place].outputs)
    for later in range(place + 1, len(graph.nodes)):
        node = graph.nodes[later]
        if values.isdisjoint(node.inputs):
            continue
        if node.op_type == "Add" and all(name in made for name in node.inputs):
            return later
        values.update(node.outputs)
    raise ValueError(f"nothing is added to what {graph.nodes[place].name} gives")


def block_nodes(graph: GraphFile, block: int) -> set[int]:
    """The places of the nodes of a block, counted from 1, attention and what chooses its tokens included."""
    ends = block_ends(graph)
    return set(range(ends[block - 2] + 1 if block > 1 else _first_of(graph, 0), ends[block - 1] + 1))


def _first_of(graph: GraphFile, block: int) -> int:
    return next(place for place, node in enumerate(graph.nodes) if node.name.startswith(f"model.blocks.{block}."))


def cut_after(graph: GraphFile, block: int) -> GraphFile:
    """The network up to a block, counted from 1: its one output is the residual stream after it, (B, N, C) or (B N, C), float32."""
    end = block_ends(graph)[block - 1]
    value = graph.nodes[end].outputs[0]
    nodes = (*graph.nodes[: end + 1], cast_node(value, _PROBE, FLOAT, "probe/Cast"))
    return replace(graph, nodes=nodes, outputs={_PROBE: output_entry(_PROBE)}).pruned()


def norm_nodes(graph: GraphFile) -> set[int]:
    """The places of the nodes that compute norms."""
    return {place for place, node in enumerate(graph.nodes) if _NORM.search(node.name) and node.op_type != "Cast"}


def attention_nodes(graph: GraphFile) -> set[int]:
    """The places of all products of queries and keys, and of attention and values, and of what lies between: scale, bias, softmax."""
    made = graph.producers()
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(graph.nodes):
        for name in node.inputs:
            readers.setdefault(name, []).append(place)
    found = {place for place, node in enumerate(graph.nodes) if node.op_type == "Attention"}
    for place, node in enumerate(graph.nodes):
        if node.op_type == "Softmax":
            before = [made[name] for name in node.inputs if name in made]
            after = [later for name in node.outputs for later in readers.get(name, ())]
            found.add(place)
            for start, forward in ((before, False), (after, True)):
                found |= _to_product(graph, start, made, readers, forward=forward)
    return found


def _to_product(
    graph: GraphFile, start: list[int], made: dict[str, int], readers: dict[str, list[int]], *, forward: bool
) -> set[int]:
    """The nodes from `start` to the first MatMul on each way; of ways on which there is none, no node."""
    found: set[int] = set()
    for first in start:
        place, way = first, {first}
        while graph.nodes[place].op_type != "MatMul":
            node = graph.nodes[place]
            after = [later for name in node.outputs for later in readers.get(name, ())]
            steps = after if forward else [made[name] for name in node.inputs[:1] if name in made]
            if len(steps) != 1:
                break
            place = steps[0]
            way.add(place)
        else:
            found |= way
    return found


def stream_nodes(graph: GraphFile) -> set[int]:
    """The places of all nodes outside the network's modules: the residual stream, attention, and what chooses tokens."""
    return {place for place, node in enumerate(graph.nodes) if not node.name.startswith(_MODULES)}


def in_float(graph: GraphFile, places: Collection[int]) -> GraphFile:
    """A graph whose nodes at `places` compute in float32 what they computed in half precision; the others stay what they are.

    What enters them is cast, weights too, and what leaves them is cast back; between them nothing is rounded.
    """
    half, chosen = graph.half_values(), set(places)
    readers_outside = {
        name for place, node in enumerate(graph.nodes) if place not in chosen for name in node.inputs
    } | graph.outputs.keys()
    nodes: list[Node] = []
    wide: set[str] = set()
    for place, node in enumerate(graph.nodes):
        if place not in chosen or half.isdisjoint((*node.inputs, *node.outputs)) or node.op_type == "Constant":
            nodes.append(node)
            continue
        for name in node.inputs:
            if name in half and name not in wide:
                nodes.append(cast_node(name, name + _WIDE, FLOAT, f"to_float32/{name}"))
                wide.add(name)
        narrow = [name for name in node.outputs if name in half]
        inputs, outputs = (
            tuple(name + _WIDE if name in half else name for name in names) for names in (node.inputs, node.outputs)
        )
        if node.cast_to == HALF:
            nodes.append(cast_node(inputs[0], outputs[0], FLOAT, node.name))
        else:
            nodes.append(replace(node, inputs=inputs, outputs=outputs))
        wide.update(narrow)
        nodes += [cast_node(name + _WIDE, name, HALF, f"to_float16/{name}") for name in narrow if name in readers_outside]
    return replace(graph, nodes=tuple(nodes)).pruned()


def without_integers(graph: GraphFile, places: Collection[int]) -> GraphFile:
    """A graph whose nodes at `places` read their inputs unrounded where they read 8-bit integers; weights stay integers."""
    made, half = graph.producers(), graph.half_values()
    nodes = []
    for place, node in enumerate(graph.nodes):
        source = None
        if place in places and node.op_type == "DequantizeLinear" and node.inputs[0] in made:
            quantize = graph.nodes[made[node.inputs[0]]]
            source = quantize.inputs[0] if quantize.op_type == "QuantizeLinear" and quantize.inputs[0] in made else None
        if source is None:
            nodes.append(node)
        else:
            to = HALF if node.outputs[0] in half else FLOAT
            nodes.append(cast_node(source, node.outputs[0], to, node.name))
    return replace(graph, nodes=tuple(nodes)).pruned()
