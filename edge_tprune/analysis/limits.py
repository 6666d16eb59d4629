"""Constraints on a budget: which there are, and the room that a row leaves to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Row
from edge_tprune.documents import show
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.statistics import Interval

_LARGEST = 1e300  # of a bound that means anything
#: How many points of top-1 a budget may lose where the user states no constraint.
DEFAULT_MAX_TOP1_DROP = 1.0
#: The same for embeddings, features and tokens: how far their vectors may be from the unpruned model's, mean over the images.
DEFAULT_MAX_COSINE_DISTANCE = 0.05

#: name as in options (dashes there) -> (metric, which side the bound is on)
LIMITS: dict[str, tuple[str, Literal["max", "min"]]] = {
    "max_p50_ms": ("p50_ms", "max"),
    "max_p95_ms": ("p95_ms", "max"),
    "max_mean_power_w": ("mean_power_w", "max"),
    "max_energy_mj": ("energy_mj_per_image", "max"),
    "max_top1_drop": ("top1_drop_points", "max"),
    "min_agreement": ("agreement_percent", "min"),
    "max_cosine_distance": ("cosine_distance", "max"),
    "min_fps": ("throughput_images_per_s", "min"),
    "min_speedup": ("speedup", "min"),
    "max_peak_memory_mb": ("peak_memory_mb", "max"),
    "max_missed_percent": ("missed_deadlines_percent", "max"),
}
ACCURACY_LIMITS = ("max_top1_drop", "min_agreement", "max_cosine_distance")


@dataclass(frozen=True)
class Limit:
    """One constraint: a metric and the bound it must keep."""

    name: str  #: as in LIMITS
    bound: float  #: in the metric's unit

    @property
    def metric(self) -> Metric:
        """What is bounded."""
        return METRICS[LIMITS[self.name][0]]

    def room(self, value: float) -> float:
        """What `value` leaves to the bound, in the metric's unit; negative where the bound is broken."""
        return self.bound - value if LIMITS[self.name][1] == "max" else value - self.bound


@dataclass(frozen=True)
class Headroom:
    """How a row stands to one constraint."""

    limit: Limit
    value: float
    interval: Interval | None

    @property
    def room(self) -> float:
        """What is left to the bound, in the metric's unit; negative where the bound is broken."""
        return self.limit.room(self.value)

    @property
    def sure(self) -> bool | None:
        """Whether the whole interval keeps the bound, not the value alone; None where that end of the interval is unknown."""
        if self.interval is None:
            return None
        end = self.interval.high if LIMITS[self.limit.name][1] == "max" else self.interval.low
        return None if end is None else self.limit.room(end) >= 0

    def to_json(self) -> dict[str, object]:
        """The headroom as JSON."""
        return {
            "constraint": self.limit.name,
            "metric": self.limit.metric.name,
            "bound": self.limit.bound,
            "value": self.value,
            "margin": self.room,
            "sure": self.sure,
            "interval": None if self.interval is None else self.interval.to_json(),
        }


def headroom_of(row: Row, limits: Iterable[Limit]) -> tuple[Headroom, ...]:
    """How `row` stands to each limit whose metric it has."""
    found = []
    for limit in limits:
        value = row.value(limit.metric.name)
        if value is not None:
            found.append(Headroom(limit, value, row.intervals.get(limit.metric.name)))
    return tuple(found)


def make_limits(constraints: Mapping[str, float | None], rows: Sequence[Row], default: bool) -> tuple[Limit, ...]:
    """The constraints that have a bound; where none has and `default` is set, one on what accuracy `rows` tell of.

    Raises:
        UserError: an unknown name, or a bound that is no number.
    """
    limits = []
    for name, bound in constraints.items():
        if name not in LIMITS:
            raise UserError(f"no constraint {name!r} (there are: {', '.join(LIMITS)}).{did_you_mean(name, LIMITS)}")
        if bound is None:
            continue
        if not abs(bound) < _LARGEST:  # so for NaN, too
            raise UserError(f"{option_name(name)} must be a number, not {show(bound) if isinstance(bound, int) else bound}")
        limit = Limit(name, float(bound))
        if bound <= 0 and limit.metric.scale == "ratio" and name not in ACCURACY_LIMITS:
            raise UserError(f"{option_name(name)} {bound:g} is out of range: give a number above 0")
        limits.append(limit)
    if not limits and default:
        # Without labels: as many images keep their class as may lose it, which bounds the drop on these images just as well.
        if any(row.value("cosine_distance") is not None for row in rows):
            return (Limit("max_cosine_distance", DEFAULT_MAX_COSINE_DISTANCE),)
        labelled = any(row.value("top1_drop_points") is not None for row in rows)
        agreement = any(row.value("agreement_percent") is not None for row in rows)
        if agreement and not labelled:
            return (Limit("min_agreement", 100 - DEFAULT_MAX_TOP1_DROP),)
        return (Limit("max_top1_drop", DEFAULT_MAX_TOP1_DROP),)
    return tuple(limits)


def option_name(limit: str) -> str:
    """What a constraint is called on the command line."""
    return "--" + limit.replace("_", "-")
