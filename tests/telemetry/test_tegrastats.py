from __future__ import annotations

import math
import os
import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.simulator.virtual import VirtualClock
from edge_tprune.telemetry import boards
from edge_tprune.telemetry.program import Report
from edge_tprune.telemetry.tegrastats import parse, tegrastats_source

MIB = 1 << 20
#: One recorded line per layout: JetPack 6 (Orin Nano) and JetPack 4 (Xavier NX); the others are in the shared reference.
ORIN_NANO = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] "
    "EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C "
    "gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
XAVIER_NX = (
    "RAM 4412/7772MB (lfb 237x4MB) SWAP 139/3886MB (cached 2MB) CPU [9%@1190,6%@1190,6%@1190,5%@1190,4%@1190,8%@1267] EMC_FREQ 10%@1600 "
    "GR3D_FREQ 62%@306 APE 150 MTS fg 0% bg 0% AO@41.5C GPU@43C PMIC@100C AUX@41.5C CPU@43.5C thermal@42.55C VDD_IN 4067/4067 "
    "VDD_CPU_GPU_CV 738/738 VDD_SOC 1353/1353"
)


def real_lines() -> list[str]:
    named = os.environ.get("EDGE_TPRUNE_TEST_DATA")
    data = Path(named) if named else Path(__file__).resolve().parents[3] / "shared"
    file = data / "reference/tegrastats.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_a_line_of_jetpack_6() -> None:
    report = parse(ORIN_NANO)
    assert report.unknown == []
    assert report.gaps == {}
    assert report.values == {
        "memory_used_bytes": 6185 * MIB,
        "swap_used_bytes": 851 * MIB,
        "cpu_load_percent": 12,
        "cpu_frequency_mhz": 729,
        "emc_load_percent": 43,
        "emc_frequency_mhz": 2133,
        "gpu_load_percent": 63,
        "gpu_frequency_mhz": 621,
        "cpu_temp_c": 53.968,
        "soc2_temp_c": 52.437,
        "soc0_temp_c": 50.75,
        "gpu_temp_c": 53.343,
        "tj_temp_c": 53.968,
        "soc1_temp_c": 51.656,
        "vdd_in_power_mw": 12479,
        "vdd_cpu_gpu_cv_power_mw": 4667,
        "vdd_soc_power_mw": 2817,
    }
    assert list(report.rails) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


def test_a_line_of_jetpack_4() -> None:
    report = parse(XAVIER_NX)
    assert report.unknown == []
    assert report.values["vdd_in_power_mw"] == 4067
    assert report.values["gpu_frequency_mhz"] == 306
    assert report.values["thermal_temp_c"] == 42.55
    assert report.values["cpu_frequency_mhz"] == pytest.approx((5 * 1190 + 1267) / 6)


@pytest.mark.skipif(not real_lines(), reason="no recorded lines: shared/reference/tegrastats.txt is not beside the checkout")
def test_every_recorded_line_parses_completely() -> None:
    for line in real_lines():
        report = parse(line)
        assert report.unknown == []
        assert set(report.metrics) == {*report.values, *report.gaps}
        assert all(reason == "offline" for reason in report.gaps.values()) or "@[0,0]" in line
        rails = set(re.findall(r"([A-Z]\w+) \d+(?:mW)?/\d+", line)) - {"NC", "RAM", "SWAP"}
        assert set(report.rails) == rails
        assert len([name for name in report.metrics if name.endswith("_temp_c")]) == len(re.findall(r"@-?[\d.]+C", line))


