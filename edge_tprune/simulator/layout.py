"""The files of a simulated board: shaped like a board's /sys, /proc, /etc and /var, each replaced atomically when it changes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge_tprune.simulator.boards import BoardLaw, RailLaw, Registers
from edge_tprune.simulator.faults import REFUSES_EIO, ActiveFault
from edge_tprune.telemetry.host import cpu_ticks, meminfo
from edge_tprune.telemetry.source import NoReading
from edge_tprune.telemetry.sysfs import text_or_none

NEW = "simulator/new"  #: where a file is made before it takes its place

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  #: of renameat2(2)


class Chip:
    """Where the files of a chip are."""

    def __init__(self, rail: RailLaw, number: int) -> None:
        self.number = number
        self.renumberable = rail.chip != "ina3221x"
        self.device = f"sys/devices/platform/bus@0/c240000.i2c/i2c-{rail.address[0]}/{rail.address}"

    @property
    def files(self) -> str:
        """The directory of its values, from the board's directory."""
        if self.renumberable:
            return f"{self.device}/hwmon/hwmon{self.number}"
        return f"{self.device}/iio:device{self.number - 1}"


class BoardFiles:
    """Writes the files of a board. A file that a fault holds keeps its new text until the fault is over.

    Args:
        directory: holds `sys`, `proc`, `etc` and `var`.
        law: the board.
        locked: clocks are locked at their highest.
    """

    def __init__(self, directory: Path, law: BoardLaw, *, locked: bool) -> None:
        self.directory = directory
        self.law = law
        self._locked = locked
        self.texts: dict[str, str] = {}  #: what each file says when nothing is wrong with it
        self.faults: list[ActiveFault] = []
        chips = {(rail.chip, rail.address): rail for rail in law.rails}
        self.chips = {key: Chip(rail, number) for number, (key, rail) in enumerate(chips.items(), start=1)}

    def write_all(self) -> None:
        """Writes everything that does not change with the load."""
        self._write_identity()
        self._write_clocks()
        self._write_rails()
        self._write_thermal()

    def renumber(self, matching: list[str]) -> None:
        """Gives the chips that have one of these files another hwmon number."""
        for chip in self.chips.values():
            if not chip.renumberable or not any(name.startswith(chip.files + "/") for name in matching):
                continue
            old, number = chip.files, chip.number
            chip.number += 20
            (self.directory / old).rename(self.directory / chip.files)
            moved = {name: chip.files + name.removeprefix(old) for name in self.texts if name.startswith(old + "/")}
            self.texts = {moved.get(name, name): text for name, text in self.texts.items()}
            for active in self.faults:
                active.names = [moved.get(name, name) for name in active.names]
            (self.directory / f"sys/class/hwmon/hwmon{number}").unlink()
            self._link_chip(chip)

    def _write_identity(self) -> None:
        law = self.law
        self.put("proc/device-tree/model", law.model + "\0")
        self.put("proc/device-tree/compatible", "\0".join(law.compatible) + "\0")
        self.put("proc/sys/kernel/osrelease", law.kernel + "\n")
        core = f"processor\t: {{}}\nCPU implementer\t: {'0x4e' if law.core_part == '0x004' else '0x41'}\nCPU part\t: {law.core_part}\n\n"
        self.put("proc/cpuinfo", "".join(core.format(number) for number in range(law.cores)))
        self.put("etc/nv_tegra_release", law.release + "\n")
        self.put("etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu (simulated board)"\n')
        modes = "".join(f"< POWER_MODEL ID={number} NAME={name} >\n" for number, name in enumerate(law.modes))
        self.put("etc/nvpmodel.conf", modes + f"< PM_CONFIG DEFAULT={law.mode} >\n")
        self.put("var/lib/nvpmodel/status", f"pmode:{law.mode:04d} fmode:fanNull\n")
        self.put("sys/block/zram0/size", f"{law.memory_kib}\n")

    def _write_clocks(self) -> None:
        law = self.law
        cpu = "sys/devices/system/cpu"
        low, high = law.cpu_khz
        self.put(f"{cpu}/online", f"0-{law.cores - 1}\n")
        self.put(f"{cpu}/cpufreq/policy0/affected_cpus", " ".join(map(str, range(law.cores))) + "\n")
        self.put(f"{cpu}/cpufreq/policy0/scaling_min_freq", f"{high if self._locked else low}\n")
        self.put(f"{cpu}/cpufreq/policy0/scaling_max_freq", f"{high}\n")
        self.put(f"{cpu}/cpufreq/policy0/cpuinfo_min_freq", f"{low}\n")
        self.put(f"{cpu}/cpufreq/policy0/cpuinfo_max_freq", f"{high}\n")
        self.put(f"{cpu}/cpufreq/policy0/scaling_governor", "schedutil\n")
        for number in range(law.cores):
            self.put(f"{cpu}/cpu{number}/online", "1\n")
            self._link(f"{cpu}/cpu{number}/cpufreq", f"{cpu}/cpufreq/policy0")
        low, high = law.gpu_hz
        self.put(f"{self._gpu_device}/of_node/name", "gpu\0")
        self.put(f"{self._gpu_clock}/min_freq", f"{high if self._locked else low}\n")
        self.put(f"{self._gpu_clock}/max_freq", f"{high}\n")
        self.put(f"{self._gpu_clock}/available_frequencies", f"{low} {high}\n")
        self.put(f"{self._gpu_clock}/governor", "nvhost_podgov\n")
        self._link(f"{self._gpu_clock}/device", self._gpu_device)
        self._link(f"sys/class/devfreq/{law.gpu}", self._gpu_clock)

    @property
    def _gpu_device(self) -> str:
        file = self.law.gpu_load_file
        return file.rpartition("/")[0] if file else f"sys/devices/platform/{self.law.gpu}"

    @property
    def _gpu_clock(self) -> str:
        return f"{self._gpu_device}/devfreq/{self.law.gpu}"

    def _write_rails(self) -> None:
        for (chip, address), place in self.chips.items():
            self.put(f"{place.device}/name", f"{chip}\n")
            self._link(f"sys/bus/i2c/devices/{address}", place.device)
            self._link(f"sys/bus/i2c/drivers/{chip}/{address}", place.device)
            self._link_chip(place)
            if chip != "ina3221x":
                self.put(f"{place.files}/name", f"{chip}\n")
            if chip == "ina3221":
                self.put(f"{place.files}/update_interval", "430\n")
                self.put(f"{place.files}/samples", "512\n")
                self.put(f"{place.files}/in7_label", "sum of shunt voltages\n")
        for rail in self.law.rails:
            self._write_channel(rail)
        for address, channel in self.law.not_connected:
            files = self.chips["ina3221", address].files
            self.put(f"{files}/in{channel}_label", "NC\n")
            self.put(f"{files}/in{channel}_enable", "1\n")
            for name in (f"in{channel}_input", f"curr{channel}_input"):
                self.replace(self.directory / files / name, lambda path: path.symlink_to(REFUSES_EIO))

    def _write_channel(self, rail: RailLaw) -> None:
        files, channel = self.chips[rail.chip, rail.address].files, rail.channel
        if rail.chip == "ina3221x":
            self.put(f"{files}/rail_name_{channel - 1}", f"{rail.label}\n")
        elif rail.chip == "ina238":
            self.put(f"{files}/in1_label", f"{rail.label}\n")
            self.put(f"{files}/shunt_resistor", f"{rail.shunt_uohm}\n")
        else:
            self.put(f"{files}/in{channel}_label", f"{rail.label}\n")
            self.put(f"{files}/in{channel}_enable", "1\n")
            self.put(f"{files}/shunt{channel}_resistor", f"{rail.shunt_uohm}\n")
            limit_ma = round(2 * (rail.idle_mw + rail.active_mw) / rail.voltage_mv * 1000)
            for name in ("max", "crit"):
                self.put(f"{files}/curr{channel}_{name}", f"{limit_ma}\n")
                self.put(f"{files}/curr{channel}_{name}_alarm", "0\n")

    def _write_thermal(self) -> None:
        law = self.law
        for number, kind in enumerate((*law.zones, *law.offline_zones)):
            self.put(f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
            if kind in law.offline_zones:
                self.put(f"sys/class/thermal/thermal_zone{number}/temp", "-256000\n")
        for number, kind in enumerate(law.cooling):
            self.put(f"sys/class/thermal/cooling_device{number}/type", f"{kind}\n")
            self.put(f"sys/class/thermal/cooling_device{number}/cur_state", "0\n")
            self.put(f"sys/class/thermal/cooling_device{number}/max_state", "10\n")
        for number in range(law.over_current_counters):
            counters = "sys/devices/platform/soctherm-oc-event/hwmon/hwmon0"
            self.put(f"{counters}/name", "soctherm_oc\n")
            self.put(f"{counters}/oc{number + 1}_event_cnt", "0\n")
            self._link("sys/class/hwmon/hwmon0", counters)

    def write_load(self, load: float, celsius: float) -> None:
        """What follows the load, the temperature and this machine; the rails are written by `write_rail`."""
        law = self.law
        milli_c = f"{round(celsius * 1000 / 31.25) * 31.25:.0f}\n"
        for number in range(len(law.zones)):
            self.put(f"sys/class/thermal/thermal_zone{number}/temp", milli_c)
        if law.gpu_load_file:
            self.put(law.gpu_load_file, f"{round(load * 1000)}\n")
        fast = self._locked or load > 0.1
        self.put(f"{self._gpu_clock}/cur_freq", f"{law.gpu_hz[fast]}\n")
        for name in ("scaling_cur_freq", "cpuinfo_cur_freq"):
            self.put(f"sys/devices/system/cpu/cpufreq/policy0/{name}", f"{law.cpu_khz[fast]}\n")
        pwm = round(min(255.0, max(0.0, (celsius - 35) * 6)))
        if not law.jetpack_4:
            self.put("sys/devices/platform/pwm-fan/hwmon/hwmon9/name", "pwmfan\n")
            self.put("sys/devices/platform/pwm-fan/hwmon/hwmon9/pwm1", f"{pwm}\n")
            self._link("sys/class/hwmon/hwmon9", "sys/devices/platform/pwm-fan/hwmon/hwmon9")
        else:
            self.put("sys/devices/pwm-fan/target_pwm", f"{pwm}\n")
        self._write_proc()

    def _write_proc(self) -> None:
        """Load and free memory as this machine's: the ticks are its own, shared out evenly among the board's cores."""
        law = self.law
        with suppress(NoReading, ValueError):
            busy, total = cpu_ticks()
            lines = [f"cpu  {busy} 0 0 {total - busy} 0 0 0 0 0 0"]
            lines += [f"cpu{n} {busy // law.cores} 0 0 {(total - busy) // law.cores} 0 0 0 0 0 0" for n in range(law.cores)]
            self.put("proc/stat", "\n".join(lines) + "\n")
        if text := text_or_none("/proc/loadavg"):
            self.put("proc/loadavg", text + "\n")
        with suppress(NoReading):
            here = meminfo()
            used = here["MemTotal"] - here.get("MemAvailable", here["MemFree"])
            free_kib = max(64 << 10, law.memory_kib - used // 1024) >> 10 << 10  # whole MiB
            self.put(
                "proc/meminfo",
                f"MemTotal:       {law.memory_kib} kB\nMemFree:        {free_kib // 2} kB\nMemAvailable:   {free_kib} kB\n"
                f"SwapTotal:      {law.memory_kib // 2} kB\nSwapFree:       {law.memory_kib // 2} kB\nNvMapMemUsed:   204800 kB\n",
            )

    def write_rail(self, rail: RailLaw, shown: Registers) -> None:
        """Writes what the channel of a rail shows."""
        files, channel = self.chips[rail.chip, rail.address].files, rail.channel
        if rail.chip == "ina3221x":
            self.put(f"{files}/in_voltage{channel - 1}_input", f"{shown.voltage_mv}\n")
            self.put(f"{files}/in_current{channel - 1}_input", f"{shown.current_ma}\n")
            self.put(f"{files}/in_power{channel - 1}_input", f"{round(shown.power_mw)}\n")
        else:
            self.put(f"{files}/in{channel}_input", f"{shown.voltage_mv}\n")
            self.put(f"{files}/curr{channel}_input", f"{shown.current_ma}\n")
        if rail.chip == "ina238":
            self.put(f"{files}/power1_input", f"{round(shown.power_mw * 1000)}\n")

    def put(self, name: str, text: str) -> None:
        """Sets what a file says, atomically. A file with a fault shows it when the fault is over."""
        if self.texts.get(name) == text:
            return
        self.texts[name] = text
        for active in self.faults:
            if name in active.names:
                if active.fault.kind == "jump":
                    active.apply(self.directory / name, text, self.replace)
                return
        self.replace(self.directory / name, lambda path: path.write_text(text))

    def replace(self, path: Path, make: Callable[[Path], Any]) -> None:
        """Puts what `make` makes in the place of `path`, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = self.directory / NEW
        new.unlink(missing_ok=True)
        make(new)
        _exchange(new, path)

    def _link(self, name: str, target: str) -> None:
        link = self.directory / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(self.directory / target, link.parent))

    def _link_chip(self, place: Chip) -> None:
        if place.renumberable:
            self._link(f"sys/class/hwmon/hwmon{place.number}", place.files)
            self._link(f"{place.files}/device", place.device)
        else:
            self._link(f"sys/bus/iio/devices/iio:device{place.number - 1}", place.files)


def _exchange(new: Path, path: Path) -> None:
    """Puts `new` in the place of `path`, atomically.

    Where the kernel can swap the two, it is asked to: a file system that flushes what replaces a file (ext4) would otherwise
    write to the disk sixty times a second.
    """
    rename = _renameat2()
    if rename is None or rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) != 0:
        new.replace(path)


@lru_cache(maxsize=1)
def _renameat2() -> Any:
    """The C library's function, or None."""
    return getattr(ctypes.CDLL(None), "renameat2", None)
