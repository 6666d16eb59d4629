"""From sensor readings to energy per image, with everything that is known to be wrong with them in the interval.

**What a reading says.** A power sensor such as the INA3221 shows, for one interval tau, the mean power over the tau before. A reading
at t is therefore about some piece of [t - 2 tau, t] that is tau long; which piece is not known. A counter shows, for one interval,
the energy until the last update, which lies in [t - tau, t].

**Windows without edges.** Taking such readings as the power at t costs about tau * P of energy per edge of a window: at 430 ms, windows
of 20 to 40 s for 2 %. But an engine is warmed up before it is timed, under the very same load. Of each turn, only those
readings are used that can have seen nothing but this load: from two intervals after the warm-up began (one for a counter), and not
before timing began, until timing ended. Their mean is the power under load, P, with no error of edges; the energy of the timed window
is P times its length. This assumes that the power of warm-up and timing is the same on average; where it creeps (a chip that gets
warmer), the error is the creep over one interval, not the power over one.

**A counter** gives the mean power between its first and last usable update. Updates are noticed when they are read, so each end is late
by up to a = the time between two reads (or tau, if that is shorter): an error of the mean of a * P / T at most, whose
standard deviation, as both ends are late alike, is a * P / (T sqrt(6)). Steps back and leaps (ten times the usual power) are not
physical; the time between those two reads is left out.

**What remains**, per budget, for its n turns with energy E_i and m_i images (ratio estimator sum E / sum m):

- spread, s: of the turns' residuals E_i - (E/m) m_i, as a Student interval with n - 1 degrees of freedom. It holds the sensor's noise,
  the random phase between sensor and window, and how much the machine differs from round to round. Where the readings within the
  turns alone would give more, or there is one turn only, their spread counts: of T / tau independent values, not of every
  reading, because reading the same value twice adds nothing.
- step, q: rounding to steps of q averages out where the noise is not much smaller than q, and not at all where there is none. The bias
  left by noise sigma is at most (q / pi) exp(-2 pi^2 sigma^2 / q^2) (first term of the Fourier series of the rounding error). Sigma comes
  from the readings, less the rounding's own q^2 / 12 (Sheppard). Where fewer than four values occur the noise is not known, and the
  bias may be anything up to q / 2: 0.475 q covers 95 % of that.
- ends of a counter: as above, 1.96 a P / (T sqrt(6 n)).
- idle (for energy above idle only): measured before and after the rounds, interpolated over time; its noise and step like the above.
  The idle power between the two may have taken any path from one to the other: an error up to half their difference, 95 % of which
  is 0.475 of it.

Independent errors add as squares. **Not in the interval** is what is common to all budgets and unknown: the tolerance of shunt and
reference (about 1 % on these boards), and that a rail is not the wall. It cancels when budgets are compared.

**How long windows should be** (`window_needed_s`): so long that all of the above comes to 2 % of the gross power, with as many turns as
there were, and at least so long that each turn has a value of its own. Where the step or the machine's own variation alone is more, no
length is enough, and the answer says that, and how many rounds would be enough where rounds help.

Everything here is a function of readings and windows (ns, one clock); nothing reads a clock, a file or a sensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edge_tprune.record.idle import Idle, end_error, step_bias
from edge_tprune.record.meter import Meter
from edge_tprune.record.power import Power
from edge_tprune.record.spans import Span
from edge_tprune.statistics import Interval, student_95

AIM = 0.02  #: half width of the interval, as a share, that `window_needed_s` is for
RESOLVED = 0.05  #: ... and above which an energy is "not resolvable": budgets differ by 10 % and more


class SpanPower(NamedTuple):
    """A turn, and its power where a reading saw it."""

    span: Span
    power: Power | None


@dataclass(frozen=True)
class Energy:
    """What one budget draws."""

    mean_w: Interval | None = None
    above_idle_w: Interval | None = None
    gross_mj: Interval | None = None  #: per image
    above_idle_mj: Interval | None = None  #: per image
    status: str = "no_sensor"  #: or "resolved", "not_resolvable"
    reason: str | None = None
    window_s: float | None = None  #: mean length of the turns
    window_needed_s: float | None = None  #: see the module


def budget_energy(meter: Meter | None, turns: Sequence[SpanPower], idle: Idle) -> Energy:
    """Power and energy per image of one budget, from all its turns."""
    if meter is None:
        return Energy(reason="nothing on this machine measures its whole power")
    if not turns:
        return Energy(status="not_resolvable", reason="no turn was timed")
    window_s = sum(span.seconds for span, _ in turns) / len(turns)
    lost_s = max(0.0, meter.settle_s - min(span.warmup_s for span, _ in turns))
    least_s = lost_s + _least_window_s(meter, len(turns))
    used = [(span, power) for span, power in turns if power is not None]
    if not used:
        return _no_reading(meter, window_s, least_s)
    seconds = sum(span.seconds for span, _ in used)
    mean_w = sum(power.mean_w * span.seconds for span, power in used) / seconds
    bias_w = _bias(meter, used)
    spread_w = _spread(used, [power.mean_w for _, power in used])
    half_w = None if spread_w is None else math.hypot(spread_w, bias_w)
    mean = _symmetric_interval(mean_w, half_w)
    needed_s, rounds = _required_length(meter, used, mean_w, bias_w, lost_s, least_s)
    above, above_reason = _net_energy(used, idle, bias_w)
    if half_w is None or half_w > RESOLVED * abs(mean_w) or mean_w <= 0:
        reason = _why_not(mean_w, half_w, window_s, needed_s, rounds)
        return Energy(mean, above, None, None, "not_resolvable", reason, window_s, needed_s)
    shown = above if above_reason is None else None
    return Energy(
        mean,
        above,
        _per_image(used, mean, [power.mean_w for _, power in used]),
        None if shown is None else _per_image(used, shown, _above_idle(used, idle)),
        "resolved",
        above_reason,
        window_s,
        needed_s,
    )


def _no_reading(meter: Meter, window_s: float, least_s: float) -> Energy:
    """What to say where no reading can have seen a turn alone."""
    if window_s >= least_s:
        reason = f"{meter.metric} gave no usable reading while timing"
    else:
        reason = (
            f"turns of {window_s:.2g} s hold no value of a sensor that has one every {meter.update_s:.2g} s: "
            f"make them {_round_up(least_s):g} s"
        )
    return Energy(status="not_resolvable", reason=reason, window_s=window_s, window_needed_s=_round_up(least_s))


_Used = Sequence[tuple[Span, Power]]


def _net_energy(used: _Used, idle: Idle, bias_w: float) -> tuple[Interval | None, str | None]:
    """Power above idle, and why no energy follows from it, if so."""
    above = _above_idle(used, idle)
    if len(above) < len(used):
        return None, "energy above idle is not known: idle power was not measured"
    value = sum(watt * turn.seconds for watt, (turn, _) in zip(above, used)) / sum(turn.seconds for turn, _ in used)
    spread_w = _spread(used, above)
    if spread_w is None or idle.half_w is None:
        return _symmetric_interval(
            value, None
        ), "the error of energy above idle is not known: idle power was not measured before and after"
    half = math.hypot(spread_w, bias_w, idle.half_w)
    if half >= abs(value):
        return _symmetric_interval(value, half), f"energy above idle is not resolvable: {value:.2g} W ± {half:.2g} W above idle"
    return _symmetric_interval(value, half), None


def _above_idle(used: _Used, idle: Idle) -> list[float]:
    """Power above idle of every turn of which that is known, W."""
    idle_w = [idle.at(turn.session, turn.middle_ns) for turn, _ in used]
    return [power.mean_w - base for (_, power), base in zip(used, idle_w) if base is not None]


def _per_image(used: _Used, power: Interval, watts: Sequence[float]) -> Interval:
    """Energy per image, mJ, of turns of which mean power is known: its error is that of the power, and that images per second differ between turns."""
    images = [float(turn.images) for turn, _ in used]
    factor = 1e3 * sum(turn.seconds for turn, _ in used) / sum(images)
    paced, alone = _spread(used, watts, images), _spread(used, watts)
    if power.high is None or paced is None or alone is None:
        return power.scaled(factor)
    others = math.sqrt(
        max(0.0, (power.high - power.value) ** 2 - alone**2)
    )  # step, ends and idle, which know nothing of images
    return _symmetric_interval(power.value * factor, math.hypot(1e3 * paced, others * factor))


def _spread(used: _Used, watts: Sequence[float], sizes: Sequence[float] | None = None) -> float | None:
    """Half width of the 95 % interval of energy per size, J, that the spread of the turns gives: per second (so of the mean power) by default, or per image.
    None where one value is all there is."""
    seconds = [turn.seconds for turn, _ in used]
    sizes = seconds if sizes is None else sizes
    ratio = sum(watt * second for watt, second in zip(watts, seconds)) / sum(sizes)
    within = sum(second**2 * power.variance / power.values for second, (_, power) in zip(seconds, used))
    freedom = sum(power.values - 1 for _, power in used)
    halves = []
    if freedom >= 1:
        halves.append(student_95(freedom) * math.sqrt(within) / sum(sizes))
    if len(used) > 1:
        residuals = sum((watt * second - ratio * size) ** 2 for watt, second, size in zip(watts, seconds, sizes))
        halves.append(student_95(len(used) - 1) * math.sqrt(len(used) / (len(used) - 1) * residuals) / sum(sizes))
    return max(halves, default=None)


def _bias(meter: Meter, used: _Used) -> float:
    """Half width, W, of what does not show in the spread: the step, and a counter's ends."""
    freedom = sum(max(0.0, power.values - 1) for _, power in used)
    variance = sum(power.variance * max(0.0, power.values - 1) for _, power in used) / freedom if freedom else 0.0
    ends = math.sqrt(sum(end_error(meter, power) ** 2 for _, power in used)) / len(used)
    return math.hypot(step_bias(meter, max(power.levels for _, power in used), variance), ends)


