"""A live directory shaped like a board's /sys, /proc, /etc and /var, updated in real time.

Its power follows how busy this machine's cores really are (all of them: 1.0), by the law in `law`. Every value appears at the
sensor's own interval; a sensor faster than the 50 ms of the simulation (JetPack 4 has some) is shown at every step. The energy
that was really dissipated is in `simulator/truth.jsonl`: {t_ns, load, total_mj, rails_mj} on the clock of
`time.perf_counter_ns`. The load is constant between two lines, so the energy between them is a straight line.

Faults are asked for in `simulator/faults.json` (a list of {kind, file, seconds, value}, `file` being a pattern over paths
below the directory) or with `inject`; `simulator/faults.jsonl` says when each began and ended. Their
kinds are described in `faults`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, write_json
from edge_tprune.simulator.faults import REFUSES_EIO, ActiveFault, Fault
from edge_tprune.simulator.law import Heat, Physics, RailLaw, StepLoad, board_law, rail_sensors
from edge_tprune.simulator.truth import TRUTH
from edge_tprune.telemetry import boards
from edge_tprune.telemetry.host import cpu_ticks, meminfo
from edge_tprune.telemetry.source import Clock, NoReading
from edge_tprune.telemetry.sysfs import text_or_none

STATE = "simulator/state.json"  #: there while the simulation runs: {board, pid, began_ns, seed}
FAULTS = "simulator/faults.json"
FAULT_LOG = "simulator/faults.jsonl"

_TICK_NS = 50_000_000  #: the load is measured this often: five of the kernel's own ticks
_KEEP_NS = 5 * 10**9  #: no sensor looks back further
_PARTS = ("sys", "proc", "etc", "var", "simulator")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  #: of renameat2(2)


class Tree:
    """The directory of one simulated board. `step` advances it; `run` does so in real time.

    Args:
        directory: new, empty, or left by an earlier simulation.
        board: a key of `law.BOARDS`.
        now_ns: the time it begins at.
        seed: of the sensors' phases and noise.
        noise_steps: standard deviation of a shown value in steps of its sensor.
        locked: clocks are locked at their highest.

    Raises:
        UserError: no such board; the directory has something else in it; it cannot be written.
    """

    def __init__(
        self, directory: Path, board: str, now_ns: int, *, seed: int = 0, noise_steps: float = 0.5, locked: bool = False
    ) -> None:
        self.directory = directory
        self.law = board_law(board)
        self.load = StepLoad(begin_ns=now_ns)
        self.physics = Physics(self.law, self.load, now_ns)
        self._total = boards.board(board).total
        self._locked = locked
        self._now_ns = self._changed_ns = now_ns
        self._energy_mj = dict.fromkeys((rail.label for rail in self.law.rails), 0.0)
        self._heat = Heat(now_ns)
        self._texts: dict[str, str] = {}  # what each file says when nothing is wrong with it
        self._faults: list[ActiveFault] = []
        self._ended: list[ActiveFault] = []
        self._asked: tuple[tuple[int, int, int], list[Fault]] = ((0, 0, 0), [])  # the file's version, and what it asks for
        chips = {(rail.chip, rail.address): rail for rail in self.law.rails}
        self._chips = {key: _Chip(rail, number) for number, (key, rail) in enumerate(chips.items(), start=1)}
        self._sensors = rail_sensors(self.law, self.physics, seed=seed, noise_steps=noise_steps)
        self._shown_ns: dict[str, int] = {}
        with clear_write_errors(directory):
            self._clear()
            self._write_identity()
            self._write_clocks()
            self._write_rails()
            self._write_thermal()
            self._write_changing(load=0.0)
            self._show_rails()
        self._truth = _open_append(directory / TRUTH)
        self._fault_log = _open_append(directory / FAULT_LOG)
        self._write_truth(0.0)
        write_json(directory / STATE, {"board": board, "pid": os.getpid(), "began_ns": now_ns, "seed": seed})

    def close(self) -> None:
        """Ends every fault and the simulation; the files stay as they are."""
        for fault in list(self._faults):
            self._end(fault)
        self._close_ended()
        (self.directory / STATE).unlink(missing_ok=True)
        for handle in (self._truth, self._fault_log, self._lock):
            os.close(handle)

    def step(self, now_ns: int, load: float) -> None:
        """Time has gone on to `now_ns`, and since the last step the machine's load was `load`."""
        before_ns, self._now_ns = self._now_ns, now_ns
        self.load.set(before_ns, load)
        total_mj = self.energy_mj()
        for rail in self.law.rails:
            self._energy_mj[rail.label] += self.physics.rail_energy_mj(rail, before_ns, now_ns)
        self._heat.warm(now_ns, self.energy_mj() - total_mj)
        self._write_truth(load)
        self._update_faults()
        self._show_rails()
        if now_ns - self._changed_ns >= _TICK_NS:
            self._changed_ns = now_ns
            self._write_changing(load)
        self.load.forget(now_ns - _KEEP_NS)

    def next_ns(self) -> int:
        """When the next step should be: at the next tick, or sooner where a sensor has a new value before it."""
        slow = (sensor for sensor in self._sensors.values() if sensor.interval_ns >= _TICK_NS)
        news = (sensor.shown_since_ns(self._now_ns) + sensor.interval_ns for sensor in slow)
        ends = (fault.end_ns for fault in self._faults if fault.end_ns is not None)
        soonest = min([self._now_ns + _TICK_NS, *news, *ends])
        return max(soonest, self._now_ns + _TICK_NS // 5)

    def energy_mj(self) -> float:
        """What the board (its total) has dissipated since the beginning."""
        return sum(self._energy_mj[label] for label in self._total)

    def inject(self, fault: Fault) -> None:
        """Begins a fault now.

        Raises:
            UserError: no file matches.
        """
        matching = [name for name in self._texts if fnmatchcase(name, fault.file)]
        if not matching:
            raise UserError(f"no file of the simulated board matches {fault.file!r}")
        end_ns = None if fault.seconds is None else self._now_ns + round(fault.seconds * 1e9)
        self._log("begin", fault)
        if fault.kind == "renumber":
            self._renumber(matching)
            return
        active = ActiveFault(fault, matching, end_ns)
        self._faults.append(active)
        for name in matching:
            active.apply(self.directory / name, self._texts[name], self._replace)

    # What the tree is made of

    def _clear(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()) and not (self.directory / TRUTH).exists():
            raise UserError(f"{self.directory} is not empty: choose a new directory for the simulated board")
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"a simulated board runs in {self.directory} already: choose another directory") from None
        (self.directory / STATE).unlink(missing_ok=True)
        for part in _PARTS:
            shutil.rmtree(self.directory / part, ignore_errors=True)
        (self.directory / "simulator").mkdir()

    def _write_identity(self) -> None:
        law = self.law
        self._put("proc/device-tree/model", law.model + "\0")
        self._put("proc/device-tree/compatible", "\0".join(law.compatible) + "\0")
        self._put("proc/sys/kernel/osrelease", law.kernel + "\n")
        core = f"processor\t: {{}}\nCPU implementer\t: {'0x4e' if law.core_part == '0x004' else '0x41'}\nCPU part\t: {law.core_part}\n\n"
        self._put("proc/cpuinfo", "".join(core.format(number) for number in range(law.cores)))
        self._put("etc/nv_tegra_release", law.release + "\n")
        self._put("etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu (simulated board)"\n')
        modes = "".join(f"< POWER_MODEL ID={number} NAME={name} >\n" for number, name in enumerate(law.modes))
        self._put("etc/nvpmodel.conf", modes + f"< PM_CONFIG DEFAULT={law.mode} >\n")
        self._put("var/lib/nvpmodel/status", f"pmode:{law.mode:04d} fmode:fanNull\n")
        self._put("sys/block/zram0/size", f"{law.memory_kib}\n")

    def _write_clocks(self) -> None:
        law = self.law
        cpu = "sys/devices/system/cpu"
        low, high = law.cpu_khz
        self._put(f"{cpu}/online", f"0-{law.cores - 1}\n")
        self._put(f"{cpu}/cpufreq/policy0/affected_cpus", " ".join(map(str, range(law.cores))) + "\n")
        self._put(f"{cpu}/cpufreq/policy0/scaling_min_freq", f"{high if self._locked else low}\n")
        self._put(f"{cpu}/cpufreq/policy0/scaling_max_freq", f"{high}\n")
        self._put(f"{cpu}/cpufreq/policy0/cpuinfo_min_freq", f"{low}\n")
        self._put(f"{cpu}/cpufreq/policy0/cpuinfo_max_freq", f"{high}\n")
        self._put(f"{cpu}/cpufreq/policy0/scaling_governor", "schedutil\n")
        for number in range(law.cores):
            self._put(f"{cpu}/cpu{number}/online", "1\n")
            self._link(f"{cpu}/cpu{number}/cpufreq", f"{cpu}/cpufreq/policy0")
        low, high = law.gpu_hz
        self._put(f"{self._gpu_device}/of_node/name", "gpu\0")
        self._put(f"{self._gpu_clock}/min_freq", f"{high if self._locked else low}\n")
        self._put(f"{self._gpu_clock}/max_freq", f"{high}\n")
        self._put(f"{self._gpu_clock}/available_frequencies", f"{low} {high}\n")
        self._put(f"{self._gpu_clock}/governor", "nvhost_podgov\n")
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
        for (chip, address), place in self._chips.items():
            self._put(f"{place.device}/name", f"{chip}\n")
            self._link(f"sys/bus/i2c/devices/{address}", place.device)
            self._link(f"sys/bus/i2c/drivers/{chip}/{address}", place.device)
            self._link_chip(place)
            if chip != "ina3221x":
                self._put(f"{place.files}/name", f"{chip}\n")
            if chip == "ina3221":
                self._put(f"{place.files}/update_interval", "430\n")
                self._put(f"{place.files}/samples", "512\n")
                self._put(f"{place.files}/in7_label", "sum of shunt voltages\n")
        for rail in self.law.rails:
            self._write_rail(rail)
        for address, channel in self.law.not_connected:
            files = self._chips["ina3221", address].files
            self._put(f"{files}/in{channel}_label", "NC\n")
            self._put(f"{files}/in{channel}_enable", "1\n")
            for name in (f"in{channel}_input", f"curr{channel}_input"):
                self._replace(self.directory / files / name, lambda path: path.symlink_to(REFUSES_EIO))

    def _write_rail(self, rail: RailLaw) -> None:
        files, channel = self._chips[rail.chip, rail.address].files, rail.channel
        if rail.chip == "ina3221x":
            self._put(f"{files}/rail_name_{channel - 1}", f"{rail.label}\n")
        elif rail.chip == "ina238":
            self._put(f"{files}/in1_label", f"{rail.label}\n")
            self._put(f"{files}/shunt_resistor", f"{rail.shunt_uohm}\n")
        else:
            self._put(f"{files}/in{channel}_label", f"{rail.label}\n")
            self._put(f"{files}/in{channel}_enable", "1\n")
            self._put(f"{files}/shunt{channel}_resistor", f"{rail.shunt_uohm}\n")
            limit_ma = round(2 * (rail.idle_mw + rail.active_mw) / rail.voltage_mv * 1000)
            for name in ("max", "crit"):
                self._put(f"{files}/curr{channel}_{name}", f"{limit_ma}\n")
                self._put(f"{files}/curr{channel}_{name}_alarm", "0\n")

    def _write_thermal(self) -> None:
        law = self.law
        for number, kind in enumerate((*law.zones, *law.offline_zones)):
            self._put(f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
            if kind in law.offline_zones:
                self._put(f"sys/class/thermal/thermal_zone{number}/temp", "-256000\n")
        for number, kind in enumerate(law.cooling):
            self._put(f"sys/class/thermal/cooling_device{number}/type", f"{kind}\n")
            self._put(f"sys/class/thermal/cooling_device{number}/cur_state", "0\n")
            self._put(f"sys/class/thermal/cooling_device{number}/max_state", "10\n")
        for number in range(law.over_current_counters):
            counters = "sys/devices/platform/soctherm-oc-event/hwmon/hwmon0"
            self._put(f"{counters}/name", "soctherm_oc\n")
            self._put(f"{counters}/oc{number + 1}_event_cnt", "0\n")
            self._link("sys/class/hwmon/hwmon0", counters)

    def _write_changing(self, load: float) -> None:
        """What follows the load and the machine, apart from the rails."""
        law = self.law
        milli_c = f"{round(self._heat.celsius * 1000 / 31.25) * 31.25:.0f}\n"
        for number in range(len(law.zones)):
            self._put(f"sys/class/thermal/thermal_zone{number}/temp", milli_c)
        if law.gpu_load_file:
            self._put(law.gpu_load_file, f"{round(load * 1000)}\n")
        fast = self._locked or load > 0.1
        self._put(f"{self._gpu_clock}/cur_freq", f"{law.gpu_hz[fast]}\n")
        for name in ("scaling_cur_freq", "cpuinfo_cur_freq"):
            self._put(f"sys/devices/system/cpu/cpufreq/policy0/{name}", f"{law.cpu_khz[fast]}\n")
        pwm = round(min(255.0, max(0.0, (self._heat.celsius - 35) * 6)))
        if not law.jetpack_4:
            self._put("sys/devices/platform/pwm-fan/hwmon/hwmon9/name", "pwmfan\n")
            self._put("sys/devices/platform/pwm-fan/hwmon/hwmon9/pwm1", f"{pwm}\n")
            self._link("sys/class/hwmon/hwmon9", "sys/devices/platform/pwm-fan/hwmon/hwmon9")
        else:
            self._put("sys/devices/pwm-fan/target_pwm", f"{pwm}\n")
        self._write_proc()

    def _write_proc(self) -> None:
        """Load and free memory as this machine's: the ticks are its own, shared out evenly among the board's cores."""
        law = self.law
        with suppress(NoReading, ValueError):
            busy, total = cpu_ticks()
            lines = [f"cpu  {busy} 0 0 {total - busy} 0 0 0 0 0 0"]
            lines += [f"cpu{n} {busy // law.cores} 0 0 {(total - busy) // law.cores} 0 0 0 0 0 0" for n in range(law.cores)]
            self._put("proc/stat", "\n".join(lines) + "\n")
        if text := text_or_none("/proc/loadavg"):
            self._put("proc/loadavg", text + "\n")
        with suppress(NoReading):
            here = meminfo()
            used = here["MemTotal"] - here.get("MemAvailable", here["MemFree"])
            free_kib = max(64 << 10, law.memory_kib - used // 1024) >> 10 << 10  # whole MiB
            self._put(
                "proc/meminfo",
                f"MemTotal:       {law.memory_kib} kB\nMemFree:        {free_kib // 2} kB\nMemAvailable:   {free_kib} kB\n"
                f"SwapTotal:      {law.memory_kib // 2} kB\nSwapFree:       {law.memory_kib // 2} kB\nNvMapMemUsed:   204800 kB\n",
            )

    def _show_rails(self) -> None:
        """Writes the rails whose sensor has a new value."""
        for label, sensor in self._sensors.items():
            since_ns = sensor.shown_since_ns(self._now_ns)
            if self._shown_ns.get(label) == since_ns:
                continue
            self._shown_ns[label] = since_ns
            rail, shown = sensor.rail, sensor.shown(self._now_ns)
            files, channel = self._chips[rail.chip, rail.address].files, rail.channel
            if rail.chip == "ina3221x":
                self._put(f"{files}/in_voltage{channel - 1}_input", f"{shown.voltage_mv}\n")
                self._put(f"{files}/in_current{channel - 1}_input", f"{shown.current_ma}\n")
                self._put(f"{files}/in_power{channel - 1}_input", f"{round(shown.power_mw)}\n")
            else:
                self._put(f"{files}/in{channel}_input", f"{shown.voltage_mv}\n")
                self._put(f"{files}/curr{channel}_input", f"{shown.current_ma}\n")
            if rail.chip == "ina238":
                self._put(f"{files}/power1_input", f"{round(shown.power_mw * 1000)}\n")

    def _write_truth(self, load: float) -> None:
        line = {"t_ns": self._now_ns, "load": load, "total_mj": self.energy_mj(), "rails_mj": self._energy_mj}
        os.write(self._truth, (json.dumps(line) + "\n").encode())

    # Faults

    def _close_ended(self) -> None:
        """Closes pipes one step after their fault ended: a reader that found one just before must still get an answer."""
        while self._ended:
            self._ended.pop().close()

    def _update_faults(self) -> None:
        self._close_ended()
        for active in [fault for fault in self._faults if fault.end_ns is not None and fault.end_ns <= self._now_ns]:
            self._end(active)
        try:
            found = (self.directory / FAULTS).stat()
        except OSError:
            return
        version = (found.st_mtime_ns, found.st_size, found.st_ino)
        if version == self._asked[0]:
            return
        try:
            asked = [Fault(**entry) for entry in json.loads((self.directory / FAULTS).read_bytes())]
        except (OSError, ValueError, TypeError, UserError) as error:
            self._log("refused", error=str(error))
            self._asked = version, self._asked[1]
            return
        known, self._asked = self._asked[1], (version, asked)
        for gone in (Counter(known) - Counter(asked)).elements():  # the same fault may be asked for twice
            for active in [active for active in self._faults if active.fault == gone][:1]:
                self._end(active)
        for fault in (Counter(asked) - Counter(known)).elements():
            try:
                self.inject(fault)
            except UserError as error:
                self._log("refused", fault, error=str(error))

    def _end(self, active: ActiveFault) -> None:
        self._faults.remove(active)
        for name in active.names:
            active.before_end(self.directory / name, self._texts[name])
            self._put(name, self._texts.pop(name))
        self._ended.append(active)
        self._log("end", active.fault)

    def _renumber(self, matching: list[str]) -> None:
        for place in self._chips.values():
            if not place.renumberable or not any(name.startswith(place.files + "/") for name in matching):
                continue
            old, number = place.files, place.number
            place.number += 20
            (self.directory / old).rename(self.directory / place.files)
            moved = {name: place.files + name.removeprefix(old) for name in self._texts if name.startswith(old + "/")}
            self._texts = {moved.get(name, name): text for name, text in self._texts.items()}
            for active in self._faults:
                active.names = [moved.get(name, name) for name in active.names]
            (self.directory / f"sys/class/hwmon/hwmon{number}").unlink()
            self._link_chip(place)

    def _log(self, event: str, fault: Fault | None = None, **more: Any) -> None:
        line = {"t_ns": self._now_ns, "event": event, **(asdict(fault) if fault else {}), **more}
        os.write(self._fault_log, (json.dumps(line) + "\n").encode())

    # Files

    def _put(self, name: str, text: str) -> None:
        """Sets what a file says: at once and whole, unless something is wrong with it at the moment."""
        if self._texts.get(name) == text:
            return
        self._texts[name] = text
        for active in self._faults:
            if name in active.names:
                if active.fault.kind == "jump":
                    active.apply(self.directory / name, text, self._replace)
                return
        self._replace(self.directory / name, lambda path: path.write_text(text))

    def _replace(self, path: Path, make: Callable[[Path], Any]) -> None:
        """Puts in the place of `path`, at once, what `make` makes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = self.directory / "simulator/new"
        new.unlink(missing_ok=True)
        make(new)
        _exchange(new, path)

    def _link(self, name: str, target: str) -> None:
        link = self.directory / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(self.directory / target, link.parent))

    def _link_chip(self, place: _Chip) -> None:
        if place.renumberable:
            self._link(f"sys/class/hwmon/hwmon{place.number}", place.files)
            self._link(f"{place.files}/device", place.device)
        else:
            self._link(f"sys/bus/iio/devices/iio:device{place.number - 1}", place.files)


class _Chip:
    """Where the files of a chip are."""

    def __init__(self, rail: RailLaw, number: int) -> None:
        self.number = number
        self.renumberable = rail.chip != "ina3221x"
        self.device = f"sys/devices/platform/bus@0/c240000.i2c/i2c-{rail.address[0]}/{rail.address}"

    @property
    def files(self) -> str:
        if self.renumberable:
            return f"{self.device}/hwmon/hwmon{self.number}"
        return f"{self.device}/iio:device{self.number - 1}"


def run(tree: Tree, *, seconds: float | None = None, clock_ns: Clock = time.perf_counter_ns) -> None:
    """Keeps a tree alive for some time, or until it is interrupted, with the load that this machine really has."""
    begin_ns, ticks = clock_ns(), _ticks()
    load = 0.0
    while seconds is None or clock_ns() - begin_ns < seconds * 1e9:
        time.sleep(max(0, tree.next_ns() - clock_ns()) / 1e9)
        now = _ticks()
        if now[1] > ticks[1]:
            load = min(1.0, max(0.0, (now[0] - ticks[0]) / (now[1] - ticks[1])))
            ticks = now
        tree.step(clock_ns(), load)


def _ticks() -> tuple[int, int]:
    try:
        return cpu_ticks()
    except (NoReading, ValueError):
        raise UserError("this machine does not tell how busy it is (/proc/stat): a simulated board cannot follow it") from None


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


def _open_append(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
