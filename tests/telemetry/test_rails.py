from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_tprune.simulator.virtual import VirtualClock
from edge_tprune.telemetry import boards
from edge_tprune.telemetry.boards import identify
from edge_tprune.telemetry.rails import find_rails, rails_source

from .tree import covers, refuse, write

CHIP = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
SECOND_CHIP = "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4"


def channel(number: int, label: str, voltage_mv: float, current_ma: float, shunt_uohm: int = 5000) -> dict[str, str | bytes]:
    return {
        f"in{number}_label": f"{label}\n",
        f"in{number}_input": f"{voltage_mv}\n",
        f"curr{number}_input": f"{current_ma}\n",
        f"shunt{number}_resistor": f"{shunt_uohm}\n",
    }


def chip(
    root: Path, directory: str, *channels: dict[str, str | bytes], name: str = "ina3221", interval_ms: int | None = 430
) -> None:
    files: dict[str, str | bytes] = {"name": f"{name}\n", **{key: text for part in channels for key, text in part.items()}}
    if interval_ms is not None:
        files["update_interval"] = f"{interval_ms}\n"
    write(root / directory, files)


def orin_nano(root: Path) -> None:
    chip(root, CHIP, channel(1, "VDD_IN", 5040, 800), channel(2, "VDD_CPU_GPU_CV", 5040, 96), channel(3, "VDD_SOC", 5032, 240))
    write(root, {"proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0"})


