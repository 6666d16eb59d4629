"""The reduction methods: a list that fits 80 columns, and everything about one of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from edge_tprune.cli.model_views import require_host
from edge_tprune.cli.root import read_docstring
from edge_tprune.cli.terminal import Heading, Table, print_line, print_table
from edge_tprune.documents import MethodOptions
from edge_tprune.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from edge_tprune.reduction.evidence import FaithfulEvidence, PatternEvidence
    from edge_tprune.statistics import Interval

_WIDTH = 78
_SUMMARY = 66  # characters of a summary that leave a line of the list within 80 columns


class MethodFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a method. Blocks are those of a network of 12, counted from 1."""

    name: str
    paper: str
    summary: str
    needs: list[str]
    fused_attention: bool
    needs_class_token: bool
    merges: bool
    default_blocks_of_12: tuple[int, ...]
    tuned_blocks_of_12: dict[str, list[int]]  #: by budget
    pattern_evidence: dict[str, dict[str, PatternEvidence]]  #: by network and budget
    stages: int
    removal: str
    proportional_attention: bool
    limit: str
    options: MethodOptions  #: with their defaults
    code: str | None
    faithful_evidence: dict[str, dict[str, FaithfulEvidence]]  #: by network and budget
    faithful_options: MethodOptions | None
    differs: str | None
    paper_blocks_of_12: tuple[int, ...]


class Methods(msgspec.Struct, frozen=True):
    """All of them."""

    methods: list[MethodFacts]
    absent: dict[str, str]  #: name -> why it is not here


def list_methods() -> Methods:
    """Every method's facts, from its class, and why some are absent."""
    require_host()
    from edge_tprune.reduction import registry
    from edge_tprune.reduction.evidence import faithful_evidence, pattern_evidence
    from edge_tprune.reduction.tuned import tuned_blocks

    def is_proportional(method: type[registry.Reducer]) -> bool:
        if method.place == "image":
            return False
        tokens_out = max(190, registry.fewest(method, 197, 1))
        return registry.make(method, registry.Stage(4, 12, 197, tokens_out, 1, True), {}).proportional

    facts = [
        MethodFacts(
            name=name,
            paper=method.paper,
            summary=read_docstring(method).strip().partition("\n")[0],
            needs=sorted(method.needs),
            fused_attention=registry.ATTENTION not in method.needs,
            needs_class_token=method.needs_class_token,
            merges=method.merges,
            default_blocks_of_12=method.default_blocks,
            tuned_blocks_of_12=tuned_blocks(name),
            pattern_evidence=pattern_evidence(name),
            stages=len(method.default_blocks),
            removal=method.removal,
            proportional_attention=is_proportional(method),
            limit=method.limit,
            options={key: parameter.default for key, parameter in registry.options(method).items()},
            code=method.code or None,
            faithful_evidence=faithful_evidence(name),
            faithful_options=method.faithful,
            differs=method.differs or None,
            paper_blocks_of_12=method.paper_blocks or method.default_blocks,
        )
        for name, method in sorted({**registry.methods(), **registry.baselines()}.items())
    ]
    return Methods(facts, dict(registry.ABSENT))


def find_method(found: Methods, name: str) -> MethodFacts:
    """The facts of one method.

    Raises:
        UserError: there is none of this name, with the reason where one is known.
    """
    known = {method.name: method for method in found.methods}
    if name in known:
        return known[name]
    if name in found.absent:
        raise UserError(f"method {name} is not included: {found.absent[name]}")
    raise UserError(f"no method {name!r}.{did_you_mean(name, known)} Run: edge-tprune methods")


def print_methods(found: Methods) -> None:
    """A line per method; the absent ones by name."""
    rows = [[row.name, textwrap.shorten(row.summary, _SUMMARY, placeholder=" ...")] for row in found.methods]
    print_table(Table([Heading("method"), Heading("what it does")], rows))
    print_line("")
    for line in textwrap.wrap(f"Not included: {', '.join(found.absent)}.", _WIDTH):
        print_line(line)
    print_line("Details of a method, or why it is not included: edge-tprune methods NAME")