@pytest.mark.parametrize(
    ("token", "load", "mhz"),
    [
        ("62%", 62, None),
        ("62%@306", 62, 306),
        ("63%@[621]", 63, 621),
        ("0%@[0,0]", 0, None),
        ("12%@[1300,1300]", 12, 1300),
        ("@[1574,1574,1574]", None, 1574),
        ("101%@306", None, 306),
        ("@[300,off,600]", None, 450),
        ("20%@[0, 300]", 20, 300),
        ("12 %@[600, 600]", 12, 600),
        ("12 % @[600,\t600]", 12, 600),
        ("20% @ [600, 600]", 20, 600),
        ("20 % @\t600", 20, 600),
        ("[10%, off] @ 300", 10, 300),
        ("[10%@300,off,30%@600]", 20, 450),
        ("[10%, off ,30%]@[300,off,600]", 20, 450),
        ("off", None, None),
    ],
)
def test_every_shape_of_gpu(token: str, load: float | None, mhz: float | None) -> None:
    report = parse(f"GR3D_FREQ {token} APE 150")
    assert report.unknown == []
    assert report.values.get("gpu_load_percent") == load
    assert report.values.get("gpu_frequency_mhz") == mhz
    assert set(report.metrics) == {"gpu_load_percent", "gpu_frequency_mhz"} == {*report.values, *report.gaps}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("VIN 21000mW/20500mW/20700mW", "vin_power_mw", 21000),
        ("POM_5V_IN 1873/1873", "pom_5v_in_power_mw", 1873),
        ("VDD_GPU -400mW/0mW", "vdd_gpu_power_mw", -400),
        ("cpu@52.968C/52.968C", "cpu_temp_c", 52.968),
        ("Tdiode@33C", "tdiode_temp_c", 33),
        ("CPU [15%,off,25%]@1479", "cpu_load_percent", 20),
        ("CPU [15%,off,25%]@1479", "cpu_frequency_mhz", 1479),
        ("RAM 2/4GB (lfb 1x4MB)", "memory_used_bytes", 2 << 30),
        ("EMC_FREQ 7%", "emc_load_percent", 7),
        ("cpu [0%,30%,off,off]@-1", "cpu_load_percent", 15),
        ("EMC 12%@300", "emc_frequency_mhz", 300),
        ("GR3D 9%@72", "gpu_load_percent", 9),
        ("VDD_SYS_DDR 1014/1033", "vdd_sys_ddr_power_mw", 1014),
    ],
)
def test_other_shapes(text: str, name: str, value: float) -> None:
    for line in (text, f"WHAT_IS_THIS {text} new@thing", f"  {text}\n"):
        assert parse(line).values[name] == pytest.approx(value)


@pytest.mark.parametrize("text", ["RAM 100/200 MB", "SWAP 5/6", "IRAM 1/2"])
def test_memory_is_no_power_rail(text: str) -> None:
    assert not [name for name in parse(text).metrics if "power" in name]


def test_what_is_off_or_offline_is_missing() -> None:
    report = parse("GPU@-256C CPU [off,off] EMC_FREQ @2133 NC 0mW/0mW CPU@900C")
    assert report.gaps == {
        "gpu_temp_c": "offline",
        "cpu_load_percent": "not reported",
        "cpu_frequency_mhz": "not reported",
        "emc_load_percent": "not reported",
        "cpu_temp_c": "implausible: 900",
    }
    assert report.values == {"emc_frequency_mhz": 2133}
    assert report.unknown == []


@pytest.mark.parametrize(
    "words",
    [
        "IRAM 0/252kB(lfb 252kB)",
        "SWAP 0/1024MB (cached 0MB)",
        "VIC_FREQ 0%@115 MSENC 268 NVENC 716 NVDEC 13%@998 SE off",
        "NVDLA0_FREQ @844 PVA0_FREQ off NVENC0_FREQ @[716,716]",
        "MTS fg 0% bg 1% EDP limit 0 AVP 1%@12 VDE 0",
        "BCPU@41C MCPU@41C PLL@39.5C iwlwifi@43C Tboard@37C",
    ],
)
def test_known_words_that_say_nothing_measured_here(words: str) -> None:
    assert parse(words).unknown == []


def test_unknown_words_are_listed_and_harm_nobody() -> None:
    report = parse("RAM 1/2MB FOO bar=3 [x GR3D_FREQ 5% GR3D_FREQ")
    assert report.unknown == ["FOO", "bar=3", "[x", "GR3D_FREQ"]
    assert report.values["gpu_load_percent"] == 5


WORDS = [
    "RAM 6185/7620MB (lfb 8x2MB)", "SWAP 851/3810MB (cached 1MB)", "CPU [15%@729,off,11%@729]", "EMC_FREQ 43%@2133",
    "GR3D_FREQ 63%@[621,off,300]", "NVDEC off", "VIC_FREQ 0%@115", "APE 200", "MTS fg 0% bg 0%", "EDP limit 0", "cpu@53.968C",
    "gpu@-256C", "VDD_IN 12479mW/12479mW", "SYS5V 2094/2094", "VIN 21000mW/21000mW/21000mW", "NC 0/0",
]  # fmt: skip


@given(st.permutations(WORDS))
def test_the_order_of_words_makes_no_difference(words: list[str]) -> None:
    report, expected = parse(" ".join(words)), parse(" ".join(WORDS))
    assert report.unknown == []
    assert (report.values, report.gaps) == (expected.values, expected.gaps)


