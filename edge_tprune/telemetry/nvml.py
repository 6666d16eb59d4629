"""NVIDIA's management library: energy, power, load and clocks of discrete GPUs, and of Thor.

What a GPU supports is found out by asking once; Orin's library starts, and then supports next to nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
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
        every = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        counted = named is None or not named.strip().startswith(("GPU-", "MIG-"))  # so that the order matters
        guess = (
            counted and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({_name(pynvml, gpu) for gpu in every}) > 1
        )
        sources = [
            SensorSource(f"nvml{number or ''}", _sensors(pynvml, gpu, guess), clock_ns)
            for number, gpu in enumerate(every if named is None else _visible(pynvml, every, named))
        ]
    except pynvml.NVMLError:
        return []
    return [source for source in sources if source.metrics]


def _visible(nvml: Any, every: Sequence[Any], named: str) -> list[Any]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by number, UUID or the beginning of one; as CUDA does, up to the first name that is none."""
    found: list[Any] = []
    for name in (part.strip() for part in named.split(",")):
        if re.fullmatch("[0-9]{1,9}", name):
            gpus = every[int(name) :][:1]
        elif name.startswith("MIG-"):
            gpus = _owner(nvml, name)
        else:
            gpus = [gpu for gpu in every if name.startswith("GPU-") and _text(nvml.nvmlDeviceGetUUID(gpu)).startswith(name)]
        if len(gpus) != 1:
            break
        found += [gpu for gpu in gpus if gpu not in found]
    return found


def _owner(nvml: Any, name: str) -> list[Any]:
    """The GPU that a part of one (MIG) belongs to."""
    try:
        return [nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvml.nvmlDeviceGetHandleByUUID(name))]
    except nvml.NVMLError:
        return []


def _name(nvml: Any, gpu: Any) -> str:
    return _text(nvml.nvmlDeviceGetName(gpu))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _sensors(nvml: Any, gpu: Any, guess: bool) -> list[Sensor]:
    """Of everything that can be asked, what this GPU answers; `guess` where CUDA may count the GPUs in another order."""
    board = f"the whole GPU board ({_name(nvml, gpu)})"
    if guess:
        board += ", a guess: CUDA may count unlike GPUs in another order, unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set"
    energy = SensorMetric(
        "total_energy_mj", "mJ", "lower", "increase", f"energy of {board}, of nothing else", 0.1, 1.0, guess=guess
    )
    power = SensorMetric("total_power_mw", "mW", "lower", "mean", f"power of {board}, as its driver averages it", guess=guess)
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
