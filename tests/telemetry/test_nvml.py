"""NVML at its edge: a library that answers as the real one does, for GPUs that support much, little and nothing."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from edge_tprune.telemetry.nvml import nvml_sources
from edge_tprune.telemetry.portable import psutil_source

from .tree import covers


class NVMLError(Exception):
    pass


class Library(ModuleType):
    NVMLError = NVMLError

    def __init__(self, gpus: list[dict[str, object]]) -> None:
        super().__init__("pynvml")
        self.gpus = gpus
        for call, key in (
            ("nvmlDeviceGetTotalEnergyConsumption", "energy"),
            ("nvmlDeviceGetPowerUsage", "power"),
            ("nvmlDeviceGetUtilizationRates", "utilization"),
            ("nvmlDeviceGetClockInfo", "clock"),
            ("nvmlDeviceGetTemperature", "temperature"),
            ("nvmlDeviceGetMemoryInfo", "memory"),
            ("nvmlDeviceGetCurrentClocksThrottleReasons", "reasons"),
            ("nvmlDeviceGetComputeRunningProcesses", "processes"),
        ):
            setattr(self, call, lambda gpu, *_, key=key: self.ask(gpu, key))

    def nvmlInit(self) -> None:
        if not self.gpus:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, gpu: int) -> bytes:
        return b"Orin" if gpu else b"H200"

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}1234567-89ab"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid.startswith("MIG-1"):
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: str) -> int:
        return int(part[4])

    def ask(self, gpu: int, key: str) -> object:
        if key not in self.gpus[gpu]:
            raise NVMLError("Not Supported")
        return self.gpus[gpu][key]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    full = {
        "energy": 123456,
        "power": 76543,
        "utilization": SimpleNamespace(gpu=37, memory=5),
        "clock": 1980,
        "temperature": 41,
        "memory": SimpleNamespace(used=1 << 30, total=1 << 37),
        "reasons": 0x1,
        "processes": [1, 2],
    }
    library = Library([full, {"clock": 1300}])
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return library


def test_every_gpu_has_what_it_supports(library: Library) -> None:
    full, little = nvml_sources()
    assert (full.name, little.name) == ("nvml", "nvml1")
    assert full.read().values == {
        "total_energy_mj": 123456,
        "total_power_mw": 76543,
        "gpu_load_percent": 37,
        "gpu_frequency_mhz": 1980,
        "gpu_temp_c": 41,
        "gpu_memory_used_bytes": 1 << 30,
        "gpu_throttled_count": 0,
        "gpu_processes_count": 2,
    }
    assert little.read().values == {"gpu_frequency_mhz": 1300}
    assert "H200" in full.metrics[0].help


def test_what_fails_later_is_a_gap(library: Library) -> None:
    source = nvml_sources()[0]
    library.gpus[0]["reasons"] = 0x20
    library.gpus[0]["energy"] = 5
    del library.gpus[0]["power"]
    reading = source.read()
    assert reading.values["gpu_throttled_count"] == 1
    assert reading.gaps == {
        "total_power_mw": "NVMLError: Not Supported",
        "total_energy_mj": "the counter was reset: 123456, then 5",
    }
    assert covers(source, reading)
    library.gpus[0]["energy"] = 15
    assert source.read().values["total_energy_mj"] == 123471


@pytest.mark.parametrize(
    "named", ["1", "GPU-11", " GPU-11234567-89ab ", "MIG-1b/2/0", "1,1", "1,-1,0", "1,9,0", f"1,{'9' * 5000}"]
)
def test_visible_devices_are_those_that_cuda_sees(library: Library, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    (only,) = nvml_sources()
    assert only.read().values == {"gpu_frequency_mhz": 1300}


@pytest.mark.parametrize("named", ["", "-1", "NoDevFiles", "GPU-", "MIG-0", "x,1", "\u0661"])
def test_where_cuda_sees_no_gpu_there_is_none(library: Library, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert nvml_sources() == []


def test_which_of_unlike_gpus_is_meant_is_a_guess(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = nvml_sources()[0].metrics[0]
    assert energy.guess
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in energy.help
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-01")
    assert not nvml_sources()[0].metrics[0].guess
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert nvml_sources()[0].metrics[0].guess
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert not nvml_sources()[0].metrics[0].guess


def test_no_driver_and_no_package_are_no_sources(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.gpus = []
    assert nvml_sources() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_sources() == []


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    pytest.importorskip("pynvml")
    sources = nvml_sources()
    if not sources:
        pytest.skip("no NVIDIA driver or GPU")
    first, second = sources[0].read(), sources[0].read()
    assert covers(sources[0], first)
    assert 1000 < first.values["total_power_mw"] < 2_000_000
    assert second.values["total_energy_mj"] >= first.values["total_energy_mj"]


def test_psutil_tells_of_any_system() -> None:
    source = psutil_source()
    reading = source.read()
    assert covers(source, reading)
    assert reading.values["memory_available_bytes"] > 0
