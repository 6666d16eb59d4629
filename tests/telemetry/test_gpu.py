from __future__ import annotations

from pathlib import Path

import pytest

from edge_tprune.telemetry.gpu import emc_mhz, gpu_devfreq, gpu_source

from .tree import covers, refuse, write

EMC = "sys/kernel/debug/bpmp/debug/clk/emc/rate"


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("17000000.ga10b", "sys/devices/platform/17000000.ga10b/load"),
        ("17000000.gpu", "sys/devices/platform/bus@0/17000000.gpu/load"),
        ("17000000.gv11b", "sys/devices/gpu.0/load"),
        ("57000000.gpu", "sys/devices/gpu.0/load"),
        ("17000000.gpu", "sys/class/devfreq/17000000.gpu/device/load"),
    ],
)
def test_load_and_clock(tmp_path: Path, name: str, load: str) -> None:
    write(
        tmp_path,
        {
            load: "342\n",
            f"sys/class/devfreq/{name}/cur_freq": "624750000\n",
            "sys/class/devfreq/15340000.vic/cur_freq": "1\n",
            EMC: "2133000000\n",
        },
    )
    source = gpu_source(tmp_path)
    assert source.read().values == {"gpu_load_percent": 34.2, "gpu_frequency_mhz": 624.75, "emc_frequency_mhz": 2133}
    assert gpu_devfreq(tmp_path) == tmp_path / "sys/class/devfreq" / name
    assert emc_mhz(tmp_path) == 2133


def test_the_memory_clock_of_jetpack_4(tmp_path: Path) -> None:
    write(tmp_path, {"sys/kernel/debug/clk/emc/clk_rate": "1600000000\n"})
    assert gpu_source(tmp_path).read().values == {"emc_frequency_mhz": 1600}


def test_thor_has_no_load_and_zero_hertz_is_off(tmp_path: Path) -> None:
    write(tmp_path, {"sys/class/devfreq/gpu-gpc-0/cur_freq": "0\n", "sys/class/devfreq/gpu-nvd-0/cur_freq": "5\n"})
    source = gpu_source(tmp_path)
    assert source.read().gaps == {"gpu_frequency_mhz": "off"}
    assert source.read().values == {}


def test_implausible_values_and_refusals_are_gaps(tmp_path: Path) -> None:
    write(tmp_path, {"sys/devices/gpu.0/load": "5000", "sys/class/devfreq/57000000.gpu/cur_freq": "-7"})
    source = gpu_source(tmp_path)
    reading = source.read()
    assert reading.gaps == {
        "gpu_load_percent": "implausible: a load of 5000 permille",
        "gpu_frequency_mhz": "implausible: a clock of -7 Hz",
    }
    refuse(tmp_path, "sys/devices/gpu.0/load")
    (tmp_path / "sys/class/devfreq/57000000.gpu/cur_freq").unlink()
    reading = source.read()
    assert reading.gaps == {"gpu_load_percent": "EIO from gpu.0/load", "gpu_frequency_mhz": "57000000.gpu/cur_freq is gone"}
    assert covers(source, reading)


def test_a_machine_without_such_a_gpu_has_no_metrics(tmp_path: Path) -> None:
    assert gpu_source(tmp_path).metrics == ()
    assert gpu_devfreq(tmp_path) is None
    assert emc_mhz(tmp_path) is None