def print_method(row: MethodFacts) -> None:
    """Everything about one method."""
    options = " ".join(f"{key}={str(value).lower()}" for key, value in row.options.items())
    facts = [
        ("summary", row.summary),
        ("paper", row.paper),
        ("reads", ", ".join(row.needs) or "nothing"),
        ("class token", "needed" if row.needs_class_token else "not needed"),
        ("merges tokens", "yes" if row.merges else "no"),
        ("removes by", row.removal),
        ("blocks of 12", _block_ranges(row.default_blocks_of_12)),
        *_tuned_facts(row.tuned_blocks_of_12),
        *_evidence_facts(row.pattern_evidence),
        ("fused attention", "stays fused" if row.fused_attention else "no: the method reads the attention matrix"),
        ("proportional", "yes" if row.proportional_attention else "no"),
        ("limit", row.limit or "none"),
        ("options", options or "none"),
        ("public code", f"github.com/{row.code}" if row.code else "none"),
        ("faithful=true", _describe_faithful(row)),
        *([("the default", row.differs)] if row.differs else []),
        *_faithful_facts(row.faithful_evidence),
    ]
    print_line(row.name, "bold")
    width = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        first, *more = textwrap.wrap(str(value), _WIDTH - width) or [""]
        print_line(f"{name:<{width}}{first}")
        for line in more:
            print_line(f"{'':<{width}}{line}")


def _describe_faithful(row: MethodFacts) -> str:
    """What the option gives: the method as its authors have it."""
    source = "its authors' code" if row.code else "its paper"
    stands_for = row.faithful_options
    if stands_for is None:
        return "not an option of this method"
    blocks = f"at blocks {_block_ranges(row.paper_blocks_of_12)} of 12"
    if not stands_for:
        differing = " but for its blocks" if row.tuned_blocks_of_12 else ""
        return f"the form of {source}, which is the default{differing}, {blocks}"
    options = " ".join(f"{key}={str(value).lower()}" for key, value in stands_for.items())
    return f"the form of {source}: {options}, {blocks}"


def _tuned_facts(tuned: dict[str, list[int]]) -> list[tuple[str, str]]:
    """Blocks that a search found, which builds use instead of the method's own, by budget."""
    return [(f"at budget {budget}", _block_ranges(blocks)) for budget, blocks in tuned.items()]


def _evidence_facts(networks: dict[str, dict[str, PatternEvidence]]) -> list[tuple[str, str]]:
    """How the tuned blocks did against equal shares, by network."""
    facts = []
    for network, budgets in networks.items():
        parts = [
            f"{budget}: {row.kl.value:.4f} ({row.equal_kl.value:.4f}{_resolution(row.change)})"
            for budget, row in sorted(budgets.items(), reverse=True)
        ]
        facts.append(("tried on", f"{network}, KL in nats at these blocks (in equal shares): {', '.join(parts)}"))
    return facts


def _faithful_facts(networks: dict[str, dict[str, FaithfulEvidence]]) -> list[tuple[str, str]]:
    """How the default form did beside the authors', by network, where they are two."""
    facts = []
    for network, budgets in networks.items():
        parts = [
            f"{budget}: {row.default.kl.value:.4f} ({row.faithful.kl.value:.4f}{_resolution(row.kl_difference)})"
            for budget, row in sorted(budgets.items(), reverse=True)
            if not row.same
        ]
        if parts:
            facts.append(("compared on", f"{network}, KL in nats of the default (of faithful=true): {', '.join(parts)}"))
    return facts


def _resolution(change: Interval) -> str:
    """Whether a paired difference tells which is better."""
    return "" if change.excludes(0) else ", not resolved"


def _block_ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
