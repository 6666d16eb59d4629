"""What any Linux tells without privileges: memory, CPU load, clocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from edge_tprune.telemetry.metric import Metric

_T = TypeVar("_T")

_METRICS = (
    Metric("process_rss_bytes", "bytes", "lower", "max", "resident memory of the measuring process"),
    Metric("memory_available_bytes", "bytes", "higher", "min", "memory the system could still give to programs"),
    Metric("swap_used_bytes", "bytes", "lower", "max", "swap space in use, by everything"),
    Metric("cpu_load_percent", "percent", None, "mean", "busy share of all CPU cores since the last reading"),
    Metric("cpu_load_others_percent", "percent", "lower", "mean", "the part of the CPU load that this process did not cause"),
    Metric("load_average_1min_tasks", "tasks", None, "mean", "tasks running or waiting, averaged over a minute"),
    Metric("cpu_frequency_mhz", "MHz", None, "mean", "CPU clock, mean over the cores"),
    Metric("cpu_throttle_count", "count", "lower", "increase", "times that any core was slowed down for heat since boot"),
)


class HostSource:
    """Memory, load and clocks of the machine, and the resident memory of this process."""

    name = "host"
    metrics: tuple[Metric, ...] = _METRICS

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._process = psutil.Process()
        self._ticks = _try(self._cpu_ticks)
        self._own_s = _own_cpu_s()

    def read(self) -> dict[str, float | None]:
        """One value per metric; None where this system does not tell."""
        memory = _try(self._meminfo) or {}
        load, others = self._cpu_load()
        frequencies = self._core_numbers("cpufreq/scaling_cur_freq")  # kHz
        throttles = self._core_numbers("thermal_throttle/core_throttle_count")
        swap_total, swap_free = memory.get("SwapTotal"), memory.get("SwapFree")
        return {
            "process_rss_bytes": _try(lambda: float(self._process.memory_info().rss)),
            "memory_available_bytes": memory.get("MemAvailable"),
            "swap_used_bytes": None if swap_total is None or swap_free is None else swap_total - swap_free,
            "cpu_load_percent": load,
            "cpu_load_others_percent": others,
            "load_average_1min_tasks": _try(lambda: float((self._root / "proc/loadavg").read_text().split()[0])),
            "cpu_frequency_mhz": sum(frequencies) / len(frequencies) / 1000 if frequencies else None,
            "cpu_throttle_count": float(sum(throttles)) if throttles else None,
        }

    def _meminfo(self) -> dict[str, float]:
        """/proc/meminfo in bytes; the file says kB and means KiB."""
        lines = (line.split() for line in (self._root / "proc/meminfo").read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) * 1024.0 for words in lines if len(words) == 3 and words[2] == "kB"}

    def _cpu_ticks(self) -> tuple[int, int]:
        """(busy, all) ticks of all cores since boot. Waiting for a disk is idle; time stolen by a hypervisor is busy."""
        line = (self._root / "proc/stat").read_text().splitlines()[0].split()
        if line[0] != "cpu":
            raise ValueError("proc/stat does not start with the sum of all cores")
        ticks = [int(word) for word in line[1:9]]  # guest time, after these, is already in user time
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    def _cpu_load(self) -> tuple[float | None, float | None]:
        """Percent of all cores that was busy since the last call, and the part of it that is not this process."""
        before, own_before = self._ticks, self._own_s
        now, own_now = self._ticks, self._own_s = _try(self._cpu_ticks), _own_cpu_s()
        if before is None or now is None or now[1] <= before[1]:
            return None, None
        elapsed = now[1] - before[1]
        load = min(100.0, max(0.0, 100.0 * (now[0] - before[0]) / elapsed))  # the kernel's idle counters may run backwards
        own = 100.0 * (own_now - own_before) * os.sysconf("SC_CLK_TCK") / elapsed
        return load, max(0.0, load - own)

    def _core_numbers(self, name: str) -> list[int]:
        """The number in file `name` of every core that has it; offline cores refuse the read and are left out."""
        files = (self._root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/{name}")
        return [number for file in files if (number := _number(file)) is not None]


def _own_cpu_s() -> float:
    """CPU seconds that this process and the children it waited for have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _number(file: Path) -> int | None:
    return _try(lambda: int(file.read_bytes()))


def _try(read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
