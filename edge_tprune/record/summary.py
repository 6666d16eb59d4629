"""summary.json: the results of a run, per budget, computed from the raw samples by `summarize`; any reader can compute them again.

What was not measured is None, and so is what older versions do not have. Format: profiles/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_tprune.documents import Count, Distance, DocumentKind, Whole
from edge_tprune.statistics import Interval

VERSION = 2
SUMMARY = "summary.json"

Status = Literal["valid", "suspect", "invalid"]


class Reason(msgspec.Struct, frozen=True):
    """Something that was seen, and how bad it is."""

    code: str  #: stable, for programs
    text: str  #: for people, with the number
    status: Status | None = None  #: what the verdict would be for this reason alone; None where that was not recorded


class Verdict(msgspec.Struct, frozen=True):
    """Whether the numbers are trustworthy: see `verdict`."""

    status: str  #: a `Status`; readers take an unknown one for "suspect"
    reasons: tuple[Reason, ...] = ()  #: the worst first


class MeterSummary(msgspec.Struct, kw_only=True, frozen=True):
    """What the energy comes from: the key `sensor`."""

    metric: str
    source: str
    made_of: str  #: in words
    interval_s: Distance | None = None
    step_w: Distance | None = None
    coverage: float | None = None  #: share of the expected readings that came while timing
    guess: bool = False  #: whether it is a guess that it measures the whole device


class IdleSummary(msgspec.Struct, kw_only=True, frozen=True):
    """The machine at rest."""

    power_w: Interval | None = None
    drift_w: float | None = None  #: after minus before


class ObserverSummary(msgspec.Struct, kw_only=True, frozen=True):
    """What measuring cost."""

    cpu_percent: Distance  #: of one core
    memory_mb: Distance | None = None


class LatencySummary(msgspec.Struct, kw_only=True, frozen=True):
    """Latency over the inferences of all rounds, in ms. Percentiles are nearest-rank, `std` is the sample's (n - 1)."""

    p50: Distance | None = None
    p95: Distance | None = None
    p99: Distance | None = None
    mean: Distance | None = None
    std: Distance | None = None
    min: Distance | None = None
    max: Distance | None = None


class StageSummary(msgspec.Struct, kw_only=True, frozen=True):
    """One stage on the device's own clock, in ms."""

    p50: Distance | None = None
    p95: Distance | None = None


class FixedRateSummary(msgspec.Struct, kw_only=True, frozen=True):
    """A run at a fixed rate."""

    fps: Annotated[float, Meta(gt=0)]
    missed_deadlines: Whole | None
    duty_cycle_percent: Distance  #: share of the time in which an inference ran


class PowerSummary(msgspec.Struct, kw_only=True, frozen=True):
    """Mean power while a budget was timed, in W."""

    mean_w: Interval | None = None
    above_idle_w: Interval | None = None


class EnergySummary(msgspec.Struct, kw_only=True, frozen=True):
    """Energy of one image, in mJ."""

    gross_mj_per_image: Interval | None = None
    above_idle_mj_per_image: Interval | None = None
    status: str = ""  #: "resolved", "not_resolvable", "no_sensor"; "" where the version has no energy
    reason: str | None = None  #: in words
    window_s: Distance | None = None  #: mean length of the turns
    window_needed_s: Distance | None = None  #: how long they should be; None where no length is enough


class BudgetSummary(msgspec.Struct, kw_only=True, frozen=True):
    """One budget."""

    inferences: Whole = 0  #: that were timed
    rounds: Whole = 0  #: in which it was timed
    latency_ms: LatencySummary = LatencySummary()
    throughput_images_per_s: Distance | None = None
    peak_memory_mb: float | None = None
    load_ms: Distance | None = None
    golden_ok: bool | None = None
    round_median_ms: dict[str, Distance] = {}  #: round -> median latency
    stages_ms: dict[str, StageSummary] | None = None  #: "h2d", "compute", "d2h"
    fixed_rate: FixedRateSummary | None = None
    min_memory_available_mb: float | None = None
    power: PowerSummary = PowerSummary()
    energy: EnergySummary = EnergySummary()
    verdict: Verdict | None = None


class Summary(msgspec.Struct, kw_only=True, frozen=True):
    """summary.json."""

    version: Count = VERSION
    verdict: Verdict | None = None  #: of the whole run
    meter: MeterSummary | None = msgspec.field(default=None, name="sensor")
    idle: IdleSummary = IdleSummary()
    observer: ObserverSummary | None = None
    budgets: dict[str, BudgetSummary]


KIND = DocumentKind(
    noun="summary of profile",
    format="edge-tprune-summary",
    version=VERSION,
    make="Make one with: edge-tprune profile",
    remedy="It is derived again from the samples",
    schema=Summary,
    file=SUMMARY,
)


def read_summary(path: Path) -> Summary | None:
    """The summary in the profile at `path`; None where there is none.

    Raises:
        UserError: it is damaged, or of a newer format.
    """
    return KIND.read(path) if (path / SUMMARY).exists() else None
