"""Boards that can be simulated, as data: their files, their rails, and what the chip that measures a rail makes of its power.

An INA3221 with samples=512 converts shunt and bus voltage of its three channels, 140 us each, 512 times, and then shows the means: a
new value every 6 * 512 * 140 us = 430.08 ms (the driver reports 430), which is the mean over those 430 ms. Its current moves in steps
of 40 uV across the shunt, its voltage in steps of 8 mV. An INA238 as its driver sets it up averages 16 times three conversions of
1.052 ms: 50.5 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_tprune.errors import UserError, did_you_mean

_INA3221_S = 6 * 512 * 140e-6
_INA3221_UNAVERAGED_S = 6 * 1.1e-3  #: as the driver of JetPack 4 leaves it
_INA238_S = 16 * 3 * 1.052e-3
_SHUNT_STEP_UV = 40
_BUS_STEP_MV = 8
_INA238_STEP_MW_UOHM = 4000.0


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
        """The smallest change the chip can show."""
        if self.chip == "ina238":
            return _INA238_STEP_MW_UOHM / self.shunt_uohm
        return _SHUNT_STEP_UV / self.shunt_uohm * self.voltage_mv

    @property
    def stated_interval_s(self) -> float | None:
        """What the driver reports as `interval_s`: whole milliseconds, or nothing."""
        return {"ina3221": round(self.interval_s, 3), "ina238": None, "ina3221x": None}[self.chip]

    def registers(self, power_mw: float) -> Registers:
        """What the driver reports for a mean power."""
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
    core_part: str  #: as /proc/cpuinfo reports it
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
