"""How a governor does on a board that heats up and slows down, beside every fixed budget: on the simulator, in virtual time.

Frames come at a fixed rate, and each has to be done before the next one comes. The board draws power as the simulator's law says, the load
being the share of the time in which it works; its surroundings warm up and cool down; above a temperature its clocks fall.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge_tprune.documents import show
from edge_tprune.errors import UserError
from edge_tprune.runtime.governor import Decision, Governor
from edge_tprune.simulator.law import StepLoad
from edge_tprune.simulator.virtual import VirtualMachine

_LARGEST = 1e300  # of a number that means anything
_ROW_NS = 5 * 10**9  # from one row of the trace to the next


class BudgetCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one budget takes and gives, as measured."""

    budget: str
    latency_ms: float  #: of a frame while the board is cool
    accuracy_percent: float


class ThermalRamp(msgspec.Struct, frozen=True, kw_only=True):
    """The surroundings of a board, and how it slows down. Times in seconds, temperatures in degrees Celsius."""

    low_c: float = 25.0
    high_c: float = 60.0
    rise_s: float = 240.0  #: from low to high
    hold_s: float = 60.0
    fall_s: float = 240.0  #: back
    throttle_c: float = 70.0  #: of the chip: above it clocks fall
    slower_per_c: float = 0.02  #: what a frame takes longer for each degree above

    @property
    def seconds(self) -> float:
        """Of the whole ramp."""
        return self.rise_s + self.hold_s + self.fall_s

    def surroundings_c(self, t_s: float) -> float:
        """At a time."""
        rest_s = self.seconds - t_s
        return self.low_c + (self.high_c - self.low_c) * max(0.0, min(1.0, t_s / self.rise_s, rest_s / self.fall_s))

    def slowdown(self, chip_c: float) -> float:
        """How many times as long as on a cool board a frame takes."""
        return 1 + self.slower_per_c * max(0.0, chip_c - self.throttle_c)


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The last frame of five seconds."""

    t_s: float
    surroundings_c: float
    chip_c: float
    power_w: float
    budget: str
    latency_ms: float
    missed: int  #: frames of the five seconds that were late


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A ramp with one way to choose the budget."""

    frames: int
    missed_percent: float  #: of frames that were not done when the next one came
    accuracy_percent: float  #: mean over the frames
    hottest_c: float  #: the chip
    trace: tuple[TraceRow, ...]


class GovernorProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The governor beside every fixed budget on the same ramp."""

    board: str
    deadline_ms: float
    ramp: ThermalRamp
    governed: Outcome
    fixed: dict[str, Outcome]
    decisions: tuple[Decision, ...]

    @property
    def best_fixed(self) -> str | None:
        """The most accurate fixed budget that misses no more deadlines than the governor; None where each misses more."""
        kept = [name for name, found in self.fixed.items() if found.missed_percent <= self.governed.missed_percent]
        return max(kept, key=lambda name: self.fixed[name].accuracy_percent, default=None)


def profile_governor(
    costs: Sequence[BudgetCost], *, deadline_ms: float, board: str = "orin-nano", ramp: ThermalRamp | None = None
) -> GovernorProfile:
    """Runs the ramp once with a governor, and once with each budget alone.

    Args:
        costs: budgets, the most accurate first.
        deadline_ms: of a frame, and the time from one to the next.
        board: a key of `edge_tprune.simulator.boards.BOARDS`.
        ramp: by default from 25 to 60 degrees and back, in nine minutes.

    Raises:
        UserError: no budget, a deadline that is not above 0, or a ramp that is none.
    """
    ramp = ramp or ThermalRamp()
    _check(ramp, deadline_ms)
    governor = Governor([cost.budget for cost in costs], deadline_ms=deadline_ms)
    governed = _run(costs, governor, deadline_ms, board, ramp)
    fixed = {cost.budget: _run([cost], None, deadline_ms, board, ramp) for cost in costs}
    return GovernorProfile(
        board=board, deadline_ms=deadline_ms, ramp=ramp, governed=governed, fixed=fixed, decisions=tuple(governor.decisions)
    )


def _check(ramp: ThermalRamp, deadline_ms: float) -> None:
    numbers = {"deadline_ms": deadline_ms, **msgspec.structs.asdict(ramp)}
    if wrong := [
        f"{name} is {show(value) if isinstance(value, int) else value}"
        for name, value in numbers.items()
        if not abs(value) < _LARGEST
    ]:
        raise UserError(f"{wrong[0]}: give a finite number")
    if wrong := [f"{name} is {numbers[name]:g}" for name in ("deadline_ms", "rise_s", "fall_s") if numbers[name] <= 0]:
        raise UserError(f"{wrong[0]}: it must be above 0")
    if ramp.hold_s < 0:
        raise UserError(f"hold_s is {ramp.hold_s:g}: it must be at least 0")


def _run(costs: Sequence[BudgetCost], governor: Governor | None, deadline_ms: float, board: str, ramp: ThermalRamp) -> Outcome:
    by_name = {cost.budget: cost for cost in costs}
    load = StepLoad()
    machine = VirtualMachine(board, load=load)
    period_ns, budget = round(deadline_ms * 1e6), costs[0].budget
    frames, missed, accuracy, hottest_c = round(ramp.seconds * 1e3 / deadline_ms), 0, 0.0, 0.0
    if frames < 1:
        raise UserError(f"a deadline of {deadline_ms:g} ms is longer than the ramp of {ramp.seconds:g} s")
    trace: list[TraceRow] = []
    late = 0
    for frame in range(frames):
        begin_ns = machine.clock()
        surroundings_c = ramp.surroundings_c(begin_ns / 1e9)
        machine.set_surroundings(surroundings_c)
        chip_c = machine.temperature_c()
        latency_ms = by_name[budget].latency_ms * ramp.slowdown(chip_c)
        load.set(begin_ns, min(1.0, latency_ms / deadline_ms))
        load.forget(begin_ns)
        machine.clock.advance(period_ns / 1e9)
        power_w = machine.energy_mj(begin_ns, machine.clock()) / (period_ns / 1e6)
        late += latency_ms > deadline_ms
        accuracy += by_name[budget].accuracy_percent
        hottest_c = max(hottest_c, chip_c)
        row = begin_ns // _ROW_NS
        if machine.clock() // _ROW_NS != row or frame == frames - 1:
            trace.append(_row(machine.clock() / 1e9, surroundings_c, chip_c, power_w, budget, latency_ms, late))
            missed, late = missed + late, 0
        if governor is not None:
            budget = governor.update(latency_ms, temp_c=chip_c, power_w=power_w)
    return Outcome(
        frames=frames,
        missed_percent=100 * missed / frames,
        accuracy_percent=accuracy / frames,
        hottest_c=hottest_c,
        trace=tuple(trace),
    )


def _row(
    t_s: float, surroundings_c: float, chip_c: float, power_w: float, budget: str, latency_ms: float, missed: int
) -> TraceRow:
    return TraceRow(
        t_s=round(t_s, 3),
        surroundings_c=round(surroundings_c, 2),
        chip_c=round(chip_c, 2),
        power_w=round(power_w, 3),
        budget=budget,
        latency_ms=round(latency_ms, 3),
        missed=missed,
    )
