"""How sure a number is: intervals, percentiles, and what follows from them. The one home of statistics.

What a board runs (`Interval`, `percentile`, `nearest_rank`, `student_95`, `student_interval`, `paired_share_difference`) needs numpy alone;
the rest needs scipy.
"""

from edge_tprune.statistics.distributions import student_95
from edge_tprune.statistics.interval import Interval, bonferroni, combine_difference, combine_ratio
from edge_tprune.statistics.means import (
    RESAMPLES,
    mean_interval,
    paired_difference,
    paired_speedup,
    ratio_interval,
    required_count,
    student_interval,
)
from edge_tprune.statistics.ranks import nearest_rank, percentile, percentile_intervals
from edge_tprune.statistics.shares import mcnemar, paired_share_difference, proportion_interval

__all__ = [
    "RESAMPLES",
    "Interval",
    "bonferroni",
    "combine_difference",
    "combine_ratio",
    "mcnemar",
    "mean_interval",
    "nearest_rank",
    "paired_difference",
    "paired_share_difference",
    "paired_speedup",
    "percentile",
    "percentile_intervals",
    "proportion_interval",
    "ratio_interval",
    "required_count",
    "student_95",
    "student_interval",
]
