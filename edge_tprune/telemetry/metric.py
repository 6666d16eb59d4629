"""What a sensor's reading means, so that tables, constraints and plots need no special cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 1e-6, 3600.0


@dataclass(frozen=True)
class SensorMetric:
    """One quantity that a source reads. (`analysis.metrics` has the metrics of finished measurements.)"""

    name: str  #: ends with its unit: "memory_available_bytes"
    unit: str  #: "bytes", "percent", "MHz", "mW", "mJ", "C", ...
    better: Literal["lower", "higher"] | None = None  #: None where neither is
    #: How a run's readings become one number; increase = last - first.
    aggregation: Literal["mean", "min", "max", "increase"] = "mean"
    help: str = ""  #: one sentence for people; a total says what it is made of
    #: The sensor has a new value this often; reading it faster repeats the old one. None: unknown.
    interval_s: Annotated[float, Meta(ge=SHORTEST_INTERVAL_S, le=LONGEST_INTERVAL_S)] | None = None
    step: Annotated[float, Meta(ge=0, le=1e30)] | None = (
        None  #: the smallest change the sensor can show, in `unit`. None: unknown
    )
    guess: bool = False  #: whether what it measures is a guess (the total of a board that is not in the table)
