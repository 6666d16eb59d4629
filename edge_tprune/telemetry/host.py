"""What every Linux reports without privileges: memory, CPU load, clocks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import Clock, NoReading, Sensor, SensorSource

RSS = SensorMetric("process_rss_bytes", "bytes", "lower", "max", "resident memory of the measuring process")
PEAK = SensorMetric(
    "process_peak_rss_bytes", "bytes", "lower", "max", "most resident memory the measuring process ever had (VmHWM)"
)
AVAILABLE = SensorMetric("memory_available_bytes", "bytes", "higher", "min", "memory the system could still give to programs")
SWAP = SensorMetric("swap_used_bytes", "bytes", "lower", "max", "swap space in use, by everything")
NVMAP = SensorMetric("nvmap_used_bytes", "bytes", "lower", "max", "memory that the GPU and its neighbours hold (NvMapMemUsed)")
LOAD = SensorMetric("cpu_load_percent", "percent", None, "mean", "busy share of all CPU cores since the last reading")
OTHER_LOAD = SensorMetric(
    "cpu_load_others_percent", "percent", "lower", "mean", "the part of the CPU load that this measurement did not cause"
)
TASKS = SensorMetric(
    "load_average_1min_tasks", "tasks", None, "mean", "tasks running or waiting, averaged over a minute", 5.0, 0.01
)
CLOCK = SensorMetric("cpu_frequency_mhz", "MHz", None, "mean", "CPU clock, mean over the cores")
THROTTLES = SensorMetric(
    "cpu_throttle_count", "count", "lower", "increase", "times that any core was slowed down for heat since boot", step=1.0
)


class HostSource(SensorSource):
    """Memory, load and clocks of the machine, and the memory of the measuring process.

    Args:
        root: the directory that holds the system's `proc` and `sys`.
        clock_ns: stamps the readings.
        pid: the measuring process; by default this one. Its memory and CPU time are those of the running system, even with
            another `root`. The CPU time of the process that reads counts as the measurement's too.
    """

    def __init__(self, root: Path = Path("/"), clock_ns: Clock = time.perf_counter_ns, pid: int | None = None) -> None:
        sensors: list[Sensor] = [_Process(pid), _Memory(root), _CpuLoad(root, pid), _Tasks(root)]
        cores = root / "sys/devices/system/cpu"
        sensors += [
            _Cores(metric, files, combine)
            for metric, name, combine in (
                (CLOCK, "cpufreq/scaling_cur_freq", lambda kilohertz: sum(kilohertz) / len(kilohertz) / 1000),
                (THROTTLES, "thermal_throttle/core_throttle_count", sum),
            )
            if (files := sorted(str(file) for file in cores.glob(f"cpu[0-9]*/{name}")))
        ]
        super().__init__("host", sensors, clock_ns)


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes, by its own names; the file says kB and means KiB.

    Raises:
        NoReading: there is none.
    """
    found = re.findall(r"^(\w+): +(\d{1,15}) kB$", sysfs.read_text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kibibytes) * 1024 for name, kibibytes in found}


def cpu_ticks(root: Path = Path("/")) -> tuple[int, int]:
    """(busy, all) ticks of all cores since boot. Waiting for a disk is idle; time stolen by a hypervisor is busy.

    Raises:
        NoReading: there are none.
        ValueError: they are damaged.
    """
    line = sysfs.read_text(root / "proc/stat").partition("\n")[0].split()
    if len(line) < 6 or line[0] != "cpu":
        raise NoReading("proc/stat does not start with the sum of all cores")
    ticks = [int(word) for word in line[1:9]]  # guest time, after these, is already in user time
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


class _Process:
    metrics = (RSS, PEAK)

    def __init__(self, pid: int | None) -> None:
        self._process = _open_process(pid)

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        if self._process is None:
            raise NoReading("the process is gone")
        try:
            values[RSS.name] = float(self._process.memory_info().rss)
        except psutil.Error:
            raise NoReading("the process is gone") from None
        for line in sysfs.read_text(f"/proc/{self._process.pid}/status").splitlines():
            if line.startswith("VmHWM:"):
                values[PEAK.name] = int(line.split()[1]) * 1024.0


class _Memory:
    def __init__(self, root: Path) -> None:
        self._root = root
        nvmap = "NvMapMemUsed:" in (sysfs.text_or_none(root / "proc/meminfo") or "")
        self.metrics = (AVAILABLE, SWAP, NVMAP) if nvmap else (AVAILABLE, SWAP)

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        memory = meminfo(self._root)
        if "MemAvailable" in memory:
            values[AVAILABLE.name] = float(memory["MemAvailable"])
        if "SwapTotal" in memory and "SwapFree" in memory:
            values[SWAP.name] = float(memory["SwapTotal"] - memory["SwapFree"])
        if "NvMapMemUsed" in memory and NVMAP in self.metrics:
            values[NVMAP.name] = float(memory["NvMapMemUsed"])


class _CpuLoad:
    """Busy shares since the last reading, from the kernel's ticks."""

    metrics = (LOAD, OTHER_LOAD)

    def __init__(self, root: Path, pid: int | None) -> None:
        self._root = root
        self._process = _open_process(pid) if pid is not None and pid != os.getpid() else None
        try:
            self._before: tuple[int, int, float] | None = self._now()
        except (NoReading, ValueError):
            self._before = None

    def _now(self) -> tuple[int, int, float]:
        """(busy ticks, all ticks, own CPU seconds)."""
        return *cpu_ticks(self._root), self._own_s()

    def _own_s(self) -> float:
        """CPU seconds that the measurement and the children it waited for have used."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        if self._process is not None:
            try:
                other = self._process.cpu_times()
            except psutil.Error:
                raise NoReading("the process is gone") from None
            own += other.user + other.system + other.children_user + other.children_system
        return own

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        before, self._before = self._before, None
        now = self._before = self._now()
        if before is None:
            raise NoReading("the reading before failed")
        elapsed = now[1] - before[1]
        if elapsed <= 0:
            self._before = before
            raise NoReading("no tick has passed since the last reading")
        load = min(100.0, max(0.0, 100.0 * (now[0] - before[0]) / elapsed))  # the kernel's idle counters may run backwards
        own = 100.0 * (now[2] - before[2]) * os.sysconf("SC_CLK_TCK") / elapsed
        values[LOAD.name] = load
        values[OTHER_LOAD.name] = max(0.0, load - own)


class _Tasks:
    metrics = (TASKS,)

    def __init__(self, root: Path) -> None:
        self._file = str(root / "proc/loadavg")

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        values[TASKS.name] = float(sysfs.read_text(self._file).split()[0])


class _Cores:
    """One number made of a file that each core has; cores that are offline refuse and are left out."""

    def __init__(self, metric: SensorMetric, files: list[str], combine: Callable[[list[float]], float]) -> None:
        self.metrics = (metric,)
        self._files = files
        self._combine = combine

    def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
        numbers = [number for file in self._files if (number := sysfs.number_or_none(file)) is not None]
        if not numbers:
            raise NoReading("no core reports it")
        values[self.metrics[0].name] = self._combine(numbers)


def _open_process(pid: int | None) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
