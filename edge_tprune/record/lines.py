"""The lines of a profile's two logs, samples.jsonl and sensors.jsonl: each kind is one type. Format: profiles/README.md.

Lines are checked against their type when they are written and when they are read. A reader skips kinds that it does not know.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_tprune.bundle.fallback import Fallback
from edge_tprune.documents import Distance, Integer, Name, Whole
from edge_tprune.telemetry.source import LARGEST_READING
from edge_tprune.telemetry.state import MachineState

SAMPLES = "samples.jsonl"
SENSORS = "sensors.jsonl"

#: Nanoseconds on the machine's monotonic clock; only differences within one session mean something.
Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
#: How long one inference took. The upper bound (a day: a process may be stopped meanwhile, Ctrl-Z) keeps the sums of a turn within 64
#: bits.
LatencyNs = Annotated[int, Meta(ge=1, le=10**14)]
Stages = dict[Literal["h2d", "compute", "d2h"], list[Whole]]


class LogLine(msgspec.Struct, tag_field="kind", kw_only=True, frozen=True):
    """What every line has."""

    t_ns: Nanoseconds


class StartLine(LogLine, tag="start", kw_only=True, frozen=True):
    """The run begins."""

    utc: str  #: wall-clock time at `t_ns`
    run_id: Name | None = None  #: as in run.json; None in older profiles


class ResumeLine(LogLine, tag="resume", kw_only=True, frozen=True):
    """A new session begins. A turn that was cut off before this line does not count: it is measured again."""

    utc: str


class StateLine(LogLine, tag="state", kw_only=True, frozen=True):
    """The state the machine is in."""

    which: Literal["begin", "end"]  #: of a session
    values: MachineState


class Check(msgspec.Struct, kw_only=True, frozen=True):
    """What a process of its own found about one budget."""

    budget: Name
    golden_ok: bool
    golden_max_abs_diff: Distance | None  #: None where an output was not a finite number, or nothing came out
    load_ms: Distance | None
    peak_memory_bytes: Integer | None
    error: str | None = None  #: why the budget could not be run at all
    engine: dict[str, object] | None = None  #: `Engine.info`
    #: By outlier image, as `golden_max_abs_diff`; None where the bundle has none.
    outliers: dict[str, Distance | None] | None = None
    failure: str | None = None  #: what is off, in words
    #: What was done about an engine that failed; where it helped, all of the above is of what runs instead.
    fallback: Fallback | None = None

    def describe_failure(self) -> str:
        """Why the check failed, in words."""
        if self.error is not None:
            return self.error
        if self.fallback is not None:
            return self.fallback.describe()
        if self.failure is not None:
            return self.failure
        if self.golden_max_abs_diff is None:
            return "its golden outputs are not finite numbers here"
        return f"its golden outputs are off by {self.golden_max_abs_diff:.3g}"


class CheckLine(Check, tag_field="kind", tag="check", kw_only=True, frozen=True):
    """A budget was checked, before anything was timed."""

    t_ns: Nanoseconds


class AccuracyLine(LogLine, tag="accuracy", kw_only=True, frozen=True):
    """The accuracy of a budget on this device, in the form of the bundle's."""

    budget: Name
    accuracy: dict[str, object]  #: `edge_tprune.bundle.manifest.Accuracy`, which the sampler need not load


class BaselineLine(LogLine, tag="baseline", kw_only=True, frozen=True):
    """The machine was left alone from `t_ns` to `end_ns`."""

    end_ns: Nanoseconds
    which: Literal["before", "after"]  #: the rounds


class PartLine(LogLine, tag="part", kw_only=True, frozen=True):
    """What was timed of a turn since the part before; `t_ns` is when its timing began, the same in all parts of a turn."""

    round: Whole  #: from 0
    position: Whole  #: the turn's place in the round, from 0
    budget: Name
    load_ms: Distance
    warmup_begin_ns: Nanoseconds | None = None  #: when the load began; None in version 1
    warmup_inferences: Whole
    warmup_steady: bool | None = None  #: whether latency had settled when timing began
    start_ns: list[Whole]  #: start of each inference, from `t_ns`
    latency_ns: list[LatencyNs]  #: end-to-end time of each inference
    stages_ns: Stages | None = None  #: on the device's own clock; None where the engine has none
    due_ns: list[Whole] | None = None  #: at a fixed rate: when each inference was due, from `t_ns`
    missed: Whole | None = None  #: at a fixed rate: frames that were dropped, or finished after the next was due


class TurnLine(PartLine, tag="round", kw_only=True, frozen=True):
    """The last part of a turn. (Its kind is called "round" in the file, as in version 1.)"""

    end_ns: Nanoseconds | None = None  #: when timing ended; None in version 1


class NoteLine(LogLine, tag="note", kw_only=True, frozen=True):
    """Something that a person should know."""

    text: str


class EndLine(LogLine, tag="end", kw_only=True, frozen=True):
    """A session ends."""

    reason: str  #: "complete", "interrupted" or "failed"


class SamplerLine(LogLine, tag="sampler", kw_only=True, frozen=True):
    """A sampler begins."""

    session: Whole
    pid: Whole


class ReadingLine(LogLine, tag="sensors", kw_only=True, frozen=True):
    """One reading of one source; `t_ns` is the middle of the read. (Its kind is called "sensors" in the file.)"""

    source: str
    read_ns: Whole  #: how long the read took
    values: dict[
        str, Annotated[float, Meta(ge=-LARGEST_READING, le=LARGEST_READING)] | None
    ]  #: metric -> value; null (in version 1) is a gap
    gaps: dict[str, str] = {}  #: metric -> why it has no value


class CostLine(LogLine, tag="cost", kw_only=True, frozen=True):
    """What the sampler has used since it began to sample."""

    cpu_s: Distance
    elapsed_s: Distance
    memory_bytes: Distance


#: Version 1 has the readings among the samples.
SampleLine = (
    StartLine
    | ResumeLine
    | StateLine
    | CheckLine
    | AccuracyLine
    | BaselineLine
    | PartLine
    | TurnLine
    | NoteLine
    | EndLine
    | ReadingLine
)
SensorLine = SamplerLine | ReadingLine | CostLine
