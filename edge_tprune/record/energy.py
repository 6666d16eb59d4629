"""From sensor readings to energy per image, with everything that is known to be wrong with them in the interval.

**What a reading says.** A power sensor such as the INA3221 shows, for one interval tau, the mean power over the tau before. A reading
at t is therefore about some tau long piece of [t - 2 tau, t]: which piece is not known. A counter shows, for one interval, the
energy until the last update, which lies in [t - tau, t].

**Windows without edges.** Taking such readings as the power at t costs about tau * P of energy per edge of a window: at 430 ms, windows
of 20 to 40 s for 2 %. But an engine is warmed up before it is timed, under the very same load. Of each turn, only those
readings are used that can have seen nothing but this load: from two intervals after the warm-up began (one for a counter), and not before
timing began, until timing ended. Their mean is the power under load, P, with no error of edges; the energy of the timed window is P times
its length. What this takes for granted is that the power of warm-up and timing is the same on average; where it creeps (a
chip that gets warmer), the error is the creep over one interval, not the power over one.

**A counter** gives the mean power between its first and last usable update. Updates are noticed when they are read, so each end is late
by up to a = the time between two reads (or tau, if that is shorter): an error of the mean of a * P / T at most, whose
standard deviation, as both ends are late alike, is a * P / (T sqrt(6)). Steps back and leaps (ten times the usual power)
belong to no physics; the time between those two reads is left out.

**What remains**, per budget, for its n turns with energy E_i and m_i images (ratio estimator sum E / sum m):

- spread, s: of the turns' residuals E_i - (E/m) m_i, as a Student interval with n - 1 degrees of freedom. It holds the sensor's noise, the
  random phase between sensor and window, and how much the machine differs from round to round. Where the readings within the
  turns alone would give more, or there is one turn only, their spread counts: of T / tau independent values, not of every
  reading, because reading twice what is shown once is no news.
- step, q: rounding to steps of q averages out where the noise is not much smaller than q, and not at all where there is none. The bias left
  by noise sigma is at most (q / pi) exp(-2 pi^2 sigma^2 / q^2) (first term of the Fourier series of the rounding error). Sigma comes from the readings, less
  the rounding's own q^2 / 12 (Sheppard). Where fewer than four values occur the noise cannot be told, and the bias may be
  anything up to q / 2: 0.475 q covers 95 % of that.
- ends of a counter: as above, 1.96 a P / (T sqrt(6 n)).
- idle (for energy above idle only): measured before and after the rounds, interpolated over time; its noise and step like the above. The idle power between
  the two may have taken any path from one to the other: an error up to half their difference, 95 % of which is 0.475 of it.

Independent errors add as squares. **Not in the interval** is what is common to all budgets and unknown: the tolerance of shunt and
reference (about 1 % on these boards) and that a rail is not the wall. It cancels when budgets are compared.

**How long windows should be** (`window_needed_s`): so long that all of the above comes to 2 % of the gross power, with as many turns as there were, and at
least so long that each turn has a value of its own. Where the step or the machine's own unrest alone is more, no length will do, and the
answer says that, and how many rounds would where rounds would.

Everything here is a function of readings and windows (ns, one clock); nothing reads a clock, a file or a sensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from edge_tprune.statistics import Interval

AIM = 0.02  #: half width of the interval, as a share, that `window_needed_s` is for
RESOLVED = 0.05  #: ... and above which an energy is "not resolvable": budgets differ by 10 % and more
_ASSUMED_INTERVAL_S = 0.5  #: of a sensor that does not tell: slower than any board's
_LEAP = 10.0  #: between two reads a counter may go this many times faster than usual before it counts as a fault
_LEAST_LEVELS = 4  #: distinct values from which on the noise can be told from the step
_UNIFORM_95 = 0.475  #: 95 % of a uniform error lie within this share of its range
_INTERVALS_PER_TURN = 10  #: length of a turn before anything is known of the noise


@dataclass(frozen=True)
class Sensor:
    """What the energy is computed from."""

    metric: str
    source: str
    counter: bool  #: whether it counts energy (mJ) or shows power (mW)
    period_s: float  #: how often it is read
    interval_s: float | None  #: it has a new value this often, a mean over the time before; None: not told
    step: float | None  #: W, or J for a counter; None: not told
    made_of: str  #: in words

    @property
    def update_s(self) -> float:
        """`interval_s`, or what is assumed."""
        return self.interval_s or _ASSUMED_INTERVAL_S

    @property
    def settle_s(self) -> float:
        """How long after a change of load a reading may still know of the time before."""
        return self.update_s if self.counter else 2 * self.update_s

    @property
    def turn_s(self) -> float:
        """A sensible length of turns, before anything is known of the noise: ten new values each."""
        return _INTERVALS_PER_TURN * self.update_s

    def to_json(self, coverage: float | None) -> dict[str, Any]:
        """`sensor` of the summary.json."""
        return {
            "metric": self.metric,
            "source": self.source,
            "made_of": self.made_of,
            "interval_s": self.interval_s,
            "step_w": None if self.counter else self.step,
            "coverage": coverage,
        }


def choose_sensor(sources: Sequence[Mapping[str, Any]], runtime: str) -> Sensor | None:
    """The sensor of the whole device that `plan.sources` offers: a counter before power, a trusted source before others.

    A graphics card's own sensor sees nothing of a CPU's work, and a CPU's sensor nothing of a card's: where both exist, the runtime
    decides.
    """
    on_gpu = runtime.startswith("tensorrt")
    found: list[tuple[int, Sensor]] = []
    for source in sources:
        for metric in source["metrics"]:
            counter = metric["name"] == "total_energy_mj"
            if not counter and metric["name"] != "total_power_mw":
                continue
            elsewhere = source["name"] == ("rapl" if on_gpu else "nvml")
            step = metric.get("step")
            sensor = Sensor(
                metric=metric["name"],
                source=source["name"],
                counter=counter,
                period_s=float(source.get("period_s") or _ASSUMED_INTERVAL_S),
                interval_s=metric.get("interval_s"),
                step=None if step is None else step / 1e3,
                made_of=str(metric.get("help") or ""),
            )
            found.append((2 * elsewhere + (not counter), sensor))
    return min(found, key=lambda one: one[0])[1] if found else None


@dataclass(frozen=True)
class Power:
    """Mean power of one window, from the readings that saw nothing else."""

    mean_w: float
    variance: float  #: of a single new value, W^2
    values: float  #: how many new values the sensor showed: independent ones, not readings
    levels: int  #: distinct values, counted up to `_LEAST_LEVELS`
    seconds: float  #: from the first to the last reading
    begin_ns: int
    end_ns: int
    leaps: int = 0  #: pairs of readings of a counter that were left out

    @property
    def middle_ns(self) -> float:
        """The time the mean belongs to."""
        return (self.begin_ns + self.end_ns) / 2


class PowerWindow:
    """Takes in the readings of one window and gives its power. Holds no readings of a power sensor.

    Args:
        sensor: what is read.
        load_begin_ns: since when the machine does what it does in this window.
        begin_ns: begin of the window.
        end_ns: end of the window, and of what the machine does.
    """

    def __init__(self, sensor: Sensor, load_begin_ns: int, begin_ns: int, end_ns: int) -> None:
        self._sensor = sensor
        self._from_ns = max(begin_ns, load_begin_ns + round(sensor.settle_s * 1e9))
        self._to_ns = end_ns
        self._count = 0
        self._mean = self._squares = 0.0
        self._levels: set[float] = set()
        self._first_ns = self._last_ns = 0
        self._updates: list[tuple[int, float]] = []  #: of a counter: (t, J) where it changed

    def add(self, t_ns: int, read_ns: int, value: float) -> None:
        """One reading, in mW or mJ: stamped with the middle of a read that took `read_ns`. Readings come in order of time."""
        slow = read_ns > 0.5e9 * self._sensor.update_s  # when it was taken is not known well enough
        if slow or t_ns - read_ns // 2 < self._from_ns or t_ns + read_ns // 2 > self._to_ns:
            return
        value /= 1e3
        if self._sensor.counter:
            if not self._updates or value != self._updates[-1][1]:
                self._updates.append((t_ns, value))
            return
        self._count += 1
        deviation = value - self._mean
        self._mean += deviation / self._count
        self._squares += deviation * (value - self._mean)
        if len(self._levels) < _LEAST_LEVELS:
            self._levels.add(value)
        self._first_ns = self._first_ns or t_ns
        self._last_ns = t_ns

    def power(self) -> Power | None:
        """None where no reading can have seen this window alone."""
        if self._sensor.counter:
            return self._counted()
        if not self._count:
            return None
        seconds = (self._last_ns - self._first_ns) / 1e9
        return Power(
            mean_w=self._mean,
            variance=self._squares / (self._count - 1) if self._count > 1 else 0.0,
            values=min(self._count, 1 + seconds / self._sensor.update_s),
            levels=len(self._levels),
            seconds=seconds,
            begin_ns=self._first_ns,
            end_ns=self._last_ns,
        )

    def _counted(self) -> Power | None:
        pairs = [
            ((t_ns - before_ns) / 1e9, joule - before)
            for (before_ns, before), (t_ns, joule) in zip(self._updates, self._updates[1:])
        ]
        usual = median([energy / seconds for seconds, energy in pairs if energy > 0] or [0.0])
        kept = [(seconds, energy) for seconds, energy in pairs if 0 < energy <= _LEAP * usual * seconds]
        if not kept:
            return None
        total_s, total_j = sum(seconds for seconds, _ in kept), sum(energy for _, energy in kept)
        mean = total_j / total_s
        spread = sum(seconds * (energy / seconds - mean) ** 2 for seconds, energy in kept) / total_s
        return Power(
            mean_w=mean,
            variance=spread * len(kept) / max(1, len(kept) - 1),
            values=len(kept),
            levels=_LEAST_LEVELS,
            seconds=total_s,
            begin_ns=self._updates[0][0],
            end_ns=self._updates[-1][0],
            leaps=len(pairs) - len(kept),
        )


@dataclass(frozen=True)
class Turn:
    """One timed window of one budget."""

    images: int
    seconds: float
    warmup_s: float  #: how long the load had lasted when timing began
    middle_ns: int
    session: int
    power: Power | None


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


def idle_power(sensor: Sensor, baselines: Sequence[tuple[int, Power | None]]) -> Idle:
    """Idle power from the (session, power) of every baseline, in order of time; a session has one before and one after."""
    points: dict[int, list[tuple[float, float]]] = {}
    noise: list[float] = []
    for session, power in baselines:
        if power is None:
            continue
        points.setdefault(session, []).append((power.middle_ns, power.mean_w))
        own = student_95(max(1.0, power.values - 1)) * math.sqrt(power.variance / power.values)
        noise.append(math.hypot(own, _step_bias(sensor, power.levels, power.variance), _ends(sensor, power)))
    if not points:
        return Idle()
    drifts = {session: of[-1][1] - of[0][1] for session, of in points.items() if len(of) > 1}
    values = [value for of in points.values() for _, value in of]
    mean = sum(values) / len(values)
    known = len(drifts) == len(points)
    half = math.hypot(max(noise), _UNIFORM_95 * max(map(abs, drifts.values()))) if known else None
    interval = Interval(mean, None, None) if half is None else Interval(mean, mean - half, mean + half)
    return Idle(points, interval, list(drifts.values())[-1] if drifts else None, half)


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

    def power_json(self) -> dict[str, Any]:
        """`power` of a budget in the summary.json."""
        return {"mean_w": _json(self.mean_w), "above_idle_w": _json(self.above_idle_w)}

    def to_json(self) -> dict[str, Any]:
        """`energy` of a budget in the summary.json."""
        return {
            "gross_mj_per_image": _json(self.gross_mj),
            "above_idle_mj_per_image": _json(self.above_idle_mj),
            "status": self.status,
            "reason": self.reason,
            "window_s": self.window_s,
            "window_needed_s": self.window_needed_s,
        }


def budget_energy(sensor: Sensor | None, turns: Sequence[Turn], idle: Idle) -> Energy:
    """Power and energy per image of one budget, from all its turns."""
    if sensor is None:
        return Energy(reason="nothing on this machine measures its whole power")
    if not turns:
        return Energy(status="not_resolvable", reason="no turn was timed")
    window_s = sum(turn.seconds for turn in turns) / len(turns)
    lost_s = max(0.0, sensor.settle_s - min(turn.warmup_s for turn in turns))
    least_s = lost_s + _least_window_s(sensor, len(turns))
    used = [(turn, turn.power) for turn in turns if turn.power is not None]
    if not used:
        reason = (
            f"turns of {window_s:.2g} s hold no value of a sensor that has one every {sensor.update_s:.2g} s: "
            f"make them {_round_up(least_s):g} s"
        )
        if window_s >= least_s:
            reason = f"{sensor.metric} gave no usable reading while timing"
        return Energy(status="not_resolvable", reason=reason, window_s=window_s, window_needed_s=_round_up(least_s))
    seconds = sum(turn.seconds for turn, _ in used)
    images = sum(turn.images for turn, _ in used)
    mean_w = sum(power.mean_w * turn.seconds for turn, power in used) / seconds
    bias_w = _bias(sensor, used)
    spread_w = _spread(used, [power.mean_w for _, power in used])
    half_w = None if spread_w is None else math.hypot(spread_w, bias_w)
    mean = _around(mean_w, half_w)
    needed_s, rounds = _needed(sensor, used, mean_w, bias_w, lost_s, least_s)
    above, above_reason = _above_idle(sensor, used, idle, bias_w)
    if half_w is None or half_w > RESOLVED * abs(mean_w):
        return Energy(
            mean,
            above,
            status="not_resolvable",
            reason=_why_not(mean_w, half_w, window_s, needed_s, rounds),
            window_s=window_s,
            window_needed_s=needed_s,
        )
    per_image = 1e3 * seconds / images
    shown = above if above_reason is None else None
    return Energy(
        mean,
        above,
        _scaled(mean, per_image),
        None if shown is None else _scaled(shown, per_image),
        "resolved",
        above_reason,
        window_s,
        needed_s,
    )


_Used = Sequence[tuple[Turn, Power]]


def _above_idle(sensor: Sensor, used: _Used, idle: Idle, bias_w: float) -> tuple[Interval | None, str | None]:
    """Power above idle, and why it is not to be turned into an energy, if so."""
    idle_w = [idle.at(turn.session, turn.middle_ns) for turn, _ in used]
    above = [power.mean_w - base for (_, power), base in zip(used, idle_w) if base is not None]
    if len(above) < len(used):
        return None, "energy above idle is not known: idle power was not measured"
    value = sum(watt * turn.seconds for watt, (turn, _) in zip(above, used)) / sum(turn.seconds for turn, _ in used)
    spread_w = _spread(used, above)
    if spread_w is None or idle.half_w is None:
        return _around(value, None), "how sure energy above idle is, is not known: idle power was not measured before and after"
    half = math.hypot(spread_w, bias_w, idle.half_w)
    if half >= abs(value):
        return _around(value, half), f"energy above idle is not resolvable: {value:.2g} W ± {half:.2g} W above idle"
    return _around(value, half), None


def _spread(used: _Used, watts: Sequence[float]) -> float | None:
    """Half width of the 95 % interval of the mean power that the spread of the turns gives; None where one value is all there is."""
    seconds = [turn.seconds for turn, _ in used]
    mean = sum(watt * second for watt, second in zip(watts, seconds)) / sum(seconds)
    within = sum(second**2 * power.variance / power.values for second, (_, power) in zip(seconds, used))
    freedom = sum(power.values - 1 for _, power in used)
    halves = []
    if freedom >= 1:
        halves.append(student_95(freedom) * math.sqrt(within) / sum(seconds))
    if len(used) > 1:
        residuals = sum((second * (watt - mean)) ** 2 for second, watt in zip(seconds, watts))
        halves.append(student_95(len(used) - 1) * math.sqrt(len(used) / (len(used) - 1) * residuals) / sum(seconds))
    return max(halves, default=None)


def _bias(sensor: Sensor, used: _Used) -> float:
    """Half width, W, of what does not show in the spread: the step, and a counter's ends."""
    freedom = sum(max(0.0, power.values - 1) for _, power in used)
    variance = sum(power.variance * max(0.0, power.values - 1) for _, power in used) / freedom if freedom else 0.0
    ends = math.sqrt(sum(_ends(sensor, power) ** 2 for _, power in used)) / len(used)
    return math.hypot(_step_bias(sensor, max(power.levels for _, power in used), variance), ends)


