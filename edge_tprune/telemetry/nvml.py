"""NVIDIA's management library: energy, power, load and clocks of discrete GPUs, and of Thor.

What a GPU supports is found out by asking once; Orin's library starts, and then supports next to nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from edge_tprune.telemetry.counter import Counter
from edge_tprune.telemetry.gpu import CLOCK, LOAD
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.source import CallSensor, Clock, Sensor, SensorSource
from edge_tprune.telemetry.thermal import temperature_metric

_SM_CLOCK = 1  #: NVML_CLOCK_SM
_GPU_TEMPERATURE = 0  #: NVML_TEMPERATURE_GPU
_THROTTLE_BITS = 0x4 | 0x8 | 0x20 | 0x40 | 0x80  #: power cap, slowdown, software and hardware heat, power brake

MEMORY = SensorMetric("gpu_memory_used_bytes", "bytes", "lower", "max", "memory of the GPU in use, by everything")
THROTTLED = SensorMetric(
    "gpu_throttled_count", "count", "lower", "max", "1 while the GPU's clock is lowered for heat or power", step=1.0
)
PROCESSES = SensorMetric("gpu_processes_count", "count", None, "max", "processes that compute on the GPU", step=1.0)


def nvml_sources(clock_ns: Clock = time.perf_counter_ns) -> list[SensorSource]:
    """A source per GPU that this process may use ("nvml", "nvml1", ...); none without the library, the driver or a GPU."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in _visible_gpus(pynvml.nvmlDeviceGetCount())]
        sources = [
            SensorSource(f"nvml{number or ''}", _sensors(pynvml, handle), clock_ns) for number, handle in enumerate(handles)
        ]
    except pynvml.NVMLError:
        return []
    return [source for source in sources if source.metrics]


def _visible_gpus(count: int) -> list[int]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, where it says so in numbers; all otherwise."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    numbers = [int(name) for name in named if name.strip().isdecimal() and int(name) < count]
    return numbers or list(range(count))


def _sensors(nvml: Any, gpu: Any) -> list[Sensor]:
    """Of everything that can be asked, what this GPU answers."""
    name = nvml.nvmlDeviceGetName(gpu)
    name = name.decode() if isinstance(name, bytes) else name
    energy = SensorMetric(
        "total_energy_mj", "mJ", "lower", "increase", f"energy of the whole GPU board ({name}), of nothing else", 0.1, 1.0
    )
    power = SensorMetric(
        "total_power_mw", "mW", "lower", "mean", f"power of the whole GPU board ({name}), as its driver averages it"
    )
    counter = Counter()
    asked: list[tuple[SensorMetric, Callable[[], float]]] = [
        (energy, lambda: counter.total(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))),
        (power, lambda: nvml.nvmlDeviceGetPowerUsage(gpu)),
        (LOAD, lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        (CLOCK, lambda: nvml.nvmlDeviceGetClockInfo(gpu, _SM_CLOCK)),
        (temperature_metric("gpu"), lambda: nvml.nvmlDeviceGetTemperature(gpu, _GPU_TEMPERATURE)),
        (MEMORY, lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
        (THROTTLED, lambda: bool(_clock_reasons(nvml, gpu) & _THROTTLE_BITS)),
        (PROCESSES, lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(gpu))),
    ]
    return [sensor for metric, ask in asked if (sensor := CallSensor(metric, ask)).answers()]


def _clock_reasons(nvml: Any, gpu: Any) -> int:
    """Why the clock is what it is, as bits; the call was renamed in 2023."""
    ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    return int(ask(gpu))
