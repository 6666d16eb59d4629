"""Constraints on a budget: which there are, the room that a row leaves to them, and how both are said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Row
from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.statistics import Interval

#: How many points of top-1 a budget may lose where the user states no constraint.
DEFAULT_MAX_TOP1_DROP = 1.0

#: name as in options (dashes there) -> (metric, which side the bound is on)
LIMITS: dict[str, tuple[str, Literal["max", "min"]]] = {
    "max_p50_ms": ("p50_ms", "max"),
    "max_p95_ms": ("p95_ms", "max"),
    "max_mean_power_w": ("mean_power_w", "max"),
    "max_energy_mj": ("energy_mj_per_image", "max"),
    "max_top1_drop": ("top1_drop_points", "max"),
    "min_agreement": ("agreement_percent", "min"),
    "min_fps": ("throughput_images_per_s", "min"),
    "max_peak_memory_mb": ("peak_memory_mb", "max"),
    "max_missed_percent": ("missed_deadlines_percent", "max"),
}
ACCURACY_LIMITS = ("max_top1_drop", "min_agreement")
_MASS_NOUNS = ("throughput", "agreement", "mean power", "missed", "energy", "peak memory")  #: labels that take no article


@dataclass(frozen=True)
class Limit:
    """One constraint: a metric and the bound it must keep."""

    name: str  #: as in LIMITS
    bound: float  #: in the metric's unit

    @property
    def metric(self) -> Metric:
        """What is bounded."""
        return METRICS[LIMITS[self.name][0]]

    @property
    def text(self) -> str:
        """'p95 latency of at most 8 ms'."""
        side = "at most" if LIMITS[self.name][1] == "max" else "at least"
        return f"{self.metric.label} of {side} {quantity(self.bound, self.metric)}"

    def margin(self, value: float) -> float:
        """Room left to the bound, in the metric's unit; negative where it is broken."""
        return self.bound - value if LIMITS[self.name][1] == "max" else value - self.bound


@dataclass(frozen=True)
class Margin:
    """How a row stands to one constraint."""

    limit: Limit
    value: float
    interval: Interval | None

    @property
    def room(self) -> float:
        """What is left to the bound, in the metric's unit; negative where it is broken."""
        return self.limit.margin(self.value)

    @property
    def sure(self) -> bool | None:
        """Whether the whole interval keeps the bound, not the value alone; None where that end of the interval is unknown."""
        if self.interval is None:
            return None
        end = self.interval.high if LIMITS[self.limit.name][1] == "max" else self.interval.low
        return None if end is None else self.limit.margin(end) >= 0

    def to_json(self) -> dict[str, Any]:
        """The margin as JSON."""
        return {
            "constraint": self.limit.name,
            "metric": self.limit.metric.name,
            "bound": self.limit.bound,
            "value": self.value,
            "margin": self.room,
            "sure": self.sure,
            "interval": None if self.interval is None else self.interval.to_json(),
        }


def margins_of(row: Row, limits: Iterable[Limit]) -> tuple[Margin, ...]:
    """How `row` stands to each limit whose metric it has."""
    margins = []
    for limit in limits:
        value = row.value(limit.metric.name)
        if value is not None:
            margins.append(Margin(limit, value, row.intervals.get(limit.metric.name)))
    return tuple(margins)


def limits_from(constraints: Mapping[str, float | None], rows: Sequence[Row], default: bool) -> tuple[Limit, ...]:
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
        if not math.isfinite(bound):
            raise UserError(f"{option(name)} must be a number, not {bound}")
        limits.append(Limit(name, float(bound)))
    if not limits and default:
        # Without labels: as many images keep their class as may lose it, which bounds the drop on these images just as well.
        labelled = any(row.value("top1_drop_points") is not None for row in rows)
        agreement = any(row.value("agreement_percent") is not None for row in rows)
        if agreement and not labelled:
            return (Limit("min_agreement", 100 - DEFAULT_MAX_TOP1_DROP),)
        return (Limit("max_top1_drop", DEFAULT_MAX_TOP1_DROP),)
    return tuple(limits)


def join_limits(limits: Iterable[Limit]) -> str:
    """'a p95 latency of at most 8 ms and a top-1 drop of at most 1 point'."""
    texts = [limit.text for limit in limits]
    return " and ".join(text if text.startswith(_MASS_NOUNS) else f"a {text}" for text in texts)


def margin_text(margin: Margin) -> str:
    """One constraint, its value and the room it leaves, in words."""
    unknown = "uncertainty unknown" if margin.interval is None else "too few rounds to say how sure"
    sure = {True: "for sure", False: "not for sure", None: unknown}[margin.sure]
    metric = margin.limit.metric
    return f"{margin.limit.text}: {metric.quantity(margin.value)}, {metric.quantity(margin.room)} to spare, {sure}"


def quantity(bound: float, metric: Metric) -> str:
    """A bound as the user wrote it, with the metric's unit."""
    separator = "" if metric.unit in ("×", "%") else " "
    unit = metric.unit[:-1] if bound == 1 and metric.unit == "points" else metric.unit
    return f"{bound:g}{separator}{unit}".rstrip()


def exact(value: float, limit: Limit) -> str:
    """A value with enough digits that a miss never reads like the bound itself."""
    metric = limit.metric
    text = metric.quantity(value)
    return quantity(float(f"{value:.3g}"), metric) if float(metric.format(value)) in (0.0, limit.bound) else text


def option(name: str) -> str:
    """What a constraint is called on the command line."""
    return "--" + name.replace("_", "-")
