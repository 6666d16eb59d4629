from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_tprune.telemetry.host import HostSource
from edge_tprune.telemetry.machine import open_sources
from edge_tprune.telemetry.source import Reading, Source

SYSTEM = {
    "memory_available_bytes",
    "swap_used_bytes",
    "cpu_load_percent",
    "cpu_load_others_percent",
    "load_average_1min_tasks",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode("latin-1"))


def stat(user: int, idle: int, iowait: int = 0) -> dict[str, str]:
    return {"proc/stat": f"cpu  {user} 0 0 {idle} {iowait} 0 0 0 0 0\ncpu0 {user} 0 0 {idle} {iowait} 0 0 0 0 0\n"}


def covers(source: Source, reading: Reading) -> bool:
    """Every metric is a value or a gap, and none is both."""
    names = [metric.name for metric in source.metrics]
    return sorted(names) == sorted([*reading.values, *reading.gaps])


def test_reads_what_the_system_tells(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 3000 kB\nSwapTotal: 500 kB\nSwapFree: 450 kB\n"
            "HugePages: 0\nNvMapMemUsed: 700 kB\n",
            "proc/loadavg": "1.25 0.5 0.1 2/345 6789\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2000000\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
            "sys/devices/system/cpu/cpufreq/scaling_cur_freq": "not a core",
            **stat(user=100, idle=900),
        },
    )
    source = HostSource(tmp_path)
    write(tmp_path, stat(user=100 + 100_000, idle=900 + 200_000, iowait=100_000))
    reading = source.read()
    values = reading.values
    assert values["memory_available_bytes"] == 3000 * 1024
    assert values["swap_used_bytes"] == 50 * 1024
    assert values["nvmap_used_bytes"] == 700 * 1024
    assert values["load_average_1min_tasks"] == 1.25
    assert values["cpu_frequency_mhz"] == 1500
    assert values["cpu_throttle_count"] == 3
    assert values["cpu_load_percent"] == pytest.approx(25)
    assert values["cpu_load_others_percent"] == pytest.approx(25, abs=0.5)
    assert values["process_peak_rss_bytes"] >= values["process_rss_bytes"] * 0.9
    assert reading.gaps == {}
    assert reading.read_ns > 0
    again = source.read()
    assert again.gaps == dict.fromkeys(
        ("cpu_load_percent", "cpu_load_others_percent"), "no tick has passed since the last reading"
    )
    assert covers(source, again)


def test_missing_is_a_gap_and_never_zero(tmp_path: Path) -> None:
    source = HostSource(tmp_path)
    reading = source.read()
    assert set(reading.gaps) == SYSTEM
    assert reading.gaps["swap_used_bytes"] == "proc/meminfo is gone"
    assert reading.values["process_rss_bytes"]
    assert covers(source, reading)


@pytest.mark.parametrize("damage", ["", "\n", "nonsense", "cpu\n", "\xff\xfe"])
def test_damaged_files_are_gaps(tmp_path: Path, damage: str) -> None:
    write(tmp_path, {f"proc/{name}": damage for name in ("meminfo", "loadavg", "stat")})
    write(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": damage})
    (tmp_path / "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq").mkdir(parents=True)  # reading it fails with EISDIR
    source = HostSource(tmp_path)
    reading = source.read()
    assert set(reading.gaps) == SYSTEM | {"cpu_frequency_mhz"}
    assert all(reading.gaps.values())
    assert covers(source, reading)


def test_a_core_that_goes_offline_is_left_out_and_load_recovers(tmp_path: Path) -> None:
    clock = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"
    write(tmp_path, {clock.format(0): "1000000", clock.format(1): "3000000", **stat(0, 0)})
    source = HostSource(tmp_path)
    (tmp_path / clock.format(1)).unlink()
    write(tmp_path, {"proc/stat": ""})
    first = source.read()
    assert first.values["cpu_frequency_mhz"] == 1000
    assert first.gaps["cpu_load_percent"] == "proc/stat is empty"
    write(tmp_path, {"proc/stat": "\f1\n"})
    assert source.read().gaps["cpu_load_percent"].startswith("proc/stat does not start with")
    write(tmp_path, stat(1000, 1000))
    assert source.read().gaps["cpu_load_percent"] == "the reading before failed"
    write(tmp_path, stat(1000 + 10**6, 1000 + 10**6))
    assert source.read().values["cpu_load_percent"] == 50


def test_metrics_describe_exactly_what_is_read(tmp_path: Path) -> None:
    for source in (HostSource(), HostSource(tmp_path)):
        assert covers(source, source.read())
        assert all(metric.name.endswith(metric.unit.lower()) and metric.help for metric in source.metrics)


def test_the_measuring_process_may_be_another(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    source = HostSource(pid=child.pid)
    assert source.read().values["process_rss_bytes"] > 0
    child.communicate(b"\n")
    reading = source.read()
    assert reading.gaps["process_rss_bytes"] == "the process is gone"
    assert "memory_available_bytes" in reading.values


def test_open_sources_names_each_source_once(tmp_path: Path) -> None:
    for root in (Path("/"), tmp_path):
        sources = open_sources(root)
        assert len({source.name for source in sources}) == len(sources) > 0
        for source in sources:
            assert covers(source, source.read())
            source.close()
            source.close()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux only")
def test_own_work_is_load_but_not_the_others() -> None:
    source = HostSource()
    cores = os.cpu_count() or 1
    own, begin = time.process_time(), time.monotonic()
    while time.monotonic() - begin < 0.4:
        sum(range(1000))
    own_percent = 100 * (time.process_time() - own) / (time.monotonic() - begin) / cores
    values = source.read().values
    assert values["cpu_load_percent"] > 0.8 * own_percent
    assert values["cpu_load_percent"] - values["cpu_load_others_percent"] == pytest.approx(own_percent, abs=25)