def test_a_board_that_measures_its_total(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    source = rails_source(tmp_path, identify(tmp_path))
    assert source.read().values == pytest.approx(
        {"vdd_in_power_mw": 4032, "vdd_cpu_gpu_cv_power_mw": 483.84, "vdd_soc_power_mw": 1207.68, "total_power_mw": 4032}
    )
    metrics = {metric.name: metric for metric in source.metrics}
    for metric in metrics.values():
        assert metric.interval_s == 0.43
    assert metrics["total_power_mw"].step == metrics["vdd_in_power_mw"].step == pytest.approx(40e-6 / 5e-3 * 5040)
    assert "VDD_IN" in metrics["total_power_mw"].help
    assert "not the wall" in metrics["total_power_mw"].help


@pytest.mark.parametrize("interval_ms", [0, -430, 10**12])
def test_an_interval_that_cannot_be_is_not_known(tmp_path: Path, interval_ms: int) -> None:
    chip(tmp_path, CHIP, channel(1, "VDD_IN", 5040, 800), interval_ms=interval_ms)
    assert [rail.interval_s for rail in find_rails(tmp_path)] == [None]


def agx_orin(root: Path) -> None:
    chip(
        root,
        CHIP,
        channel(1, "VDD_GPU_SOC", 19976, 160, 2000),
        channel(2, "VDD_CPU_CV", 19976, 40, 2000),
        channel(3, "VIN_SYS_5V0", 5000, 720, 2000),
    )
    chip(
        root,
        SECOND_CHIP,
        channel(1, "NC", 0, 0),
        channel(2, "VDDQ_VDD2_1V8AO", 5000, 80, 2000),
        channel(3, "NC", 0, 0),
        {"in7_label": "sum of shunt voltages"},
    )
    for number in (1, 3):
        refuse(root, f"{SECOND_CHIP}/in{number}_input")
        refuse(root, f"{SECOND_CHIP}/curr{number}_input")
    write(root, {"proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0"})


def test_a_board_whose_total_is_a_sum(tmp_path: Path) -> None:
    agx_orin(tmp_path)
    source = rails_source(tmp_path, identify(tmp_path))
    reading = source.read()
    parts = {
        "vdd_gpu_soc_power_mw": 3196.16,
        "vdd_cpu_cv_power_mw": 799.04,
        "vin_sys_5v0_power_mw": 3600,
        "vddq_vdd2_1v8ao_power_mw": 400,
    }
    assert reading.values == pytest.approx({**parts, "total_power_mw": sum(parts.values())})
    assert reading.gaps == {}
    total = source.metrics[-1]
    steps = [metric.step for metric in source.metrics[:-1]]
    assert total.step == pytest.approx(sum(step**2 for step in steps if step) ** 0.5)
    assert steps[0] == pytest.approx(399.52)  # 0.4 W: what the sheet of this board complains of
    assert "mostly I/O" in total.help


def test_a_missing_part_makes_the_sum_missing_never_smaller(tmp_path: Path) -> None:
    agx_orin(tmp_path)
    source = rails_source(tmp_path, identify(tmp_path))
    refuse(tmp_path, f"{CHIP}/curr2_input")
    reading = source.read()
    assert reading.gaps == {
        "vdd_cpu_cv_power_mw": "EIO from hwmon3/curr2_input",
        "total_power_mw": "no vdd_cpu_cv_power_mw: EIO from hwmon3/curr2_input",
    }
    assert covers(source, reading)


@pytest.mark.parametrize("resistance", ["1e-320", "1e-3", "-5000", "0", "nan", "2e165"])
def test_a_shunt_that_can_have_no_such_resistance_gives_no_step(tmp_path: Path, resistance: str) -> None:
    agx_orin(tmp_path)
    for file in tmp_path.rglob("shunt*_resistor"):
        file.write_text(f"{resistance}\n")
    assert {metric.step for metric in rails_source(tmp_path, identify(tmp_path)).metrics if metric.unit == "mW"} == {None}


def test_an_unknown_board_has_rails_and_no_total(tmp_path: Path) -> None:
    chip(tmp_path, CHIP, channel(1, "VDD_MOTOR-2", 12000, 100), interval_ms=None)
    source = rails_source(tmp_path, identify(tmp_path))
    assert [metric.name for metric in source.metrics] == ["vdd_motor_2_power_mw"]
    assert source.metrics[0].interval_s is None
    assert source.read().values == {"vdd_motor_2_power_mw": 1200}


def tx2(root: Path) -> None:
    """A board that is not in the table, in the older iio layout."""
    for number, labels in ((0, ("VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_4V0_WIFI")), (1, ("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"))):
        for channel_number, label in enumerate(labels):
            directory = f"sys/bus/i2c/drivers/ina3221x/0-004{number}/iio:device{number}"
            files = {f"rail_name_{channel_number}": label, f"in_power{channel_number}_input": str(1000 * (number + 1))}
            write(root / directory, dict(files))
    write(root, {"proc/device-tree/compatible": "nvidia,p2597-0000+p3310-1000\0nvidia,quill\0nvidia,tegra186\0"})


def test_an_unknown_board_offers_its_input_as_a_guess(tmp_path: Path) -> None:
    tx2(tmp_path)
    source = rails_source(tmp_path, identify(tmp_path))
    assert source.read().values["total_power_mw"] == 2000
    total = source.metrics[-1]
    assert total.guess
    assert total.help.startswith("a guess: VDD_IN is taken for the power of the whole board")
    assert not any(metric.guess for metric in source.metrics[:-1])


@pytest.mark.parametrize("label", ["SYS5V", "SYS5V0"])
def test_both_spellings_of_a_rail_make_the_total(tmp_path: Path, label: str) -> None:
    chip(tmp_path, CHIP, channel(1, "GPU", 9000, 30), channel(2, "CPU", 9000, 60), channel(3, "SOC", 9000, 120))
    chip(tmp_path, SECOND_CHIP, channel(1, "CV", 9000, 0), channel(2, "VDDRQ", 9000, 40), channel(3, label, 9000, 160))
    source = rails_source(tmp_path, boards.board("agx-xavier"))
    assert source.read().values["total_power_mw"] == 9 * (30 + 60 + 120 + 40 + 160)
    assert not source.metrics[-1].guess
    assert label in source.metrics[-1].help


def test_a_known_board_that_lacks_its_total_has_rails_only(tmp_path: Path) -> None:
    chip(tmp_path, CHIP, channel(3, "VDD_SOC", 5000, 100))
    source = rails_source(tmp_path, boards.board("orin-nano"))
    assert [metric.name for metric in source.metrics] == ["vdd_soc_power_mw"]


def test_disabled_channels_and_other_chips_are_left_out(tmp_path: Path) -> None:
    chip(tmp_path, CHIP, channel(1, "VDD_IN", 5000, 100), channel(2, "VDD_SOC", 5000, 100), {"in2_enable": "0\n"})
    write(tmp_path, {"sys/class/hwmon/hwmon0/name": "coretemp", "sys/class/hwmon/hwmon0/in1_label": "Vcore"})
    assert [rail.label for rail in find_rails(tmp_path)] == ["VDD_IN"]


def test_a_chip_reached_by_several_ways_counts_once(tmp_path: Path) -> None:
    real = "sys/devices/platform/c240000.i2c/i2c-1/1-0040"
    chip(tmp_path, f"{real}/hwmon/hwmon3", channel(1, "VDD_IN", 5000, 100), name="ina3221x")
    for link in ("sys/bus/i2c/devices/1-0040", "sys/bus/i2c/drivers/ina3221x/1-0040"):
        (tmp_path / link).parent.mkdir(parents=True)
        (tmp_path / link).symlink_to(tmp_path / real)
    (tmp_path / "sys/class/hwmon").mkdir(parents=True)
    (tmp_path / "sys/class/hwmon/hwmon3").symlink_to(tmp_path / real / "hwmon/hwmon3")
    (rail,) = find_rails(tmp_path)
    assert rail.chip == "ina3221x at 1-0040"


def test_ina238_and_its_kin_compute_power_themselves(tmp_path: Path) -> None:
    thor = "sys/bus/i2c/devices/2-0044/hwmon/hwmon5"
    write(tmp_path / thor, {"name": "ina238\n", "power1_input": "21034000\n", "shunt_resistor": "2000\n"})
    write(
        tmp_path / "sys/bus/i2c/devices/3-0040/hwmon/hwmon6",
        {"name": "ina226", "power1_input": "1500000", "update_interval": "100"},
    )
    write(tmp_path / "sys/bus/i2c/devices/3-0041/hwmon/hwmon7", {"name": "ina226", "in1_label": "12V"})
    vin, other = find_rails(tmp_path)
    assert (vin.label, vin.power_mw(), vin.interval_s, vin.step_mw) == ("VIN", 21034, 0.0505, 2)
    assert (other.label, other.power_mw(), other.interval_s, other.step_mw) == ("ina226_3-0040", 1500, 0.1, None)
    assert other.metric.name == "ina226_3_0040_power_mw"
    source = rails_source(tmp_path, boards.board("thor"))
    assert source.read().values["total_power_mw"] == 21034


@pytest.mark.parametrize("power_file", [True, False])
def test_the_older_iio_layout(tmp_path: Path, power_file: bool) -> None:
    directory = tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for number, (label, milliamperes) in enumerate((("POM_5V_IN", 400), ("POM_5V_GPU", 8), ("NC", 0))):
        write(
            directory,
            {f"rail_name_{number}": label, f"in_voltage{number}_input": "5000", f"in_current{number}_input": f"{milliamperes}"},
        )
        if power_file:
            write(directory, {f"in_power{number}_input": f"{5 * milliamperes}"})
    source = rails_source(tmp_path, boards.board("nano"))
    assert source.read().values == {"pom_5v_in_power_mw": 2000, "pom_5v_gpu_power_mw": 40, "total_power_mw": 2000}
    assert source.metrics[0].interval_s is None  # nobody tells


def test_one_step_below_zero_is_a_reading_and_a_megawatt_is_not(tmp_path: Path) -> None:
    chip(tmp_path, CHIP, channel(1, "VDD_GPU_SOC", 20000, -20), channel(2, "VDD_CPU_CV", 20000, 9e9))
    reading = rails_source(tmp_path, identify(tmp_path)).read()
    assert reading.values == {"vdd_gpu_soc_power_mw": -400}
    assert reading.gaps["vdd_cpu_cv_power_mw"].startswith("implausible")


def test_a_chip_that_moves_is_found_and_one_that_leaves_is_searched_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_tprune.telemetry import rails as module

    orin_nano(tmp_path)
    clock = VirtualClock(10**10)
    source = rails_source(tmp_path, identify(tmp_path), clock)
    searches: list[int] = []
    find = module.find_rails
    monkeypatch.setattr(module, "find_rails", lambda root: searches.append(1) or find(root))
    (tmp_path / CHIP).rename(tmp_path / CHIP.replace("hwmon3", "hwmon1"))
    assert source.read().gaps == {}
    assert len(searches) == 1
    (tmp_path / CHIP.replace("hwmon3", "hwmon1")).rename(tmp_path / "away")
    for _ in range(50):
        clock.advance(0.1)
        assert set(source.read().gaps) == {metric.name for metric in source.metrics}
    assert len(searches) <= 6
    (tmp_path / "away").rename(tmp_path / CHIP)
    clock.advance(1)
    assert source.read().gaps == {}


@given(
    st.dictionaries(
        st.sampled_from(["in1_label", "in1_input", "curr1_input", "shunt1_resistor", "update_interval", "name", "in1_enable"]),
        st.binary(max_size=12),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_the_files_say_nothing_is_raised(tmp_path: Path, damage: dict[str, bytes]) -> None:
    orin_nano(tmp_path)
    source = rails_source(tmp_path, identify(tmp_path))
    write(tmp_path / CHIP, dict(damage))
    assert covers(source, source.read())
    fresh = rails_source(tmp_path, identify(tmp_path))
    assert covers(fresh, fresh.read())
