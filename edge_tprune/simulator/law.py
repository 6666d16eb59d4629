"""The law of a simulated board: power of each rail from the load, the chip's temperature, and what its sensors show.

A rail draws `idle_mw + active_mw * load` milliwatts at a load from 0 to 1; idle power may drift by a constant share per second. The
load is constant between changes, so energy over any window is exact, not integrated.
"""

from __future__ import annotations

import bisect
import random
from dataclasses import dataclass, field
from typing import Protocol

from edge_tprune.simulator.boards import BoardLaw, RailLaw, Registers

_AMBIENT_C = 25.0
_DEGREES_PER_W = 2.2
_HALF_LIFE_S = 60.0


class Load(Protocol):
    """How busy the board is, from 0 to 1, at every time."""

    def at(self, t_ns: int) -> float:
        """The load at a time."""

    def busy_s(self, begin_ns: int, end_ns: int) -> float:
        """The integral of the load over a window, in seconds of full load: exact."""


class StepLoad:
    """A load that stays as it is until it is set again."""

    def __init__(self, load: float = 0.0, begin_ns: int = 0) -> None:
        self._times_ns = [begin_ns]
        self._loads = [load]
        self._busy_s = [0.0]  # until each time

    def set(self, t_ns: int, load: float) -> None:
        """From `t_ns` on the load is `load`. Times must not run backwards."""
        if t_ns < self._times_ns[-1]:
            raise ValueError(f"{t_ns} ns lies before the last change of the load")
        self._busy_s.append(self._integral_s(t_ns))
        self._times_ns.append(t_ns)
        self._loads.append(load)

    def forget(self, before_ns: int) -> None:
        """Drops the changes before a time, which are not needed any more."""
        keep = max(0, bisect.bisect_right(self._times_ns, before_ns) - 1)
        del self._times_ns[:keep], self._loads[:keep], self._busy_s[:keep]

    def at(self, t_ns: int) -> float:
        """The load at a time; before the first it is as from the first on."""
        return self._loads[max(0, bisect.bisect_right(self._times_ns, t_ns) - 1)]

    def busy_s(self, begin_ns: int, end_ns: int) -> float:
        """The integral of the load over a window, in seconds of full load."""
        return self._integral_s(end_ns) - self._integral_s(begin_ns)

    def _integral_s(self, t_ns: int) -> float:
        index = max(0, bisect.bisect_right(self._times_ns, t_ns) - 1)
        return self._busy_s[index] + self._loads[index] * (t_ns - self._times_ns[index]) / 1e9


@dataclass
class Physics:
    """The power a board really draws."""

    law: BoardLaw
    load: Load
    begin_ns: int = 0  #: where drift starts
    idle_drift_per_s: float = 0.0  #: share by which idle power grows per second

    def power_mw(self, rail: RailLaw, t_ns: int) -> float:
        """Power of a rail at a time."""
        drift = 1 + self.idle_drift_per_s * (t_ns - self.begin_ns) / 1e9
        return rail.idle_mw * drift + rail.active_mw * self.load.at(t_ns)

    def rail_energy_mj(self, rail: RailLaw, begin_ns: int, end_ns: int) -> float:
        """Energy through a rail in a window; a milliwatt second is a millijoule."""
        first, last = (begin_ns - self.begin_ns) / 1e9, (end_ns - self.begin_ns) / 1e9
        idle_s = (last - first) + self.idle_drift_per_s * (last**2 - first**2) / 2
        return rail.idle_mw * idle_s + rail.active_mw * self.load.busy_s(begin_ns, end_ns)


class Heat:
    """The temperature of the chip. It approaches, exponentially, the temperature that the power leads to in the end."""

    def __init__(self, begin_ns: int) -> None:
        self.celsius = self.ambient_c = _AMBIENT_C  #: of the chip, and of its surroundings
        self._t_ns = begin_ns

    def warm(self, now_ns: int, energy_mj: float) -> None:
        """Until `now_ns` the board has dissipated `energy_mj` more."""
        if now_ns > self._t_ns:
            elapsed_s = (now_ns - self._t_ns) / 1e9
            goal_c = self.ambient_c + _DEGREES_PER_W * energy_mj / 1e3 / elapsed_s
            self.celsius = goal_c + (self.celsius - goal_c) * 2 ** (-elapsed_s / _HALF_LIFE_S)
            self._t_ns = now_ns


@dataclass
class RailSensor:
    """The chip's channel on a rail: what it shows at a time."""

    rail: RailLaw
    physics: Physics
    phase_ns: int = 0  #: a conversion ends at this time, and one interval later, ...
    noise_steps: float = 0.5  #: standard deviation of a shown value, in its steps
    seed: int = 0
    interval_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.interval_ns = round(self.rail.interval_s * 1e9)

    def conversion_ns(self, t_ns: int) -> int:
        """When the value that is shown at `t_ns` appeared."""
        return self.phase_ns + (t_ns - self.phase_ns) // self.interval_ns * self.interval_ns

    def registers(self, t_ns: int) -> Registers:
        """What the channel shows at a time: the mean over the interval before the last conversion ended."""
        end_ns = self.conversion_ns(t_ns)
        mean_mw = self.physics.rail_energy_mj(self.rail, end_ns - self.interval_ns, end_ns) / (self.interval_ns / 1e9)
        noise = random.Random(f"{self.seed}/{self.rail.label}/{end_ns}").gauss(0, self.noise_steps) if self.noise_steps else 0.0
        return self.rail.registers(mean_mw + noise * self.rail.step_mw)


def rail_sensors(law: BoardLaw, physics: Physics, *, seed: int, noise_steps: float) -> dict[str, RailSensor]:
    """The sensor of every rail by label. Each chip converts at times of its own; the seed decides their phase."""
    draw = random.Random(f"{seed}/phases")
    phases = {rail.address: draw.random() for rail in law.rails}
    return {
        rail.label: RailSensor(
            rail, physics, physics.begin_ns - round(phases[rail.address] * rail.interval_s * 1e9), noise_steps, seed
        )
        for rail in law.rails
    }
