"""The file that says what a search found, and that `build --schedule FILE` takes: the method, its options, and per budget the tokens after each block.

The blocks and weights behind them are kept too; the package's own defaults (`edge_tprune/reduction/tuned/`) are such files, and by
blocks and weights they fit networks of another depth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_tprune.documents import Count, DocumentKind, Name, OptionValue, Share
from edge_tprune.errors import UserError
from edge_tprune.reduction import registry
from edge_tprune.statistics import Interval


class FoundSchedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was found for one budget. Losses are means over the images: `kl` in nats, `top1` in per cent wrong, `cosine`
    as the distance from the unpruned network's vectors."""

    tokens: Annotated[tuple[Count, ...], Meta(min_length=1)]  #: after each block
    share: Share | None = None  #: of the unpruned MACs, on the model of the search
    blocks: tuple[Count, ...] | None = None  #: that remove tokens, counted from 1
    weights: tuple[Share, ...] | None = None  #: how much each removes relative to the others
    kl: Interval | None = None
    default_kl: Interval | None = None  #: of the method's defaults, where they meet the budget
    top1: Interval | None = None
    default_top1: Interval | None = None
    cosine: Interval | None = None
    default_cosine: Interval | None = None
    method: str | None = None  #: its own, where it is not the file's
    options: dict[str, OptionValue] | None = None  #: of that method
    predicted: dict[str, Interval] | None = None  #: metric -> what the latency model of the search says of it

    def losses(self, score: str) -> tuple[Interval | None, Interval | None]:
        """What was found, and the defaults, by a score."""
        known = {"kl": (self.kl, self.default_kl), "top1": (self.top1, self.default_top1)}
        return known.get(score, (self.cosine, self.default_cosine))


class SearchRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How it was found."""

    model: str
    weights_sha256: str
    images: Count
    data: str
    data_sha256: str
    settings_sha256: str | None = None  #: of `LoadedModel.settings`
    score: str
    stages: tuple[Count, Count]  #: fewest and most
    seed: int
    trials: Count | None = None  #: per budget
    output: str = "logits"  #: what the networks gave
    profile: str | None = None  #: `run_id` of the profile whose latency model was the cost; None where it was MACs


class ScheduleFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a schedule file says."""

    method: Name
    options: dict[str, OptionValue]
    budgets: dict[str, FoundSchedule]  #: requested share -> schedule
    found: SearchRecord | None = None


KIND = DocumentKind(
    noun="schedule file",
    format="edge-tprune-schedule",
    version=1,
    make="Make one with: edge-tprune search",
    remedy="Search again: the log beside it keeps what was tried",
    schema=ScheduleFile,
)


def read(path: Path) -> ScheduleFile:
    """A schedule file.

    Raises:
        UserError: no such file, not a schedule file, a newer version of one, or an entry that cannot be.
    """
    file = KIND.read(path)
    for name in file.budgets:
        if not _is_share(name):
            raise UserError(f"schedule file {path}: budget {name!r} is not a share of MACs such as 0.65. {KIND.remedy}")
    own = [(entry.method, entry.options or {}) for entry in file.budgets.values() if entry.method is not None]
    for method, options in [(file.method, file.options), *own]:
        known = registry.options(registry.method(method))
        for option, value in options.items():
            if option in known and type(value) is not type(known[option].default):
                kind = type(known[option].default).__name__
                raise UserError(f"schedule file {path}: option {option} of {method} is {value!r}, not a {kind}. {KIND.remedy}")
    return file


def _is_share(name: str) -> bool:
    try:
        return 0 < float(name) <= 1 and name == f"{float(name):g}"
    except ValueError:
        return False
