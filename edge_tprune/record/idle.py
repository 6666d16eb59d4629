"""Idle power over a run, and the errors of a mean power that its spread does not show. The method is explained in `energy`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge_tprune.record.meter import Meter
from edge_tprune.record.power import LEAST_LEVELS, Power
from edge_tprune.statistics import Interval, student_95

UNIFORM_95 = 0.475  #: 95 % of a uniform error lie within this share of its range


@dataclass(frozen=True)
class Idle:
    """Idle power over the run."""

    points: Mapping[int, Sequence[tuple[float, float]]] = field(default_factory=dict)  #: session -> (t_ns, W), in order of time
    interval: Interval | None = None  #: over all baselines
    drift_w: float | None = None  #: after minus before, of the last session that has both
    half_w: float | None = None  #: half width of the 95 % interval at any time within; None: a session lacks one of the two

    def at(self, session: int, t_ns: float) -> float | None:
        """Idle power at a time of a session: interpolated between its baselines, level beyond them."""
        points = self.points.get(session)
        if not points:
            return None
        (first_ns, first), (last_ns, last) = points[0], points[-1]
        if last_ns <= first_ns:
            return first
        share = min(1.0, max(0.0, (t_ns - first_ns) / (last_ns - first_ns)))
        return first + share * (last - first)


def idle_power(meter: Meter, baselines: Sequence[tuple[int, Power | None]]) -> Idle:
    """Idle power from the (session, power) of every baseline, in order of time; a session has one before and one after."""
    points: dict[int, list[tuple[float, float]]] = {}
    noise: list[float] = []
    for session, power in baselines:
        if power is None:
            continue
        points.setdefault(session, []).append((power.middle_ns, power.mean_w))
        own = student_95(max(1.0, power.values - 1)) * math.sqrt(power.variance / power.values)
        noise.append(math.hypot(own, step_bias(meter, power.levels, power.variance), end_error(meter, power)))
    if not points:
        return Idle()
    drifts = {session: of[-1][1] - of[0][1] for session, of in points.items() if len(of) > 1}
    values = [value for of in points.values() for _, value in of]
    mean = sum(values) / len(values)
    known = len(drifts) == len(points)
    half = math.hypot(max(noise), UNIFORM_95 * max(map(abs, drifts.values()))) if known else None
    interval = Interval(mean, None, None) if half is None else Interval(mean, mean - half, mean + half)
    return Idle(points, interval, list(drifts.values())[-1] if drifts else None, half)


def step_bias(meter: Meter, levels: int, variance: float) -> float:
    """Half width, W, of the bias of a mean that rounding to steps leaves."""
    if meter.counter or not meter.step:
        return 0.0
    step = meter.step
    if levels < LEAST_LEVELS:
        return UNIFORM_95 * step
    noise = max(0.0, variance - step * step / 12)
    return min(UNIFORM_95 * step, step / math.pi * math.exp(-2 * math.pi**2 * noise / step / step))


def end_error(meter: Meter, power: Power) -> float:
    """Half width, W, of the error of a counter's ends: when they were is known to the time between two reads."""
    if not meter.counter or power.seconds <= 0:
        return 0.0
    late_s = min(meter.period_s, meter.update_s)
    return 1.96 / math.sqrt(6) * math.hypot(late_s * power.mean_w, meter.step or 0.0) / power.seconds
