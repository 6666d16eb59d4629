from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edge_tprune.telemetry.state import PowerMode, parse_nvpmodel, read_power_mode, read_state

from .tree import write

NVPMODEL = {
    "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n",
    "etc/nvpmodel.conf": "# comment\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=2 >\n",
}


def test_the_power_mode_of_the_files(tmp_path: Path) -> None:
    assert read_power_mode(tmp_path) is None
    write(tmp_path, dict(NVPMODEL))
    assert read_power_mode(tmp_path) == PowerMode(2, "MAXN_SUPER")
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert read_power_mode(tmp_path) == PowerMode(2)
    write(tmp_path, {"etc/nvpmodel.conf": "# < POWER_MODEL ID=2 NAME=OLD >\n< POWER_MODEL ID=2 NAME=10W>\n"})
    assert read_power_mode(tmp_path) == PowerMode(2, "10W")  # Jetson Nano's file, with a comment before it
    for line in ("NAME=15 W LOW >", "NAME=15 W LOW > # note >", "NAME=15 W LOW # note"):
        write(tmp_path, {"etc/nvpmodel.conf": f"< POWER_MODEL ID=2 {line}\r\n"})
        assert read_power_mode(tmp_path) == PowerMode(2, "15 W LOW")
    write(tmp_path, {"var/lib/nvpmodel/status": "damaged"})
    assert read_power_mode(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", PowerMode(2, "MAXN_SUPER")),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W_6CORE\n2\n", PowerMode(2, "MODE_15W_6CORE")),
        ("NV Power Mode: 15W\n", PowerMode(None, "15W")),
        ("NV Power Mode: MODE 15W \r\n3\n", PowerMode(3, "MODE 15W")),
        ("NV Power Mode:\n3\n", None),
        ("", None),
        ("NVPM ERROR: failed to read PARAM", None),
    ],
)
def test_what_nvpmodel_prints(text: str, mode: PowerMode | None) -> None:
    assert parse_nvpmodel(text) == mode


def test_state_of_a_machine_that_tells_everything(tmp_path: Path) -> None:
    write(tmp_path, dict(NVPMODEL))
    cpu, gpu = "sys/devices/system/cpu/cpufreq/policy0/", "sys/class/devfreq/17000000.gpu/"
    chip = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/"
    write(
        tmp_path,
        {
            cpu + "affected_cpus": "0 1 2 3",
            cpu + "scaling_cur_freq": "1728000",
            cpu + "scaling_min_freq": "1728000",
            cpu + "scaling_max_freq": "1728000",
            cpu + "scaling_governor": "schedutil",
            gpu + "cur_freq": "306000000",
            gpu + "min_freq": "306000000",
            gpu + "max_freq": "1020000000",
            gpu + "governor": "nvhost_podgov",
            "proc/meminfo": "MemAvailable:   1000 kB\nSwapTotal:     500 kB\nSwapFree:      400 kB\n",
            "sys/block/zram0/size": "1",
            "sys/devices/platform/soctherm-oc-event/hwmon/hwmon0/oc1_event_cnt": "3",
            "sys/class/thermal/cooling_device0/type": "devfreq-gpu",
            "sys/class/thermal/cooling_device0/cur_state": "2",
            "sys/class/thermal/thermal_zone0/type": "tj-thermal",
            "sys/class/thermal/thermal_zone0/temp": "51000",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "9",
            chip + "name": "ina3221",
            chip + "in1_label": "VDD_IN",
            chip + "in1_input": "5000",
            chip + "curr1_input": "1000",
            chip + "curr1_crit_alarm": "1",
            chip + "in2_label": "VDD_SOC",
            "run/jtop.sock": "",
        },
    )
    found = asdict(read_state(tmp_path))
    json.dumps(found, allow_nan=False)
    locked = found["clocks"]["cpu"][0]
    assert (locked["name"], locked["mhz"], locked["locked"]) == ("0 1 2 3", 1728, True)
    assert found["clocks"]["gpu"] == {
        "name": "17000000.gpu",
        "mhz": 306,
        "min_mhz": 306,
        "max_mhz": 1020,
        "governor": "nvhost_podgov",
        "locked": False,
    }
    assert found["swap"] == {"total_bytes": 512000, "used_bytes": 102400, "zram_devices": 1}
    assert found["over_current_counts"] == {"1": 3}
    assert found["current_alarms"] == {"VDD_IN critical": True}
    assert found["throttle_counts"] == {"cpu0": 9}
    assert found["cooling_states"] == {"devfreq-gpu (cooling_device0)": 2}
    assert found["temperatures_c"] == {"tj (thermal_zone0)": 51}
    assert found["rails"]["VDD_IN"]["power_mw"] == 5000
    assert found["rails"]["VDD_SOC"] == {
        "power_mw": None,
        "interval_s": None,
        "step_mw": None,
        "chip": "ina3221 at 1-0040",
        "gap": "hwmon1/in2_input is gone",
    }
    assert found["memory_available_bytes"] == 1024000
    assert found["jtop"] == {"socket": "/run/jtop.sock"}


def test_numbers_without_end_are_not_known(tmp_path: Path) -> None:
    digits = "1" * 5000
    write(
        tmp_path,
        {
            "var/lib/nvpmodel/status": f"pmode:{digits}",
            "etc/nvpmodel.conf": f"< POWER_MODEL ID={digits} NAME=X >",
            "proc/meminfo": f"MemAvailable: {digits} kB\nSwapTotal: 5 kB\n",
        },
    )
    state = read_state(tmp_path)
    assert (state.power_mode, state.memory_available_bytes, state.swap.total_bytes) == (None, None, 5 * 1024)
    assert parse_nvpmodel(f"NV Power Mode: X\n{digits}\n") == PowerMode(None, "X")


def test_state_of_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert asdict(read_state(tmp_path)) == {
        "power_mode": None,
        "clocks": {"gpu": None, "cpu": (), "emc": {"mhz": None}},
        "swap": {"total_bytes": None, "used_bytes": None, "zram_devices": 0},
        "over_current_counts": {},
        "current_alarms": {},
        "throttle_counts": {},
        "cooling_states": {},
        "temperatures_c": {},
        "rails": {},
        "memory_available_bytes": None,
        "jtop": {"socket": None},
    }