def _step_bias(sensor: Sensor, levels: int, variance: float) -> float:
    if sensor.counter or not sensor.step:
        return 0.0
    step = sensor.step
    if levels < _LEAST_LEVELS:
        return _UNIFORM_95 * step
    noise = max(0.0, variance - step * step / 12)
    return min(_UNIFORM_95 * step, step / math.pi * math.exp(-2 * math.pi**2 * noise / (step * step)))


def _ends(sensor: Sensor, power: Power) -> float:
    """Half width, W, of the error of a counter's ends: when they were is known to the time between two reads."""
    if not sensor.counter or power.seconds <= 0:
        return 0.0
    late_s = min(sensor.period_s, sensor.update_s)
    return 1.96 / math.sqrt(6) * math.hypot(late_s * power.mean_w, sensor.step or 0.0) / power.seconds


def _least_window_s(sensor: Sensor, turns: int) -> float:
    """So long that every turn has two new values of its own, or, of a counter, that its ends cost half of the aim."""
    if not sensor.counter:
        return 2 * sensor.update_s
    late_s = min(sensor.period_s, sensor.update_s)
    return max(2 * late_s, 1.96 * late_s / (AIM / 2 * math.sqrt(6 * turns)))


def _needed(
    sensor: Sensor, used: _Used, mean_w: float, bias_w: float, lost_s: float, least_s: float
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
    fixed = 0.0 if sensor.counter else bias_w
    room = (AIM * mean_w) ** 2 - fixed**2
    if room <= 0:
        return None, None
    quantile = student_95(count - 1) if count > 1 else student_95(max(1.0, mean_values - 1))
    left = room - quantile**2 * rest / count
    rounds = max(count, math.ceil(1.96**2 * of_turns / room) + 1)
    if left <= 0:
        return None, rounds
    spacing_s = max(sensor.update_s, sensor.period_s)
    return _round_up(max(least_s, lost_s + quantile**2 * noise * spacing_s / (count * left))), rounds


def _why_not(mean_w: float, half_w: float | None, window_s: float, needed_s: float | None, rounds: int | None) -> str:
    text = f"{mean_w:.3g} W ± {half_w:.2g} W is not sure to {RESOLVED:.0%}" if half_w else "one value alone is not sure"
    if needed_s is not None:
        return f"{text} with turns of {window_s:.2g} s: turns of {needed_s:g} s would give {AIM:.0%}"
    if rounds is not None:
        return f"{text}: rounds differ too much for longer turns to help; {rounds} rounds would give {AIM:.0%}"
    return f"{text}: the sensor's steps are too coarse for this power, no length would do"


def _around(value: float, half: float | None) -> Interval:
    return Interval(value, None, None) if half is None else Interval(value, value - half, value + half)


def _scaled(interval: Interval, factor: float) -> Interval:
    low, high = interval.low, interval.high
    return Interval(
        interval.value * factor,
        None if low is None else low * factor,
        None if high is None else high * factor,
        interval.confidence,
    )


def _json(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.to_json()


def _round_up(seconds: float) -> float:
    """To two digits, so that people can type it."""
    digits = math.pow(10, math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(seconds / digits - 1e-9) * digits, 6)


def student_95(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, by the expansion of Cornish and Fisher about the normal; exact for 1 and 2.

    Within 1 % from 3 degrees of freedom on, and within 0.1 % from 5. (A board has no scipy.)
    """
    if freedom < 3:
        return 12.706 if freedom < 2 else 4.303
    z = 1.959964
    z3, z5, z7, z9 = (math.pow(z, power) for power in (3, 5, 7, 9))
    return (
        z
        + (z3 + z) / (4 * freedom)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * freedom**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * freedom**3)
        + (79 * z9 + 776 * z7 + 1482 * z5 - 1920 * z3 - 945 * z) / (92160 * freedom**4)
    )
