"""Every number a comparison shows, described once: name, label, unit, which direction is better, how it was aggregated, digits.

Tables, constraints, plots and JSON go through these descriptions, so a new metric is one entry here and one line in `table`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edge_tprune.statistics import Interval

MISSING = "–"  # what a table shows for a value that was not measured; never 0
_LOPSIDED = 0.25  # how much of the larger half of an interval the smaller one may lack for ± to stand for both


@dataclass(frozen=True)
class Metric:
    """One measured or derived number per row."""

    name: str  #: the key in rows and JSON; ends in its unit
    label: str  #: what people call it
    unit: str  #: "" for counts
    better: Literal["lower", "higher"] | None  #: None where neither direction is good in itself
    digits: int  #: after the decimal point
    aggregation: str = ""  #: how many measurements became this number, in words
    short: str = ""  #: label for narrow columns; the label itself where empty
    signed: bool = False  #: whether a gain is written with its plus: changes are
    scale: Literal["ratio", "difference"] = "ratio"  #: how two values are compared: amounts by factors, accuracy by differences
    with_interval: bool = False  #: whether tables show how sure it is

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
        """The number with its interval: '1.42 ±0.02'; '8.2 (8.1 to 9.4)' where the two halves differ too much for one number.

        '±?' where neither end is known, '(8.1 or more)' where one is.
        """
        value = self.format(interval.value)
        if interval.low is None and interval.high is None:
            return f"{value} ±?"
        if interval.high is None:
            return f"{value} ({self.format(interval.low)} or more)"
        if interval.low is None:
            return f"{value} ({self.format(interval.high)} or less)"
        # Rounded up: the text must not claim more than is known.
        step = 10**self.digits
        halves = [half * step for half in (interval.value - interval.low, interval.high - interval.value)]
        if not all(map(math.isfinite, halves)):
            return f"{value} ±?"
        down, up = (math.ceil(half - 1e-6) for half in halves)
        most, least = max(down, up), min(down, up)
        if most - least > max(1, _LOPSIDED * most):
            return f"{value} ({self.format(interval.low)} to {self.format(interval.high)})"
        return f"{value} ±{most / step:.{self.digits}f}" if most else value

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

    def to_json(self) -> dict[str, str | None]:
        """What a reader of exported numbers has to know."""
        return {"label": self.label, "unit": self.unit, "better": self.better, "aggregation": self.aggregation}


_IMAGES = "share of the images"
_PAIRED = "mean over the images, each compared with the unpruned model's"
_ENERGY = "energy of a turn over its images, mean over the rounds"
_ALL = (
    Metric("final_tokens", "tokens after the last block", "", None, 0, "of the graph", "tokens"),
    Metric("macs_g", "MACs per image", "G", "lower", 2, "of the graph", "MACs"),
    Metric("macs_share_percent", "share of the unpruned MACs", "%", "lower", 0, "of the graph", "MACs", scale="difference"),
    Metric("top1_percent", "top-1", "%", "higher", 1, _IMAGES, scale="difference"),
    Metric(
        "top1_change_points", "top-1 change", "points", "higher", 1, _PAIRED, "Δ top-1",
        signed=True, scale="difference", with_interval=True,
    ),
    Metric("top1_drop_points", "top-1 drop", "points", "lower", 1, _PAIRED, "drop", scale="difference", with_interval=True),
    Metric("top5_percent", "top-5", "%", "higher", 1, _IMAGES, scale="difference"),
    Metric(
        "top5_change_points", "top-5 change", "points", "higher", 1, _PAIRED, "Δ top-5",
        signed=True, scale="difference", with_interval=True,
    ),
    Metric(
        "agreement_percent", "agreement with the unpruned model", "%", "higher", 1, _IMAGES, "agree",
        scale="difference", with_interval=True,
    ),
    Metric(
        "kl_nats", "KL divergence from the unpruned model", "nats", "lower", 3, _PAIRED, "KL",
        scale="difference", with_interval=True,
    ),
    Metric(
        "cosine_distance", "cosine distance from the unpruned model", "", "lower", 4, _PAIRED, "cos. dist.",
        scale="difference", with_interval=True,
    ),
    Metric("p50_ms", "p50 latency", "ms", "lower", 2, "nearest-rank percentile of all inferences", "p50"),
    Metric("p95_ms", "p95 latency", "ms", "lower", 2, "nearest-rank percentile of all inferences", "p95"),
    Metric("p99_ms", "p99 latency", "ms", "lower", 2, "nearest-rank percentile of all inferences", "p99"),
    Metric("mean_ms", "mean latency", "ms", "lower", 2, "mean of all inferences", "mean"),
    Metric("h2d_ms", "copy to the device", "ms", "lower", 3, "median of all inferences", "H2D"),
    Metric("compute_ms", "compute", "ms", "lower", 2, "median of all inferences", "compute"),
    Metric("d2h_ms", "copy from the device", "ms", "lower", 3, "median of all inferences", "D2H"),
    Metric("throughput_images_per_s", "throughput", "images/s", "higher", 1, "images over the time of all inferences", "rate"),
    Metric("mean_power_w", "mean power", "W", "lower", 2, "mean over the rounds", "power", with_interval=True),
    Metric(
        "power_above_idle_w", "power above idle", "W", "lower", 2, "mean over the rounds, less idle", "above idle",
        with_interval=True,
    ),
    Metric("energy_mj_per_image", "energy per image", "mJ", "lower", 1, _ENERGY, "energy", with_interval=True),
    Metric(
        "energy_above_idle_mj_per_image", "energy per image above idle", "mJ", "lower", 1, f"{_ENERGY}, less idle", "above idle",
        with_interval=True,
    ),
    Metric(
        "missed_deadlines_percent", "missed deadlines", "%", "lower", 2, "share of the frames that were due", "missed",
        scale="difference",
    ),
    Metric(
        "duty_cycle_percent", "duty cycle", "%", "lower", 1, "time spent in inferences at the fixed rate", "duty",
        scale="difference",
    ),
    Metric("peak_memory_mb", "peak memory", "MB", "lower", 0, "largest seen, in a process of its own", "memory"),
    Metric("min_memory_available_mb", "least available memory", "MB", "higher", 0, "smallest seen while it ran", "free"),
    Metric("load_ms", "time to load", "ms", "lower", 0, "median of the rounds", "load"),
    Metric(
        "speedup", "speed-up", "×", "higher", 2, "geometric mean over the rounds of the ratio of median latencies",
        with_interval=True,
    ),
)  # fmt: skip

#: name -> description, in the order in which tables show them
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
