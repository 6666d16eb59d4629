from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edge_tprune.telemetry.host import HostSource
from edge_tprune.telemetry.source import NullSource, Source

SYSTEM = ("memory_available_bytes", "swap_used_bytes", "cpu_load_percent", "load_average_1min_tasks", "cpu_frequency_mhz")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode("latin-1"))


def stat(user: int, idle: int, iowait: int = 0) -> dict[str, str]:
    return {"proc/stat": f"cpu  {user} 0 0 {idle} {iowait} 0 0 0 0 0\ncpu0 {user} 0 0 {idle} {iowait} 0 0 0 0 0\n"}


def test_reads_what_the_system_tells(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 3000 kB\nSwapTotal: 500 kB\nSwapFree: 450 kB\nHugePages: 0\n",
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
    values = source.read()
    assert values["memory_available_bytes"] == 3000 * 1024
    assert values["swap_used_bytes"] == 50 * 1024
    assert values["load_average_1min_tasks"] == 1.25
    assert values["cpu_frequency_mhz"] == 1500
    assert values["cpu_throttle_count"] == 3
    assert values["cpu_load_percent"] == pytest.approx(25)
    assert values["cpu_load_others_percent"] == pytest.approx(25, abs=0.5)
    assert source.read()["cpu_load_percent"] is None  # no tick has passed since


def test_missing_is_none_and_never_zero(tmp_path: Path) -> None:
    values = HostSource(tmp_path).read()
    assert {name: values[name] for name in SYSTEM} == dict.fromkeys(SYSTEM)
    assert values["process_rss_bytes"]


@pytest.mark.parametrize("damage", ["", "\n", "nonsense", "cpu\n", "\xff\xfe"])
def test_damaged_files_read_as_missing(tmp_path: Path, damage: str) -> None:
    write(tmp_path, {f"proc/{name}": damage for name in ("meminfo", "loadavg", "stat")})
    write(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": damage})
    (tmp_path / "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq").mkdir(parents=True)  # reading it fails with EISDIR
    values = HostSource(tmp_path).read()
    assert {name: values[name] for name in SYSTEM} == dict.fromkeys(SYSTEM)


def test_metrics_describe_exactly_what_is_read(tmp_path: Path) -> None:
    for source in (HostSource(), HostSource(tmp_path), NullSource()):
        typed: Source = source
        assert [metric.name for metric in typed.metrics] == list(typed.read())
        assert all(metric.name.endswith(metric.unit.lower()) and metric.help for metric in typed.metrics)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux only")
def test_own_work_is_load_but_not_the_others() -> None:
    source = HostSource()
    cores = os.cpu_count() or 1
    own, begin = time.process_time(), time.monotonic()
    while time.monotonic() - begin < 0.4:
        sum(range(1000))
    own_percent = 100 * (time.process_time() - own) / (time.monotonic() - begin) / cores
    values = source.read()
    load, others = values["cpu_load_percent"], values["cpu_load_others_percent"]
    assert load is not None
    assert others is not None
    assert load > 0.8 * own_percent
    assert load - others == pytest.approx(own_percent, abs=25)
