"""Every number a comparison shows, described once: name, label, unit, which direction is better, digits.

Tables, constraints, plots and JSON go through these descriptions, so a new metric is one entry here and one line in `table`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edge_tprune.statistics import Interval

MISSING = "–"  # what a table shows for a value nobody measured; never 0


@dataclass(frozen=True)
class Metric:
    """One measured or derived number per row."""

    name: str  #: the key in rows and JSON; ends in its unit
    label: str  #: what people call it
    unit: str  #: "" for counts
    better: Literal["lower", "higher"] | None  #: None where neither direction is good in itself
    digits: int  #: after the decimal point
    short: str = ""  #: label for narrow columns; the label itself where empty
    signed: bool = False  #: whether a gain is written with its plus: changes are

    @property
    def header(self) -> str:
        """Label for the head of a column."""
        return self.short or self.label

    @property
    def label_with_unit(self) -> str:
        """Label with unit, for axes and sentences: 'p50 latency (ms)'."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def format(self, value: float | None) -> str:
        """The number alone, rounded; a dash where it is missing."""
        if value is None:
            return MISSING
        text = f"{value:{'+' if self.signed else ''}.{self.digits}f}"
        return text.lstrip("+-") if float(text) == 0 else text  # no "-0.0"

    def quantity(self, value: float | None) -> str:
        """The number with its unit: '8.21 ms'."""
        if value is None:
            return MISSING
        separator = "" if self.unit in ("×", "%") else " "
        return self.format(value) + (separator + self.unit if self.unit else "")

    def uncertain(self, interval: Interval) -> str:
        """The number with half the width of its interval: '1.42 ±0.02'; '±?' where the ends are unknown."""
        if interval.low is None or interval.high is None:
            return f"{self.format(interval.value)} ±?"
        # The larger half, rounded up: an interval need not be symmetric, and the text must not claim more than is known.
        half = max(interval.high - interval.value, interval.value - interval.low)
        half = math.ceil(half * 10**self.digits - 1e-6) / 10**self.digits
        return f"{self.format(interval.value)} ±{half:.{self.digits}f}" if half else self.format(interval.value)

    def range(self, interval: Interval) -> str:
        """The ends of the interval with the unit: '1.40 to 1.44×'; '' where they are unknown."""
        if interval.low is None or interval.high is None:
            return ""
        return f"{self.format(interval.low)} to {self.quantity(interval.high)}"

    def is_better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`. False where the metric has no better direction."""
        return self.better is not None and (a < b if self.better == "lower" else a > b)

    def cost(self, value: float | None) -> float:
        """A number that is smaller for better values; infinite where the value is missing."""
        if value is None:
            return math.inf
        return -value if self.better == "higher" else value


_ALL = (
    Metric("final_tokens", "tokens after the last block", "", None, 0, "tokens"),
    Metric("macs_g", "MACs per image", "G", "lower", 2, "MACs"),
    Metric("macs_share_percent", "share of the unpruned MACs", "%", "lower", 0, "MACs"),
    Metric("top1_percent", "top-1", "%", "higher", 1),
    Metric("top1_change_points", "top-1 change", "points", "higher", 1, "Δ top-1", signed=True),
    Metric("top1_drop_points", "top-1 drop", "points", "lower", 1, "drop"),
    Metric("top5_percent", "top-5", "%", "higher", 1),
    Metric("top5_change_points", "top-5 change", "points", "higher", 1, "Δ top-5", signed=True),
    Metric("agreement_percent", "agreement with the unpruned model", "%", "higher", 1, "agree"),
    Metric("kl_nats", "KL divergence from the unpruned model", "nats", "lower", 3, "KL"),
    Metric("p50_ms", "p50 latency", "ms", "lower", 2, "p50"),
    Metric("p95_ms", "p95 latency", "ms", "lower", 2, "p95"),
    Metric("p99_ms", "p99 latency", "ms", "lower", 2, "p99"),
    Metric("mean_ms", "mean latency", "ms", "lower", 2, "mean"),
    Metric("throughput_images_per_s", "throughput", "images/s", "higher", 1, "rate"),
    Metric("peak_memory_mb", "peak memory", "MB", "lower", 0, "memory"),
    Metric("speedup", "speed-up", "×", "higher", 2),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
