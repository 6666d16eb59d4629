from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.telemetry.counter import Counter
from edge_tprune.telemetry.rapl import rapl_source
from edge_tprune.telemetry.source import NoReading

from .tree import covers, refuse, write

POWERCAP = "sys/class/powercap/"


def domain(root: Path, name: str, label: str, energy_uj: int, range_uj: int = 262143328850) -> None:
    write(root / POWERCAP / name, {"name": label, "energy_uj": f"{energy_uj}\n", "max_energy_range_uj": f"{range_uj}\n"})


@given(st.lists(st.integers(0, 999), min_size=1, max_size=30), st.integers(0, 999))
def test_a_wrapping_counter_grows_by_what_was_added(increments: list[int], start: int) -> None:
    counter = Counter(wraps_at=1000)
    first = counter.total(start)
    true = start
    for increment in increments:
        true += increment
        assert counter.total(true % 1000) - first == true - start


def test_a_counter_that_is_reset_says_so_once_and_goes_on() -> None:
    counter = Counter()
    assert counter.total(100) == 100
    with pytest.raises(NoReading, match="reset: 100, then 20"):
        counter.total(20)
    assert counter.total(25) == 125


def test_packages_and_their_memory_add_up(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 900_000)
    domain(tmp_path, "intel-rapl:0:1", "dram", 300_000)
    domain(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    domain(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    source = rapl_source(tmp_path)
    assert source.read().values == {
        "package_0_energy_mj": 1000,
        "package_0_dram_energy_mj": 300,
        "package_1_energy_mj": 2000,
        "total_energy_mj": 3300,
    }
    assert "package-0 + package-0 dram + package-1" in source.metrics[-1].help
    assert {metric.aggregation for metric in source.metrics} == {"increase"}


def test_a_wrap_is_no_jump_and_what_is_forbidden_is_a_gap(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 9_900_000, range_uj=10_000_000)
    source = rapl_source(tmp_path)
    assert source.read().values["total_energy_mj"] == 9900
    domain(tmp_path, "intel-rapl:0", "package-0", 100_000, range_uj=10_000_000)
    assert source.read().values["total_energy_mj"] == 10100
    refuse(tmp_path / POWERCAP / "intel-rapl:0", "energy_uj")
    reading = source.read()
    assert reading.gaps == {
        "package_0_energy_mj": "EIO from intel-rapl:0/energy_uj",
        "total_energy_mj": "no package_0_energy_mj: EIO from intel-rapl:0/energy_uj",
    }
    assert covers(source, reading)


def test_without_rapl_there_are_no_metrics(tmp_path: Path) -> None:
    assert rapl_source(tmp_path).metrics == ()
