"""How two values stand to each other: different, equal, or not resolved.

"Equal" is a claim and needs proof: the whole 95 % interval of the difference lies inside a stated margin. "Different": the interval leaves
out no difference, and reaches beyond the margin. Everything else is not resolved, and what is said then is how many rounds (or
images) would resolve it at the noise seen.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_tprune.analysis.conditions import NOT_EVALUATED, UNKNOWN
from edge_tprune.analysis.metrics import METRICS, Metric
from edge_tprune.analysis.table import Row
from edge_tprune.errors import UserError
from edge_tprune.statistics import (
    Interval,
    combine_difference,
    combine_ratio,
    mcnemar,
    paired_share_difference,
    paired_speedup,
    required_count,
)

Resolution = Literal["different", "equal", "not resolved"]
SIGNIFICANCE = 0.05  #: of McNemar's test, as the intervals are of 95 %

#: Judged on images, not measured in rounds.
ACCURACY = (
    "top1_percent",
    "top5_percent",
    "agreement_percent",
    "top1_change_points",
    "top5_change_points",
    "top1_drop_points",
    "kl_nats",
    "cosine_distance",
)
#: How sure a value is may be recorded under another name: accuracy is paired with the unpruned model's, image by image.
_INTERVAL_OF = {"top1_percent": "top1_change_points"}
_WIDEST = 1000.0  # per cent, or points
_MARGIN_PART = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>%|points?)")


@dataclass(frozen=True)
class EqualityMargin:
    """The largest difference that still counts as equal."""

    percent: float = 2.0  #: of amounts: latency, power, energy, memory, speed-up
    points: float = 0.5  #: of percentages: accuracy, agreement, missed deadlines
    divergence: float = 0.001  #: of distances from the unpruned model, which has none: KL in nats, cosine distance

    def reach(self, metric: Metric) -> float:
        """The margin on the scale on which the metric is compared: the logarithm of a factor, or a difference in the metric's unit."""
        if metric.scale == "ratio":
            return math.log1p(self.percent / 100)
        return self.points if metric.unit in ("%", "points") else self.divergence

    def text(self, metric: Metric) -> str:
        """'2 %', '0.5 points' or '0.001 nats'."""
        if metric.scale == "ratio":
            return f"{self.percent:g} %"
        return f"{self.points:g} points" if metric.unit in ("%", "points") else f"{self.divergence:g} {metric.unit}".rstrip()

    @classmethod
    def parse(cls, text: str, default: EqualityMargin) -> EqualityMargin:
        """'2%', '0.5points' or both with a comma; what is not named is the default's.

        Raises:
            UserError: anything else.
        """
        found: dict[str, float] = {}
        for part in text.split(","):
            match = _MARGIN_PART.fullmatch(part.strip())
            if match is None:
                raise UserError(f"--equal-within {text!r}: {part.strip()!r} is not a margin such as 2% or 0.5points")
            unit = "percent" if match["unit"] == "%" else "points"
            if unit in found:
                raise UserError(f"--equal-within {text!r} gives two margins in {unit}: give one")
            found[unit] = float(match["number"])
            if found[unit] > _WIDEST:
                raise UserError(f"--equal-within {text:.60}: {part.strip():.40} is out of range: give at most {_WIDEST:g}")
        return replace(default, **found)


WITHIN_RUN = EqualityMargin()
#: Another start of the same program on the same machine differs by a per cent or two for reasons that no number of rounds shows.
BETWEEN_RUNS = EqualityMargin(percent=3.0)


@dataclass(frozen=True)
class Contrast:
    """One value against another."""

    metric: Metric
    interval: Interval  #: first over second, or first less second, as `metric.scale` says; ends None where they are unknown
    resolution: Resolution
    count: int  #: rounds, or images, that it rests on
    needed: int | None  #: how many would resolve it at the noise seen; None where it is resolved, or nobody can tell
    unit: Literal["rounds", "images"] = "rounds"


def resolve(interval: Interval, metric: Metric, margin: EqualityMargin) -> Resolution:
    """What an interval of a ratio (or difference, as `metric.scale` says) shows."""
    reach = margin.reach(metric)
    low, high = _on_scale(interval.low, metric), _on_scale(interval.high, metric)
    if low is not None and high is not None and -reach <= low and high <= reach:
        return "equal"
    if (low is not None and low > 0) or (high is not None and high < 0):
        return "different"
    return "not resolved"


def count_to_resolve(interval: Interval, metric: Metric, margin: EqualityMargin, count: int) -> int | None:
    """How many rounds or images would show that the two differ, or that they are equal, whichever takes fewer; rounded up to two digits.

    It assumes that the value stays what it is. None where nothing is known about the noise.
    """
    value = _on_scale(interval.value, metric)
    ends = [_on_scale(end, metric) for end in (interval.low, interval.high)]
    if value is None or any(end is None for end in ends):
        return None
    half = max(abs(end - value) for end in ends if end is not None)
    wanted = max(abs(value), margin.reach(metric) - abs(value)) * (1 - 1e-9)  # an end on the edge shows nothing
    needed = required_count(count, half, wanted)
    return None if needed is None else _round_up(needed)