@given(
    st.lists(st.sampled_from(["off", "0", "300", "600.5"]), min_size=1, max_size=4), st.lists(st.sampled_from(["", " ", "\t"]))
)
def test_blanks_inside_a_list_make_no_difference(clocks: list[str], blanks: list[str]) -> None:
    spaced = "".join(f"{blank}{clock},{blank}" for clock, blank in zip(clocks, [*blanks, *[""] * len(clocks)]))[:-1].rstrip(",")
    report = parse(f"GR3D_FREQ 20%@[{spaced}] APE 150")
    values = [float(clock) for clock in clocks if clock not in ("off", "0")]
    assert report.unknown == []
    assert report.values["gpu_load_percent"] == 20
    assert report.values.get("gpu_frequency_mhz") == (pytest.approx(sum(values) / len(values)) if values else None)


def sane(report: Report) -> None:
    assert set(report.metrics) == {*report.values, *report.gaps}
    assert not set(report.values) & set(report.gaps)
    assert all(math.isfinite(value) for value in report.values.values())
    assert all(report.gaps.values())


@given(st.text())
def test_no_text_raises(line: str) -> None:
    sane(parse(line))


@given(
    st.sampled_from([ORIN_NANO, XAVIER_NX, *real_lines()]),
    st.lists(
        st.tuples(st.integers(0, 700), st.integers(0, 12), st.text(alphabet="0123456789%@[],/.-+eENmWCoffx \x00é", max_size=8))
    ),
)
def test_no_mutated_line_raises(line: str, edits: list[tuple[int, int, str]]) -> None:
    for position, length, text in edits:
        line = line[:position] + text + line[position + length :]
    sane(parse(line))


def test_long_numbers_and_long_lines() -> None:
    for digits in ("9" * 400, "9" * 5000):
        report = parse(f"VDD_IN {digits}/1 GPU@{digits}C RAM {digits}/1MB GR3D_FREQ 1%@[{digits}] CPU [{digits}%@{digits}]")
        sane(report)
        assert report.values == {"gpu_load_percent": 1}
    begin = time.process_time()
    for line in (
        "A" * 50_000,
        "GR3D_FREQ 1%@[" + "1," * 20_000,
        "CPU [" + "1%@" * 20_000,
        "a@" * 20_000,
        "1" * 50_000 + "/",
        "- " * 20_000,
    ):
        parse(line)
    assert time.process_time() - begin < 20  # linear: seconds at most on the slowest board


PROGRAM = """
import sys, time
assert sys.argv[1:] == ["--interval", "500"]
print({text!r}, flush=True)
if not {ends!r}:
    time.sleep(3600)
"""


def program(tmp_path: Path, text: str, ends: bool) -> str:
    """A program that stands for tegrastats and says what the real one said."""
    file = tmp_path / "tegrastats"
    file.write_text(f"#!{sys.executable}\n" + PROGRAM.format(text=text, ends=ends))
    file.chmod(0o755)
    return str(file)


def test_the_source_reads_the_newest_line(tmp_path: Path) -> None:
    clock = VirtualClock(7)
    source = tegrastats_source(
        boards.board("orin-nano"), program=program(tmp_path, ORIN_NANO, ends=False), clock_ns=clock, first_line_s=60
    )
    assert source is not None
    clock.advance(1)
    reading = source.read()
    assert reading.gaps == {}
    assert reading.values["total_power_mw"] == 12479
    assert reading.t_ns == 7  # when the line came
    assert {metric.interval_s for metric in source.metrics} == {0.5}
    clock.advance(1.5)
    assert set(source.read().gaps) == {metric.name for metric in source.metrics}
    assert source.read().gaps["total_power_mw"] == "tegrastats has been quiet for 2.5 s"
    source.close()
    source.close()
    assert source.read().gaps["total_power_mw"] == "tegrastats has ended"


def test_a_program_that_ends_is_a_gap(tmp_path: Path) -> None:
    source = tegrastats_source(boards.board("orin-nano"), program=program(tmp_path, ORIN_NANO, ends=True), first_line_s=60)
    assert source is not None
    source._listener.join(60)
    assert source.read().values == {}
    assert source.read().gaps["gpu_load_percent"] == "tegrastats has ended"
    source.close()


def test_a_program_that_fails_or_is_absent_has_no_metrics(tmp_path: Path) -> None:
    silent = tegrastats_source(boards.board("orin-nano"), program=program(tmp_path, "", ends=True), first_line_s=60)
    assert silent is not None
    assert silent.metrics == ()
    absent = tegrastats_source(boards.board("orin-nano"), program=str(tmp_path / "nothing"))
    assert absent is not None
    assert absent.metrics == ()
    absent.close()
    assert absent.read().values == {}
