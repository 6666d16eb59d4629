"""Readings sorted into turns: what comes late, and sessions whose clocks have nothing in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edge_tprune.record.facts import gather
from edge_tprune.record.meter import Meter
from edge_tprune.record.reader import Run, SourceReading
from edge_tprune.record.spans import Span
from edge_tprune.record.verdict import judge_run

from .tiny_run import document

SECOND = 10**9
METER = Meter("total_power_mw", "rails", False, 0.1, 0.1, None, "")


def run(readings: Iterable[SourceReading]) -> Run:
    return Run(Path("p"), document(), {}, (), tuple(readings), (), "complete", ())


def test_a_late_reading_of_a_turn_that_is_over_changes_nothing() -> None:
    """Of a sensor that stalls a gap is recorded, and its answer after that, with the time at which it was asked."""

    def power(tenths: int, milliwatts: float, read_ns: int = 0) -> SourceReading:
        return SourceReading("rails", tenths * SECOND // 10, read_ns, {"total_power_mw": milliwatts})

    turns = [
        Span("a", 0, 1 * SECOND, 3 * SECOND),
        Span("b", 31 * SECOND // 10, 4 * SECOND, 6 * SECOND),
    ]
    stalls = SourceReading("rails", 35 * SECOND // 10, 0, {}, {"total_power_mw": "no answer: the source stalls"})
    late = power(28, 9000.0, read_ns=16 * SECOND // 10)
    readings = [power(15, 5000.0), power(19, 5000.0), stalls, late, power(45, 7000.0), power(50, 7000.0)]
    facts = gather(run(readings), turns, METER)
    assert [found and found.mean_w for found in facts.powers] == [5.0, 7.0]


def test_a_rise_in_each_of_two_sessions_is_a_rise() -> None:
    """The machine was started again in between, and its clock with it."""
    begins = (1000 * SECOND, 10 * SECOND)
    turns = [Span("a", begin, begin, begin + 120 * SECOND, session) for session, begin in enumerate(begins)]
    readings = [
        SourceReading("thermal", begin + second * SECOND, 0, {"gpu_temp_c": 50 + 7 * second / 120}, session=session)
        for session, begin in enumerate(begins)
        for second in range(0, 121, 5)
    ]
    heated = run(readings)
    suspect = [reason for reason in judge_run(heated, gather(heated, turns, None), {}) if reason.status != "valid"]
    assert [reason.code for reason in suspect] == ["temperature"]
    assert suspect[0].text.startswith("gpu went +7.0 degrees")
