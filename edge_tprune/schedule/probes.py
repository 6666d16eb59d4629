"""Which graphs to measure so that a cost model (`edge_tprune.schedule.latency`) can be made of them: at most 15.

Slices cut all tokens after block 1 to one count, so that what a block costs there counts in nearly every block, and errors of measuring count
least. Two slices cut late: they tell the last block from the others, and check that costs add up. Every method then has one to
three graphs with its own steps, among counts that the slices know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_tprune.errors import UserError
from edge_tprune.schedule.latency import SLICE
from edge_tprune.schedule.macs import NetworkShape

MOST_GRAPHS = 15
MOST_METHODS = 6
_FINE = (0.85, 0.7, 0.55, 0.42, 0.3, 0.2, 0.1)  #: patch tokens that slices leave, as shares
_COARSE = (0.8, 0.6, 0.42, 0.25, 0.1)  #: the same, where many methods take more of the graphs
_LATE = ((1 / 2, 2), (3 / 4, -1))  #: where late slices cut, as a share of the depth, and to which of the shares

Fewest = Callable[[int], int]


@dataclass(frozen=True)
class Probe:
    """One graph to measure."""

    name: str
    method: str
    tokens: tuple[int, ...]  #: after each block


def design_probes(shape: NetworkShape, methods: Mapping[str, Fewest]) -> list[Probe]:
    """The graphs to measure, the unpruned network first.

    Args:
        shape: of the network.
        methods: name -> the fewest tokens that it can leave from a number in one block. The slice needs not be among them.

    Raises:
        UserError: more methods than 15 graphs can tell of, or a network too small to prune.
    """
    named = {name: fewest for name, fewest in methods.items() if name not in (SLICE, "none")}
    if len(named) > MOST_METHODS:
        raise UserError(
            f"{len(named)} methods are too many for one bundle of probes: {MOST_GRAPHS} graphs tell of {MOST_METHODS} at most. "
            "Name fewer, or build a second bundle for the others"
        )
    shares = _FINE if len(named) <= 2 else _COARSE
    patches = shape.tokens - shape.prefix_tokens
    counts = sorted({shape.prefix_tokens + max(1, round(patches * share)) for share in shares} - {shape.tokens}, reverse=True)
    if len(counts) < 3 or shape.blocks < 3:
        raise UserError(f"a network of {shape.tokens} tokens and {shape.blocks} blocks is too small for a latency model")
    found = [Probe("1.0", SLICE, shape.full_schedule())]
    if shape.exact_schedule() != shape.full_schedule():
        found.append(Probe("exact", SLICE, shape.exact_schedule()))
    found += [Probe(f"slice-{count}", SLICE, _after(shape, {1: count})) for count in counts]
    for depth, place in _LATE:
        block = max(2, min(shape.blocks - 1, round(depth * shape.blocks)))
        late = Probe(f"slice-{counts[place]}-from-{block}", SLICE, _after(shape, {block: counts[place]}))
        if late not in found:
            found.append(late)
    each = {1: 3, 2: 2, 3: 2}.get(len(named), 1)
    for method, fewest in named.items():
        chains = {_after(shape, chain): None for chain in _chains(shape, counts, fewest)[:each]}
        found += [Probe(f"{method}-{number}", method, tokens) for number, tokens in enumerate(chains, 1)]
    return found


def _chains(shape: NetworkShape, counts: list[int], fewest: Fewest) -> list[dict[int, int]]:
    """Where a method removes tokens in its graphs: block -> tokens after it. The first alone is what three stages commonly are."""
    blocks = shape.blocks - 1
    third = max(1, blocks // 4)
    last = len(counts) - 1
    wanted = [
        [(third, counts[0]), (2 * third, counts[min(2, last)]), (3 * third, counts[min(3, last)])],
        [(number + 1, count) for number, count in enumerate(counts[:-1])],
        [(1, counts[min(3, last)]), (1 + third, counts[-2]), (1 + 2 * third, counts[-1])],
    ]
    return [_reachable(shape.tokens, [step for step in chain if step[0] <= blocks], counts, fewest) for chain in wanted]


def _reachable(tokens: int, chain: list[tuple[int, int]], counts: list[int], fewest: Fewest) -> dict[int, int]:
    """The chain, with the fewest tokens among `counts` that the method can leave where it cannot leave as few as wanted."""
    found: dict[int, int] = {}
    for block, count in chain:
        possible = [other for other in counts if max(count, fewest(tokens)) <= other < tokens]
        if possible:
            found[block] = tokens = possible[-1]
    return found


def _after(shape: NetworkShape, chain: Mapping[int, int]) -> tuple[int, ...]:
    """Tokens after each block, with the last block saved where the head does not read all tokens."""
    after, current = [], shape.tokens
    for block in range(1, shape.blocks + 1):
        current = chain.get(block, current)
        after.append(current)
    return tuple(after) if shape.read_tokens is None else (*after[:-1], shape.read_tokens)
