"""What the machine did when: the turns and idle times of a run, without their latencies."""

from __future__ import annotations

from dataclasses import dataclass

from edge_tprune.record.turn import Turn

IDLE = None  #: in place of a budget's name: the machine was left alone


@dataclass(frozen=True)
class Span:
    """A time in which the machine did one thing: a turn of one budget, or nothing."""

    budget: str | None  #: `IDLE` for an idle time
    load_begin_ns: int  #: when the warm-up began
    begin_ns: int  #: when timing began
    end_ns: int
    session: int = 0
    images: int = 0  #: that were timed

    @classmethod
    def of_turn(cls, turn: Turn, batch: int) -> Span:
        """The span of a turn."""
        load_begin_ns = turn.t_ns if turn.warmup_begin_ns is None else turn.warmup_begin_ns
        return cls(turn.budget, load_begin_ns, turn.t_ns, turn.end_ns, turn.session, batch * len(turn.latency_ns))

    @property
    def seconds(self) -> float:
        """Its length, without the warm-up."""
        return (self.end_ns - self.begin_ns) / 1e9

    @property
    def warmup_s(self) -> float:
        """How long the load had lasted when timing began."""
        return (self.begin_ns - self.load_begin_ns) / 1e9

    @property
    def middle_ns(self) -> int:
        """The middle of its timed part."""
        return (self.begin_ns + self.end_ns) // 2
