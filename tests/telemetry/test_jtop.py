from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.telemetry import boards
from edge_tprune.telemetry.jtop import jtop_source, parse, service_socket
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.program import ProgramSource
from edge_tprune.telemetry.source import SensorSource

#: What jtop 7 says of an Orin Nano, shortened.
UPDATE: dict[str, Any] = {
    "power": {
        "rail": {
            "VDD_CPU_GPU_CV": {
                "volt": 5040,
                "curr": 376,
                "power": 1895,
                "avg": 1900,
                "warn": 32760,
                "crit": 32760,
                "online": True,
            },
            "VDD_SOC": {"volt": 5040, "curr": 320, "power": 1612, "avg": 1600, "warn": 32760, "crit": 32760, "online": True},
        },
        "tot": {
            "volt": 5040,
            "curr": 1288,
            "power": 6491,
            "avg": 6500,
            "warn": 5960,
            "crit": 5960,
            "online": True,
            "name": "VDD_IN",
        },
    },
    "gpu": {
        "gpu": {
            "type": "integrated",
            "status": {"railgate": False, "tpc_pg_mask": False, "3d_scaling": True, "load": 34.2},
            "freq": {"governor": "nvhost_podgov", "cur": 624750, "min": 306000, "max": 1020000, "GPC": [624734, 624734]},
        }
    },
    "memory": {
        "RAM": {"tot": 7802880, "used": 3012345, "free": 1, "buffers": 1, "cached": 1, "shared": 1, "lfb": 4},
        "SWAP": {"tot": 3901440, "used": 1024, "cached": 0, "table": {}},
        "EMC": {"cur": 2133000, "max": 2133000, "min": 204000, "val": 12, "online": True},
    },
    "temperature": {
        "cpu": {"temp": 48.5, "online": True},
        "cv0": {"temp": -256, "online": False},
        "tj": {"temp": 49.125, "online": True},
    },
}


def test_an_update_of_jtop_7() -> None:
    report = parse(json.dumps(UPDATE))
    assert report.values == {
        "vdd_cpu_gpu_cv_power_mw": 1895,
        "vdd_soc_power_mw": 1612,
        "vdd_in_power_mw": 6491,
        "gpu_load_percent": 34.2,
        "gpu_frequency_mhz": 624.75,
        "memory_used_bytes": 3012345 * 1024,
        "swap_used_bytes": 1024 * 1024,
        "emc_load_percent": 12,
        "emc_frequency_mhz": 2133,
        "cpu_temp_c": 48.5,
        "tj_temp_c": 49.125,
    }
    assert report.gaps == {"cv0_temp_c": "offline"}
    assert set(report.rails) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}


def test_the_sum_that_jtop_makes_is_no_rail() -> None:
    power = {"rail": {"GPU": {"power": 100}, "CPU": {"power": 50, "online": True}}, "tot": {"power": 150, "avg": 150}}
    report = parse(json.dumps({"power": power}))
    assert report.values == {"gpu_power_mw": 100, "cpu_power_mw": 50}


def test_an_update_of_jtop_3() -> None:
    power = [{"cur": 5000, "avg": 5100}, {"GPU": {"cur": 900, "avg": 901}, "CPU": {"cur": 700, "avg": 800}}]
    report = parse(
        json.dumps({"power": power, "gpu": {"gpu": {"val": 12, "frq": 306000}}, "temperature": {"CPU": 41.5, "PMIC": 100.0}})
    )
    assert report.values == {
        "gpu_power_mw": 900,
        "cpu_power_mw": 700,
        "gpu_load_percent": 12,
        "gpu_frequency_mhz": 306,
        "cpu_temp_c": 41.5,
        "pmic_temp_c": 100,
    }


def test_a_part_that_failed_takes_nothing_else_along() -> None:
    report = parse(json.dumps({**UPDATE, "gpu": {"error": "KeyError('load')"}, "memory": None}))
    assert "gpu_load_percent" not in report.metrics
    assert report.values["vdd_in_power_mw"] == 6491


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["rail", "tot", "power", "cur", "gpu", "status", "load", "freq", "RAM", "EMC", "used", "temp", "name", "VDD_IN"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.fixed_dictionaries(dict.fromkeys(UPDATE, anything)) | anything)
def test_no_update_raises(update: Any) -> None:
    for line in (json.dumps(update), json.dumps(update)[:-1]):
        report = parse(line)
        assert set(report.metrics) == {*report.values, *report.gaps}
        assert all(math.isfinite(value) for value in report.values.values())


def test_the_source_talks_to_a_process_of_its_own(tmp_path: Path) -> None:
    code = f"import time; print({json.dumps(UPDATE)!r}, flush=True); time.sleep(3600)"
    source = ProgramSource(
        "jtop", [sys.executable, "-c", code], parse, boards.board("orin-nano"), interval_s=3600, first_line_s=60
    )
    reading = source.read()
    assert reading.values["total_power_mw"] == 6491
    assert reading.gaps == {"cv0_temp_c": "offline"}
    source.close()


def test_an_interruption_while_a_program_begins_ends_it(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    number = tmp_path / "number"
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            words = ["sh", "-c", f"echo $$ > {number}; exec sleep 60"]
            ProgramSource("jtop", words, parse, boards.board("orin-nano"), interval_s=1, first_line_s=30)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


@pytest.mark.parametrize("value", ["12", None, 10**400, float("nan"), [1.0]])
def test_what_a_sensor_of_anothers_gives_that_is_no_number_is_a_gap(value: Any) -> None:
    class Odd:
        metrics = (SensorMetric("x_power_mw", "mW", help="x"),)

        def read(self, values: dict[str, float], gaps: dict[str, str]) -> None:
            values["x_power_mw"] = value

    reading = SensorSource("odd", [Odd()]).read()
    assert reading.values == {}
    assert reading.gaps["x_power_mw"].startswith("implausible: ")


def test_without_the_package_or_the_service_there_is_no_source(tmp_path: Path) -> None:
    assert service_socket(tmp_path) is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run/jtop.sock").touch()
    assert service_socket(tmp_path) == "/run/jtop.sock"
    if service_socket() is None or importlib.util.find_spec("jtop") is None:
        assert jtop_source(boards.board("orin-nano")) is None


@pytest.mark.board
def test_the_real_service_of_jetson_stats() -> None:
    """Needs jetson-stats and its running service: on a board, or in an arm64 root under emulation, where the service runs with
    JTOP_TESTING=True once the group jtop exists, `/fake_sys` is the `sys` of a simulated board, and `/fake_sys/stat` is a copy of
    its `proc/stat`: python3 -c "from jtop.service import JtopServer; JtopServer(force=True).start()"
    """
    if importlib.util.find_spec("jtop") is None:
        pytest.skip("jetson-stats is not installed")
    if service_socket() is None:
        pytest.skip("the service of jetson-stats does not run (no /run/jtop.sock)")
    started = multiprocessing.get_start_method(allow_none=True)
    source = jtop_source(boards.identify(), first_line_s=120)
    assert source is not None
    try:
        assert source.metrics, "the service gave no update within two minutes"
        rails = [metric.name for metric in source.metrics if metric.name.endswith("_power_mw")]
        assert rails
        reading = source.read()
        assert all(0 < reading.values[name] < 200_000 for name in rails)
        seen = {reading.t_ns}
        for _ in range(2):
            assert source.wait(120), "no new update came within two minutes"
            reading = source.read()
            assert reading.values
            seen.add(reading.t_ns)
        assert len(seen) == 3
    finally:
        source.close()
    assert "jtop" not in sys.modules
    assert multiprocessing.get_start_method(allow_none=True) == started