def _least_window_s(meter: Meter, turns: int) -> float:
    """So long that every turn has two new values of its own, or, of a counter, that its ends cost half of the aim."""
    if not meter.counter:
        return 2 * meter.update_s
    late_s = min(meter.period_s, meter.update_s)
    return max(2 * late_s, 1.96 * late_s / (AIM / 2 * math.sqrt(6 * turns)))


def _required_length(
    meter: Meter, used: _Used, mean_w: float, bias_w: float, lost_s: float, least_s: float
) -> tuple[float | None, int | None]:
    """(length of turns, number of rounds) that would give the aim: with as many rounds, with turns as long. None: would not.

    The variance of a turn's mean is taken as rest + noise / length. A spread known from few turns is uncertain itself; the Student
    quantile makes up for it.
    """
    count = len(used)
    watts = [power.mean_w for _, power in used]
    noise = sum(power.variance for _, power in used) / count  # of one new value
    mean_values = sum(power.values for _, power in used) / count
    of_turns = sum((watt - sum(watts) / count) ** 2 for watt in watts) / (count - 1) if count > 1 else noise / mean_values
    rest = max(0.0, of_turns - noise / mean_values)
    # A counter's ends shrink with longer turns and are what `least_s` is about; a step's bias does not shrink.
    fixed = 0.0 if meter.counter else bias_w
    room = (AIM * mean_w) ** 2 - fixed**2
    if room <= 0:
        return None, None
    quantile = student_95(count - 1) if count > 1 else student_95(max(1.0, mean_values - 1))
    left = room - quantile**2 * rest / count
    rounds = max(count, math.ceil(1.96**2 * of_turns / room) + 1)
    if left <= 0:
        return None, rounds
    spacing_s = max(meter.update_s, meter.period_s)
    return _round_up(max(least_s, lost_s + quantile**2 * noise * spacing_s / (count * left))), rounds


def _why_not(mean_w: float, half_w: float | None, window_s: float, needed_s: float | None, rounds: int | None) -> str:
    if mean_w <= 0:
        return f"the sensor reads {mean_w:.3g} W, and no machine that computes draws that: is it connected?"
    text = f"{mean_w:.3g} W ± {half_w:.2g} W is not known to {RESOLVED:.0%}" if half_w else "one value alone has no known error"
    if needed_s is not None:
        return f"{text} with turns of {window_s:.2g} s: turns of {needed_s:g} s would give {AIM:.0%}"
    if rounds is not None:
        return f"{text}: rounds differ too much for longer turns to help; {rounds} rounds would give {AIM:.0%}"
    return f"{text}: the sensor's steps are too coarse for this power, no length would be enough"


def _symmetric_interval(value: float, half: float | None) -> Interval:
    return Interval(value, None, None) if half is None else Interval(value, value - half, value + half)


def _round_up(seconds: float) -> float:
    """To two digits, so that people can type it."""
    digits = math.pow(10, math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(seconds / digits - 1e-9) * digits, 6)
