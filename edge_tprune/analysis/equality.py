"""Whether two measurements can be told apart."""

from __future__ import annotations

from edge_tprune.analysis.conditions import NOT_EVALUATED, UNKNOWN
from edge_tprune.analysis.metrics import Metric
from edge_tprune.analysis.table import Row
from edge_tprune.statistics import Interval, mcnemar, paired_speedup

#: How sure a value is may be recorded under another name: accuracy is paired with the unpruned model's, image by image.
_INTERVAL_OF = {"top1_percent": "top1_change_points"}
SIGNIFICANCE = 0.05  #: of McNemar's test, as the intervals are of 95 %


def equal_within_noise(a: Row, b: Row, metric: Metric) -> bool:
    """Whether the measurements cannot tell which of two rows has the better `metric`.

    Accuracy is paired by image (McNemar's exact test) where both were judged on the same images, rows of one profile are paired
    by round: both see finer differences than two intervals. Otherwise rows are equal where their intervals overlap; values
    nobody knows the uncertainty of, where they read the same.
    """
    ours, theirs = a.per_image.get(metric.name), b.per_image.get(metric.name)
    if ours is not None and theirs is not None and same_images(a, b):
        return mcnemar(int((ours & ~theirs).sum()), int((theirs & ~ours).sum())) >= SIGNIFICANCE
    first, second = a.by_round.get(metric.name), b.by_round.get(metric.name)
    if a.profile.path == b.profile.path and first and second:
        ratio = paired_speedup(first, second)
        if ratio is not None and ratio.low is not None:
            return not ratio.excludes(1)
    one, two = interval_of(a, metric), interval_of(b, metric)
    if one is not None and two is not None and (one.known or two.known):
        return one.overlaps(two)
    return metric.format(a.value(metric.name)) == metric.format(b.value(metric.name))


def same_images(a: Row, b: Row) -> bool:
    """Whether the accuracy of both comes from the same images, so that it can be paired image by image."""
    key = "eval data hash"
    return a.conditions.get(key) == b.conditions.get(key) not in (None, UNKNOWN, NOT_EVALUATED)


def interval_of(row: Row, metric: Metric) -> Interval | None:
    """How sure a row's value is, or what is as uncertain as it is; None where nobody knows."""
    return row.intervals.get(_INTERVAL_OF.get(metric.name, metric.name))
