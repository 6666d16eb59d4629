"""The law of a simulated board: power of each rail from the load, and what the chip that measures the rail makes of it.

Power: a rail draws `idle_mw + active_mw * load` milliwatts at a load from 0 to 1; idle power may drift by a constant share per
second. The load is constant between changes, so energy over any window is exact, not integrated.

Sensor: an INA3221 with samples=512 converts shunt and bus voltage of its three channels, 140 us each, 512 times, and then
shows the means: a new value every 6 * 512 * 140 us = 430.08 ms (the driver says 430), which is the mean over those 430 ms. Its
current moves in steps of 40 uV across the shunt, its voltage in steps of 8 mV. An INA238 as its driver sets it up averages 16
times three conversions of 1.052 ms: 50.5 ms.
"""

from __future__ import annotations

import bisect
import random
from dataclasses import dataclass, field
from typing import Protocol

from edge_tprune.errors import UserError, did_you_mean

_INA3221_S = 6 * 512 * 140e-6
_INA3221_UNAVERAGED_S = 6 * 1.1e-3  #: as the driver of JetPack 4 leaves it
_INA238_S = 16 * 3 * 1.052e-3
_SHUNT_STEP_UV = 40
_BUS_STEP_MV = 8
_INA238_STEP_MW_UOHM = 4000.0
_AMBIENT_C = 25.0
_DEGREES_PER_W = 2.2
_HALF_LIFE_S = 60.0


@dataclass(frozen=True)
class RailLaw:
    """One rail and the channel that measures it."""

    label: str
    chip: str  #: "ina3221", "ina238" or "ina3221x" (the iio driver of JetPack 4)
    address: str  #: "1-0040"
    channel: int  #: 1 to 3
    idle_mw: float
    active_mw: float  #: what full load adds
    voltage_mv: int
    shunt_uohm: int

    @property
    def interval_s(self) -> float:
        """The chip has a new value this often."""
        return {"ina3221": _INA3221_S, "ina238": _INA238_S, "ina3221x": _INA3221_UNAVERAGED_S}[self.chip]

    @property
    def step_mw(self) -> float:
        """The least change the chip can show."""
        if self.chip == "ina238":
            return _INA238_STEP_MW_UOHM / self.shunt_uohm
        return _SHUNT_STEP_UV / self.shunt_uohm * self.voltage_mv

    @property
    def stated_interval_s(self) -> float | None:
        """What the driver says of `interval_s`: whole milliseconds, or nothing."""
        return {"ina3221": round(self.interval_s, 3), "ina238": None, "ina3221x": None}[self.chip]

    def shown(self, power_mw: float) -> Registers:
        """What the driver makes of a mean power."""
        step_ma = self.step_mw / self.voltage_mv * 1000
        current_ma = round(power_mw / self.voltage_mv * 1000 / step_ma) * step_ma
        voltage_mv = round(self.voltage_mv / _BUS_STEP_MV) * _BUS_STEP_MV
        if self.chip == "ina238":
            return Registers(self.voltage_mv, round(current_ma), round(power_mw / self.step_mw) * self.step_mw)
        return Registers(voltage_mv, round(current_ma), voltage_mv * round(current_ma) / 1000)


@dataclass(frozen=True)
class Registers:
    """What a channel shows until the next conversion."""

    voltage_mv: int
    current_ma: int
    power_mw: float


@dataclass(frozen=True)
class BoardLaw:
    """A board that can be simulated."""

    key: str  #: as in boards.json
    model: str
    compatible: tuple[str, ...]
    release: str  #: /etc/nv_tegra_release
    kernel: str
    rails: tuple[RailLaw, ...]
    not_connected: tuple[tuple[str, int], ...]  #: (address, channel) of channels labelled NC, whose files fail with EIO
    cores: int
    core_part: str  #: as /proc/cpuinfo tells it
    cpu_khz: tuple[int, int]  #: lowest, highest
    gpu: str  #: its name in /sys/class/devfreq
    gpu_load_file: str | None  #: from the root; None: the board has none
    gpu_hz: tuple[int, int]
    zones: tuple[str, ...]
    offline_zones: tuple[str, ...]  #: read -256 C
    cooling: tuple[str, ...]
    modes: tuple[str, ...]  #: of nvpmodel, by id
    mode: int
    memory_kib: int
    over_current_counters: int

    @property
    def jetpack_4(self) -> bool:
        """Whether its files are laid out as in JetPack 4."""
        return any(rail.chip == "ina3221x" for rail in self.rails)


