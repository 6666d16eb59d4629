from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_tprune.telemetry.thermal import events_source, thermal_source, zone_name

from .tree import covers, refuse, write

ZONE = "sys/class/thermal/thermal_zone{}/"


def zone(root: Path, number: int, kind: str, milli_c: str) -> None:
    write(root, {ZONE.format(number) + "type": f"{kind}\n", ZONE.format(number) + "temp": f"{milli_c}\n"})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpu-thermal", "gpu"),
        ("GPU-therm", "gpu"),
        ("PMIC-Die", "pmic_die"),
        ("x86_pkg_temp", "x86_pkg_temp"),
        ("thermal-fan-est", "thermal_fan_est"),
        ("tj-thermal", "tj"),
    ],
)
def test_zone_names(kind: str, name: str) -> None:
    assert zone_name(kind) == name


def test_zones_are_values_or_reasons(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "48531")
    zone(tmp_path, 1, "gpu-thermal", "0")
    zone(tmp_path, 2, "cv0-thermal", "-256000")
    zone(tmp_path, 3, "soc0-thermal", "not a number")
    zone(tmp_path, 4, "tj-thermal", "999000")
    zone(tmp_path, 10, "tj-thermal", "50000")
    zone(tmp_path, 11, "iwlwifi", "-5000")
    refuse(tmp_path, ZONE.format(5) + "temp")
    gated = tmp_path / (ZONE.format(1) + "temp")
    gated.unlink()
    os.mkfifo(gated)
    handle = os.open(gated, os.O_RDWR | os.O_NONBLOCK)  # a power-gated zone: EAGAIN
    source = thermal_source(tmp_path)
    reading = source.read()
    os.close(handle)
    assert reading.values == {"cpu_temp_c": 48.531, "tj_10_temp_c": 50, "iwlwifi_temp_c": -5}
    assert reading.gaps == {
        "gpu_temp_c": "EAGAIN from thermal_zone1/temp",
        "cv0_temp_c": "offline",
        "soc0_temp_c": "no number in thermal_zone3/temp: 'not a number'",
        "tj_temp_c": "implausible: 999 C",
        "thermal_zone5_temp_c": "EIO from thermal_zone5/temp",
    }
    assert covers(source, reading)


def test_what_is_slowed_down_is_counted_without_the_fan(tmp_path: Path) -> None:
    device = "sys/class/thermal/cooling_device{}/"
    for number, (kind, state) in enumerate(
        (("pwm-fan", "3"), ("cpufreq-cpu0", "2"), ("devfreq-gpu", "0"), ("intel_powerclamp", "-1"))
    ):
        write(tmp_path, {device.format(number) + "type": kind, device.format(number) + "cur_state": state})
    source = thermal_source(tmp_path)
    assert source.read().values == {"throttling_devices_count": 1}
    (tmp_path / (device.format(1) + "cur_state")).unlink()
    assert source.read().values == {"throttling_devices_count": 0}
    for number in (2, 3):
        refuse(tmp_path, device.format(number) + "cur_state")
    assert source.read().gaps == {"throttling_devices_count": "no cooling device reports its state"}


@pytest.mark.parametrize("jetpack_4", [True, False])
def test_fans(tmp_path: Path, jetpack_4: bool) -> None:
    if jetpack_4:
        write(tmp_path / "sys/devices/pwm-fan", {"target_pwm": "255", "rpm_measured": "3000"})
    else:
        write(tmp_path / "sys/class/hwmon/hwmon0", {"name": "pwm_tach", "rpm": "3000"})
        write(tmp_path / "sys/class/hwmon/hwmon1", {"name": "pwmfan", "pwm1": "255"})
        write(tmp_path / "sys/class/hwmon/hwmon2", {"name": "nct6775", "fan1_input": "77", "pwm1": "0"})
    assert thermal_source(tmp_path).read().values == pytest.approx({"fan_percent": 100, "fan_speed_rpm": 3000})


def test_over_current_counters_and_alarms(tmp_path: Path) -> None:
    counters = "sys/devices/platform/soctherm-oc-event/hwmon/hwmon1"
    write(tmp_path / counters, {"oc1_event_cnt": "0", "oc2_event_cnt": "4", "oc3_event_cnt": "-1"})
    chip = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon2"
    write(
        chip,
        {
            "name": "ina3221",
            "in1_label": "VDD_IN",
            "in2_label": "VDD_SOC",
            "curr1_max_alarm": "0",
            "curr1_crit_alarm": "1",
            "curr2_max_alarm": "1",
        },
    )
    source = events_source(tmp_path)
    reading = source.read()
    assert reading.values == {"over_current_1_count": 0, "over_current_2_count": 4, "current_alarms_count": 2}
    assert reading.gaps == {"over_current_3_count": "implausible: -1"}
    assert [metric.aggregation for metric in source.metrics] == ["increase", "increase", "increase", "max"]
    refuse(chip, "curr2_max_alarm")
    assert source.read().gaps["current_alarms_count"] == "EIO from hwmon2/curr2_max_alarm"


def test_a_machine_without_any_has_no_metrics(tmp_path: Path) -> None:
    assert thermal_source(tmp_path).metrics == events_source(tmp_path).metrics == ()
