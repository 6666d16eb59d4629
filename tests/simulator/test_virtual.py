from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_tprune.simulator.boards import BOARDS
from edge_tprune.simulator.virtual import KINDS, SensorFault, VirtualClock, VirtualMachine
from edge_tprune.telemetry.source import Reading, Source

SECOND = 10**9


def rails(machine: VirtualMachine) -> Source:
    return next(source for source in machine.sources() if source.name == "rails")


def readings(machine: VirtualMachine, seconds: float, every_s: float = 0.1) -> Iterator[Reading]:
    source = rails(machine)
    for _ in range(round(seconds / every_s)):
        machine.clock.advance(every_s)
        yield source.read()


def test_the_clock_only_goes_on() -> None:
    clock = VirtualClock(5)
    clock.advance(1.5)
    assert clock() == 5 + 3 * SECOND // 2
    clock.sleep_until(7)
    assert clock() == 5 + 3 * SECOND // 2


@pytest.mark.parametrize("key", BOARDS)
def test_mean_of_the_total_times_time_is_the_true_energy(key: str) -> None:
    machine = VirtualMachine(key, seed=4)
    machine.load.set(0, 0.4)
    machine.clock.advance(1)
    begin_ns = machine.clock()
    totals = [reading.values["total_power_mw"] for reading in readings(machine, 120)]
    true_mj = machine.energy_mj(begin_ns, machine.clock())
    assert sum(totals) / len(totals) * 120 == pytest.approx(true_mj, rel=0.01)
    assert machine.energy_mj(begin_ns, begin_ns + 60 * SECOND) == pytest.approx(true_mj / 2)


@pytest.mark.parametrize("key", BOARDS)
def test_every_metric_is_a_value_or_a_gap_and_says_what_it_is(key: str) -> None:
    machine = VirtualMachine(key)
    sources = machine.sources()
    machine.clock.advance(3)
    for source in sources:
        reading = source.read()
        assert [metric.name for metric in source.metrics] == list(reading.values)
        assert reading.t_ns == 3 * SECOND
        assert all(metric.name.endswith(metric.unit.lower()) for metric in source.metrics)
    metrics = {metric.name: metric for source in sources for metric in source.metrics}
    total = metrics["total_power_mw"]
    assert total.interval_s == {"thor": 0.0505, "nano": None}.get(key, 0.43)
    if key == "agx-orin":
        assert total.step == pytest.approx((400**2 + 400**2 + 2 * 100.8**2) ** 0.5)
        assert "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO" in total.help


def test_seeds_give_other_phases_and_the_same_seed_the_same_run() -> None:
    def run(seed: int) -> list[float]:
        machine = VirtualMachine(seed=seed)
        machine.load.set(3 * SECOND, 1.0)
        return [reading.values["total_power_mw"] for reading in readings(machine, 6)]

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("stall", "jump")])
def test_a_fault_is_a_gap_with_a_reason_that_ends(kind: str) -> None:
    machine = VirtualMachine(faults=[SensorFault(kind, "vdd_in*", 2 * SECOND, 3 * SECOND)])
    for reading in readings(machine, 5):
        faulty = 2 * SECOND <= reading.t_ns < 3 * SECOND
        assert set(reading.gaps) == ({"vdd_in_power_mw", "total_power_mw"} if faulty else set())
        assert all(reading.gaps.values())
        assert {"vdd_soc_power_mw", "vdd_cpu_gpu_cv_power_mw"} <= set(reading.values)


def test_a_stall_takes_its_time_and_a_jump_stays() -> None:
    machine = VirtualMachine(
        faults=[
            SensorFault("stall", "vdd_soc_power_mw", 2 * SECOND, 3 * SECOND),
            SensorFault("jump", "over_current_1_count", 2 * SECOND, 9 * SECOND, amount=7),
        ],
        read_s=0.001,
    )
    machine.clock.sleep_until(2 * SECOND)
    reading = rails(machine).read()
    assert reading.gaps == {}
    assert reading.read_ns == pytest.approx(SECOND, rel=0.01)
    assert reading.t_ns == pytest.approx(2.5 * SECOND, rel=0.01)
    events = next(source for source in machine.sources() if source.name == "events")
    assert events.read().values["over_current_1_count"] == 7
    assert events.read().values["over_current_2_count"] == 0
    machine.set_values["throttling_devices_count"] = 2
    thermal = next(source for source in machine.sources() if source.name == "thermal")
    assert thermal.read().values["throttling_devices_count"] == 2


def test_it_warms_up_under_load_and_cools_down() -> None:
    machine = VirtualMachine()
    thermal = next(source for source in machine.sources() if source.name == "thermal")
    seen = []
    for load in (0.0, 1.0, 0.0):
        machine.load.set(machine.clock(), load)
        machine.clock.advance(900)
        seen.append(thermal.read().values["tj_temp_c"])
    assert seen[0] == pytest.approx(seen[2], abs=0.5)
    assert seen[1] > seen[0] + 10


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="no fault is called 'boom'"):
        SensorFault("boom", "*", 0, 1)
