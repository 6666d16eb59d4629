"""Where a search begins: the methods' own patterns, and what dynamic programming makes of a sensitivity table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edge_tprune.documents import MethodOptions, OptionValue
from edge_tprune.errors import UserError
from edge_tprune.files import sha256_json
from edge_tprune.reduction import pattern, registry
from edge_tprune.reduction.code import method_code_sha256
from edge_tprune.schedule import NetworkShape
from edge_tprune.search.cost import MeasuredCost
from edge_tprune.search.dynamic import solve
from edge_tprune.search.sensitivity import KIND, Sensitivity, SensitivityTables, measure, table_counts
from edge_tprune.search.space import Configuration, MethodSpace, SearchSpace
from edge_tprune.search.workers import Network, Scoring, score_all

_TABLE_BATCHES = 3  # of images that a table is measured on
_LEVELS = 16  # token counts that dynamic programming chooses from
_STEPS = 1000  # of cost, up to the limit
_CORRECTIONS = 4

Progress = Callable[[str, int, int], None]


def default_options(space: MethodSpace) -> dict[str, OptionValue]:
    """The defaults of the options that are searched; the first value worth trying where the default is not among them."""
    known = registry.options(registry.method(space.name))
    return {name: known[name].default if known[name].default in values else values[0] for name, values in space.options.items()}


def own_pattern(space: SearchSpace, method: MethodSpace) -> Configuration | None:
    """A method's own pattern at the space's limit; None where it does not fit the space.

    Patterns are known by the share of MACs. Under a measured cost that share is not known before: it is that of the schedule to which the
    pattern for the limit's share of the unpruned cost leads, and so on until it stays.
    """
    if not isinstance(space.cost, MeasuredCost):
        return _pattern(space, method, space.limit)
    found, share = None, space.limit / space.cost.model.full
    for _ in range(_CORRECTIONS):
        before, found = found, _pattern(space, method, share)
        schedule = None if found is None else space.schedule(found)
        if schedule is None or found == before:
            break
        share = schedule.share
    return found


def _pattern(space: SearchSpace, method: MethodSpace, share: float) -> Configuration | None:
    """A method's own pattern for a share of MACs."""
    blocks, weights = pattern(registry.method(method.name), space.cost.shape.blocks, share)
    known = {block: weight for block, weight in zip(blocks, weights) if block <= space.last_block}
    if not known or not space.fewest_stages <= len(known) <= space.most_stages:
        return None
    greatest = max(known.values())
    scaled = tuple(round(weight / greatest, 4) for weight in known.values())
    options = tuple(sorted(default_options(method).items()))
    found = Configuration(method.name, tuple(known), scaled, options)
    return found if space.schedule(found) else None


def planned(space: SearchSpace, table: Sensitivity) -> Configuration | None:
    """The configuration of least loss within the limit, as losses and costs add up; None where nothing keeps the limit."""
    method = space.method(table.method)
    low, high = max(space.cost.counts[0], table.counts[0]), space.cost.shape.tokens
    counts = {low + round(level * (high - low) / (_LEVELS - 1)) for level in range(_LEVELS)}
    found = solve(space.cost, table, sorted(counts), method.fewest, limit=space.limit, resolution=space.limit / _STEPS)
    return space.from_schedule(method.name, found[-1].tokens, default_options(method)) if found else None


class Tables:
    """Sensitivity tables of one network on one set of images, kept in a file.

    Args:
        file: where they are kept; those of other images or code in it are left out.
        shape: the network's.
        exact: whether the last block is saved.
        place: where networks are scored on the images.
        identity: what the losses depend on beside the method: weights and images.
        fixed: options that are not searched.
    """

    def __init__(
        self,
        file: Path,
        shape: NetworkShape,
        exact: bool,
        place: Scoring,
        identity: Mapping[str, object],
        fixed: MethodOptions,
    ) -> None:
        self._file, self._shape, self._exact, self._place = file, shape, exact, place
        self._identity, self._fixed = dict(identity), dict(fixed)
        self._known = {table.key: table for table in KIND.read(file).tables} if file.exists() else {}

    def table(self, method: MethodSpace, report: Progress) -> Sensitivity:
        """The table of a method; measured where it is not in the file."""
        counts = table_counts(self._shape, self._shape.prefix_tokens + 1)
        options = {**self._fixed, **default_options(method)}
        key = sha256_json(
            {
                **self._identity,
                "method": method.name,
                "code": method_code_sha256(registry.method(method.name)),
                "options": options,
                "counts": counts,
                "exact": self._exact,
                "batches": _TABLE_BATCHES,
            }
        )
        known = self._known.get(key)
        blocks = self._shape.blocks - self._exact
        if known is not None and (known.method, known.counts, len(known.loss)) != (method.name, counts, blocks):
            raise UserError(
                f"{self._file} was changed: its table of {method.name} is of another method or network. {KIND.remedy}"
            )
        if known is None:

            def losses(schedules: Sequence[tuple[int, ...]]) -> list[float]:
                networks = [Network(method.name, tokens, options, _TABLE_BATCHES) for tokens in schedules]
                return score_all(self._place, networks, lambda done, of: report(f"sensitivity of {method.name}", done, of))

            self._known[key] = measure(self._shape, method.name, counts, method.fewest, losses, exact=self._exact, key=key)
            # Another search beside this one may have written its own meanwhile.
            there = {table.key: table for table in KIND.read(self._file).tables} if self._file.exists() else {}
            KIND.write(self._file, SensitivityTables(tables=tuple({**there, **self._known}.values())))
        return self._known[key]