def contrast(a: Row, b: Row, metric: Metric, margin: EqualityMargin = WITHIN_RUN) -> Contrast:
    """How the `metric` of `a` stands to that of `b`, both of which have it.

    Accuracy is paired by image (McNemar's exact test says whether it differs) where both were judged on the same images, rows of one
    profile are paired by round: both see finer differences than two intervals do. Otherwise the two intervals are combined.
    What was measured once, as memory is, has no interval: there the margin alone decides.

    Raises:
        ValueError: a row has no such value.
    """
    first, second = a.value(metric.name), b.value(metric.name)
    if first is None or second is None:
        raise ValueError(f"{metric.name} is missing in {a.name} or {b.name}")
    if (paired := _by_image(a, b, metric, margin)) is not None:
        return paired
    if is_same_evaluation(a, b, metric):
        return make_contrast(Interval(0.0, 0.0, 0.0), metric, margin, 0, "images")
    interval = _by_round(a, b, metric)
    if interval is None:
        ours, theirs = interval_of(a, metric), interval_of(b, metric)
        if ours is None and theirs is None:
            return _single(first, second, metric, margin)
        interval = combine(metric, _around(first, ours), _around(second, theirs))
    if metric.name in ACCURACY:  # how many images there were is not recorded beside it
        return Contrast(metric, interval, resolve(interval, metric, margin), 0, None, "images")
    return make_contrast(interval, metric, margin, min(a.rounds, b.rounds))


def make_contrast(
    interval: Interval, metric: Metric, margin: EqualityMargin, count: int, unit: Literal["rounds", "images"] = "rounds"
) -> Contrast:
    """The contrast that an interval shows."""
    resolution = resolve(interval, metric, margin)
    needed = count_to_resolve(interval, metric, margin, count) if resolution == "not resolved" else None
    return Contrast(metric, interval, resolution, count, needed, unit)


def is_yardstick(row: Row) -> bool:
    """Whether the row is the unpruned model that speeds are compared with: not the same in another precision."""
    interval = row.intervals.get("speedup")
    return row.unpruned and (interval is None or (interval.value == 1.0 and interval.low in (None, 1.0)))


def speedup_contrast(row: Row, margin: EqualityMargin = WITHIN_RUN) -> Contrast | None:
    """The row's speed against the unpruned model's; None where that is not known, or the row is what speeds are compared with."""
    interval = row.intervals.get("speedup")
    if interval is None or is_yardstick(row):
        return None
    return make_contrast(interval, METRICS["speedup"], margin, row.rounds)


def combine(metric: Metric, a: Interval, b: Interval) -> Interval:
    """a against b of two independent estimates, on the metric's scale. Amounts that are not positive have no ratio worth the name."""
    if metric.scale == "difference":
        return combine_difference(a, b)
    if a.value <= 0 or b.value <= 0:
        return Interval(1.0 if a.value == b.value else math.inf, None, None, a.confidence)
    return combine_ratio(a, b)


def is_same_evaluation(a: Row, b: Row, metric: Metric) -> bool:
    """Whether both rows carry one and the same result: accuracy of one bundle on one set of images."""
    fingerprints = [row.profile.document.bundle.fingerprint for row in (a, b)]
    return (
        metric.scale == "difference"
        and metric.name in ACCURACY
        and (a.budget, a.value(metric.name)) == (b.budget, b.value(metric.name))
        and same_images(a, b)
        and fingerprints[0] == fingerprints[1]
    )


def same_images(a: Row, b: Row) -> bool:
    """Whether the accuracy of both comes from the same images, so that it can be paired image by image."""
    key = "eval data hash"
    return a.conditions.get(key) == b.conditions.get(key) not in (None, UNKNOWN, NOT_EVALUATED)


def image_bits(a: Row, b: Row, metric: Metric) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which images count for either, (images,) each; None where they cannot be paired image by image."""
    ours, theirs = a.per_image.get(metric.name), b.per_image.get(metric.name)
    if ours is None or theirs is None or ours.size != theirs.size or not same_images(a, b):
        return None
    return ours, theirs


def interval_of(row: Row, metric: Metric) -> Interval | None:
    """How sure a row's value is, or what is as uncertain as it is; None where unknown."""
    return row.intervals.get(_INTERVAL_OF.get(metric.name, metric.name))


def _by_image(a: Row, b: Row, metric: Metric, margin: EqualityMargin) -> Contrast | None:
    bits = image_bits(a, b, metric)
    if bits is None:
        return None
    ours, theirs = bits
    only_ours, only_theirs, total = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), ours.size
    interval = paired_share_difference(only_ours, only_theirs, total).scaled(100)
    found = make_contrast(interval, metric, margin, total, "images")
    significant = mcnemar(only_ours, only_theirs) < SIGNIFICANCE
    if found.resolution == "equal" or significant == (found.resolution == "different"):
        return found
    # The exact test and the interval disagree at the edge: the test says whether they differ.
    needed = None if significant else count_to_resolve(interval, metric, margin, total)
    return Contrast(metric, interval, "different" if significant else "not resolved", total, needed, "images")


def _by_round(a: Row, b: Row, metric: Metric) -> Interval | None:
    """Pairing by round cancels what the two have in common: clock, heat, other load."""
    ours, theirs = a.by_round.get(metric.name), b.by_round.get(metric.name)
    if a.profile.path != b.profile.path or not ours or not theirs or metric.scale != "ratio":
        return None
    return paired_speedup(ours, theirs)


def _single(first: float, second: float, metric: Metric, margin: EqualityMargin) -> Contrast:
    interval = combine(metric, Interval(first, None, None), Interval(second, None, None))
    value = _on_scale(interval.value, metric)
    close = value is not None and abs(value) <= margin.reach(metric)
    return Contrast(metric, interval, "equal" if close else "different", 1, None)


def _around(value: float, interval: Interval | None) -> Interval:
    """The interval around another value: top-1 is as uncertain as its change from the unpruned model."""
    return Interval(value, None, None) if interval is None else interval.at(value)


def _on_scale(value: float | None, metric: Metric) -> float | None:
    """0 where there is no difference, symmetric about it."""
    if value is None or metric.scale == "difference":
        return value
    return math.log(value) if 0 < value < math.inf else None


def _round_up(number: int) -> int:
    """To two digits: more would claim to know the noise."""
    step = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // step) * step