def _orin_rails(idle: float, active: float) -> tuple[RailLaw, ...]:
    """VDD_IN and the two rails behind it, one INA3221 at 1-0040."""
    return (
        RailLaw("VDD_IN", "ina3221", "1-0040", 1, idle, active, 5040, 5000),
        RailLaw("VDD_CPU_GPU_CV", "ina3221", "1-0040", 2, 0.15 * idle, 0.6 * active, 5040, 5000),
        RailLaw("VDD_SOC", "ina3221", "1-0040", 3, 0.3 * idle, 0.18 * active, 5040, 5000),
    )


_ORIN_ZONES = ("cpu-thermal", "gpu-thermal", "soc0-thermal", "soc1-thermal", "soc2-thermal", "tj-thermal")
_ORIN_OFFLINE = ("cv0-thermal", "cv1-thermal", "cv2-thermal")
_COOLING = ("pwm-fan", "cpufreq-cpu0", "cpufreq-cpu4", "devfreq-gpu")

BOARDS: dict[str, BoardLaw] = {
    law.key: law
    for law in (
        BoardLaw(
            key="orin-nano",
            model="NVIDIA Jetson Orin Nano Developer Kit (simulated)",
            compatible=("nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005", "nvidia,tegra234"),
            release="# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
            kernel="5.15.148-tegra",
            rails=_orin_rails(4100, 9200),
            not_connected=(),
            cores=6,
            core_part="0xd42",
            cpu_khz=(115200, 1728000),
            gpu="17000000.gpu",
            gpu_load_file="sys/devices/platform/bus@0/17000000.gpu/load",
            gpu_hz=(306000000, 1020000000),
            zones=_ORIN_ZONES,
            offline_zones=_ORIN_OFFLINE,
            cooling=_COOLING,
            modes=("15W", "25W", "MAXN_SUPER", "7W"),
            mode=1,
            memory_kib=7802880,
            over_current_counters=3,
        ),
        BoardLaw(
            key="agx-orin",
            model="NVIDIA Jetson AGX Orin Developer Kit (simulated)",
            compatible=("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
            release="# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64",
            kernel="5.15.148-tegra",
            rails=(
                RailLaw("VDD_GPU_SOC", "ina3221", "1-0040", 1, 2500, 14000, 20000, 2000),
                RailLaw("VDD_CPU_CV", "ina3221", "1-0040", 2, 600, 11000, 20000, 2000),
                RailLaw("VIN_SYS_5V0", "ina3221", "1-0040", 3, 3600, 1500, 5040, 2000),
                RailLaw("VDDQ_VDD2_1V8AO", "ina3221", "1-0041", 2, 400, 900, 5040, 2000),
            ),
            not_connected=(("1-0041", 1), ("1-0041", 3)),
            cores=12,
            core_part="0xd42",
            cpu_khz=(115200, 2201600),
            gpu="17000000.gpu",
            gpu_load_file="sys/devices/platform/bus@0/17000000.gpu/load",
            gpu_hz=(306000000, 1300500000),
            zones=_ORIN_ZONES,
            offline_zones=_ORIN_OFFLINE,
            cooling=(*_COOLING, "cpufreq-cpu8"),
            modes=("MAXN", "15W", "30W", "50W"),
            mode=0,
            memory_kib=64308288,
            over_current_counters=3,
        ),
        BoardLaw(
            key="thor",
            model="NVIDIA Jetson AGX Thor Developer Kit (simulated)",
            compatible=("nvidia,p3971-0089+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
            release="# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64",
            kernel="6.8.12-tegra",
            rails=(
                RailLaw("VDD_GPU", "ina3221", "2-0040", 1, 900, 38000, 20000, 2000),
                RailLaw("VDD_CPU_SOC_MSS", "ina3221", "2-0040", 2, 7000, 16000, 20000, 2000),
                RailLaw("VIN_SYS_5V0", "ina3221", "2-0040", 3, 4000, 2000, 5040, 2000),
                RailLaw("VIN", "ina238", "2-0044", 1, 21000, 62000, 20000, 2000),
            ),
            not_connected=(),
            cores=14,
            core_part="0xd83",
            cpu_khz=(648000, 2601000),
            gpu="gpu-gpc-0",
            gpu_load_file=None,
            gpu_hz=(318000000, 1575000000),
            zones=("cpu-thermal", "gpu-thermal", "soc012-thermal", "soc345-thermal", "tj-thermal"),
            offline_zones=(),
            cooling=_COOLING,
            modes=("MAXN", "120W", "90W", "70W"),
            mode=1,
            memory_kib=128766976,
            over_current_counters=3,
        ),
        BoardLaw(
            key="xavier-nx",
            model="NVIDIA Jetson Xavier NX Developer Kit (simulated)",
            compatible=("nvidia,p3449-0000+p3668-0000", "nvidia,p3668-0000", "nvidia,tegra194"),
            release="# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64",
            kernel="5.10.120-tegra",
            rails=(
                RailLaw("VDD_IN", "ina3221", "7-0040", 1, 3900, 10500, 5040, 5000),
                RailLaw("VDD_CPU_GPU_CV", "ina3221", "7-0040", 2, 500, 7000, 5040, 5000),
                RailLaw("VDD_SOC", "ina3221", "7-0040", 3, 1200, 1600, 5040, 5000),
            ),
            not_connected=(),
            cores=6,
            core_part="0x004",
            cpu_khz=(115200, 1907200),
            gpu="17000000.gv11b",
            gpu_load_file="sys/devices/gpu.0/load",
            gpu_hz=(114750000, 1109250000),
            zones=("CPU-therm", "GPU-therm", "AUX-therm", "AO-therm", "PMIC-Die"),
            offline_zones=(),
            cooling=_COOLING,
            modes=("MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE", "MODE_10W_2CORE", "MODE_10W_4CORE"),
            mode=2,
            memory_kib=7958528,
            over_current_counters=0,
        ),
        BoardLaw(
            key="nano",
            model="NVIDIA Jetson Nano Developer Kit (simulated)",
            compatible=("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210"),
            release="# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t210ref, EABI: aarch64",
            kernel="4.9.337-tegra",
            rails=(
                RailLaw("POM_5V_IN", "ina3221x", "6-0040", 1, 1400, 6100, 5040, 5000),
                RailLaw("POM_5V_GPU", "ina3221x", "6-0040", 2, 40, 3000, 5040, 5000),
                RailLaw("POM_5V_CPU", "ina3221x", "6-0040", 3, 250, 2300, 5040, 5000),
            ),
            not_connected=(),
            cores=4,
            core_part="0xd07",
            cpu_khz=(102000, 1479000),
            gpu="57000000.gpu",
            gpu_load_file="sys/devices/gpu.0/load",
            gpu_hz=(76800000, 921600000),
            zones=("AO-therm", "CPU-therm", "GPU-therm", "PLL-therm", "PMIC-Die", "thermal-fan-est"),
            offline_zones=(),
            cooling=("pwm-fan", "cpufreq-cpu0"),
            modes=("MAXN", "5W"),
            mode=0,
            memory_kib=4059236,
            over_current_counters=0,
        ),
    )
}


def board_law(key: str) -> BoardLaw:
    """The board called `key`.

    Raises:
        UserError: there is none.
    """
    try:
        return BOARDS[key]
    except KeyError:
        raise UserError(
            f"no simulated board is called {key!r}.{did_you_mean(key, BOARDS)} There are: {', '.join(BOARDS)}"
        ) from None


class Load(Protocol):
    """How busy the board is, from 0 to 1, at every time."""

    def at(self, t_ns: int) -> float:
        """The load at a time."""

    def busy_s(self, begin_ns: int, end_ns: int) -> float:
        """The integral of the load over a window, in seconds of full load: exact."""


@dataclass(frozen=True)
class SquareLoad:
    """Busy at the start of every period, as frames at a fixed rate are."""

    period_ns: int
    busy_ns: int  #: of every period
    busy_load: float = 1.0
    idle_load: float = 0.0

    def at(self, t_ns: int) -> float:
        """The load at a time."""
        return self.busy_load if t_ns % self.period_ns < self.busy_ns else self.idle_load

    def busy_s(self, begin_ns: int, end_ns: int) -> float:
        """The integral of the load over a window, in seconds of full load."""
        return (self._until(end_ns) - self._until(begin_ns)) / 1e9

    def _until(self, t_ns: int) -> float:
        periods, rest = divmod(t_ns, self.period_ns)
        busy = periods * self.busy_ns + min(rest, self.busy_ns)
        return busy * self.busy_load + (t_ns - busy) * self.idle_load


class StepLoad:
    """A load that is set as time goes on and stays until it is set anew."""

    def __init__(self, load: float = 0.0, begin_ns: int = 0) -> None:
        self._times_ns = [begin_ns]
        self._loads = [load]
        self._busy_s = [0.0]  # until each time

    def set(self, t_ns: int, load: float) -> None:
        """From `t_ns` on the load is `load`. Times must not run backwards."""
        if t_ns < self._times_ns[-1]:
            raise ValueError(f"{t_ns} ns lies before the last change of the load")
        self._busy_s.append(self._until(t_ns))
        self._times_ns.append(t_ns)
        self._loads.append(load)

    def forget(self, before_ns: int) -> None:
        """Drops the changes before a time, of which nobody will ask again."""
        keep = max(0, bisect.bisect_right(self._times_ns, before_ns) - 1)
        del self._times_ns[:keep], self._loads[:keep], self._busy_s[:keep]

    def at(self, t_ns: int) -> float:
        """The load at a time; before the first it is as from the first on."""
        return self._loads[max(0, bisect.bisect_right(self._times_ns, t_ns) - 1)]

    def busy_s(self, begin_ns: int, end_ns: int) -> float:
        """The integral of the load over a window, in seconds of full load."""
        return self._until(end_ns) - self._until(begin_ns)

    def _until(self, t_ns: int) -> float:
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
    """The temperature of the chip: it nears, exponentially, what the power would heat it to in the end."""

    def __init__(self, begin_ns: int) -> None:
        self.celsius = _AMBIENT_C
        self._t_ns = begin_ns

    def warm(self, now_ns: int, energy_mj: float) -> None:
        """Until `now_ns` the board has dissipated `energy_mj` more."""
        if now_ns > self._t_ns:
            elapsed_s = (now_ns - self._t_ns) / 1e9
            goal_c = _AMBIENT_C + _DEGREES_PER_W * energy_mj / 1e3 / elapsed_s
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

    def shown_since_ns(self, t_ns: int) -> int:
        """When the value that is shown at `t_ns` appeared."""
        return self.phase_ns + (t_ns - self.phase_ns) // self.interval_ns * self.interval_ns

    def shown(self, t_ns: int) -> Registers:
        """What the channel shows at a time: the mean over the interval before the last conversion ended."""
        end_ns = self.shown_since_ns(t_ns)
        mean_mw = self.physics.rail_energy_mj(self.rail, end_ns - self.interval_ns, end_ns) / (self.interval_ns / 1e9)
        noise = random.Random(f"{self.seed}/{self.rail.label}/{end_ns}").gauss(0, self.noise_steps) if self.noise_steps else 0.0
        return self.rail.shown(mean_mw + noise * self.rail.step_mw)


def rail_sensors(law: BoardLaw, physics: Physics, *, seed: int, noise_steps: float) -> dict[str, RailSensor]:
    """The sensor of every rail by label. Each chip converts in a rhythm of its own, whose phase the seed decides."""
    draw = random.Random(f"{seed}/phases")
    phases = {rail.address: draw.random() for rail in law.rails}
    return {
        rail.label: RailSensor(
            rail, physics, physics.begin_ns - round(phases[rail.address] * rail.interval_s * 1e9), noise_steps, seed
        )
        for rail in law.rails
    }
