"""What two rows must share to be compared: the machine and its state, the software, the load, the model, the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_tprune.text import printable

UNKNOWN = "unknown"
NOT_EVALUATED = "not evaluated"

#: What two points in time of one thing must share. The other conditions may be the very change that is judged.
FIXED = (
    "host", "board", "CPU", "CPUs", "device", "power mode", "clocks", "CPU governor", "load", "input", "batch", "model",
)  # fmt: skip


def run_conditions(
    info: Mapping[str, Any], state: Mapping[str, Any], engine: Mapping[str, Any], summary: Mapping[str, Any]
) -> dict[str, str]:
    """What all rows of a run must share with the rows they are compared with: label -> value.

    Args:
        info: run.json.
        state: `telemetry.machine.state` when the run began; {} where that is not known.
        engine: `Engine.info` of the run's engines; {} where that is not known.
        summary: summary.json.
    """
    environment, bundle, plan = {**state, **info["environment"]}, info["bundle"], info["plan"]
    versions = environment.get("versions") or {}
    runtime = plan["runtime"]
    version = engine.get("version") or versions.get(runtime) or versions.get(f"{runtime}-gpu") or UNKNOWN
    model = bundle["model"]
    known = {
        "host": environment.get("hostname"),
        "board": environment.get("board_model"),
        "L4T": environment.get("l4t_release"),
        "CPU": environment.get("cpu_model") or environment.get("machine"),
        "CPUs": environment.get("cpu_count"),
        "CPU governor": environment.get("cpu_governor"),
        "device": engine.get("device"),
        "driver": engine.get("driver_cuda"),
        "power mode": _name(environment.get("power_mode")),
        "clocks": _locks(environment),
        "runtime": f"{runtime} {version}",
        "edge-tprune": info.get("tool_version"),
        "threads": plan["threads"],
        "isolation": plan["isolation"],
        "load": _load(plan),
        "input": _name((plan.get("input") or {}).get("kind")),
        "zero copy": _name(engine.get("zero_copy")),
        "CUDA graph": _name(engine.get("cuda_graph")),
        "waiting": _name(engine.get("wait")),
        "batch": bundle["batch"],
        "power sensor": _sensor(summary.get("sensor")),
        "model": model.get("name"),
        "weights": (model.get("weights_sha256") or "")[:12] or None,
    }
    return {label: UNKNOWN if value is None else printable(value) for label, value in known.items()}


def data_conditions(budgets: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Per budget: the images its accuracy comes from. A budget that was not evaluated goes along with the others of its run."""
    own = {entry["name"]: _describe_data(entry["accuracy"]) for entry in budgets}
    evaluated = [data for data in own.values() if data is not None]
    agreed = bool(evaluated) and all(data == evaluated[0] for data in evaluated)
    default = evaluated[0] if agreed else {"eval data": NOT_EVALUATED, "eval data hash": NOT_EVALUATED}
    return {name: data or default for name, data in own.items()}


def _describe_data(accuracy: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Its name with the number of images, and its hash where that was recorded."""
    if accuracy is None:
        return None
    data = accuracy.get("data")
    record: Mapping[str, Any] = data if isinstance(data, Mapping) else {"name": data}
    name, images = record.get("name") or UNKNOWN, record.get("images", accuracy.get("images"))
    return {
        "eval data": printable(name if images is None else f"{name}, {images} images"),
        "eval data hash": printable(record.get("sha256") or UNKNOWN)[:12],
    }


def _load(plan: Mapping[str, Any]) -> str:
    """How the machine was kept busy: as fast as it goes, or at a camera's rate."""
    if plan.get("mode") != "fixed_rate":
        return "saturation"
    return "fixed rate" if plan.get("fps") is None else f"{plan['fps']:g} images/s"


def _sensor(sensor: Any) -> str | None:
    """Which rails power comes from: watts of a module and of a whole board are two different things."""
    return sensor.get("made_of") or sensor.get("metric") if isinstance(sensor, Mapping) else None


def _locks(environment: Mapping[str, Any]) -> str | None:
    """Which clocks were locked, and where: what they read at that moment is no condition."""
    clocks = environment.get("clocks")
    if isinstance(clocks, Mapping):
        cores = [("CPU", each) for each in clocks.get("cpu") or ()]
        parts = [f"{what} {_lock(clock)}" for what, clock in (("GPU", clocks.get("gpu")), *cores) if clock]
    else:
        locks = environment.get("clock_locks") or {}
        flags = [("GPU", locks.get("gpu")), *(("CPU", each) for each in locks.get("cpu") or ())]
        parts = [f"{what} {'locked' if locked else 'free'}" for what, locked in flags if locked is not None]
    return ", ".join(dict.fromkeys(parts)) or None


def _lock(clock: Mapping[str, Any]) -> str:
    """'locked at 1300 MHz', 'up to 1300 MHz'."""
    if clock.get("max_mhz") is None:
        return UNKNOWN
    return f"{'locked at' if clock.get('locked') else 'up to'} {clock['max_mhz']:g} MHz"


def _name(value: Any) -> str | None:
    """A state as one text: a name where it has one, else everything it says."""
    if isinstance(value, Mapping):
        if value.get("name"):  # ids mean different modes on different modules, and names are not unique either
            return str(value["name"]) if value.get("id") is None else f"{value['name']} ({value['id']})"
        return ", ".join(f"{key} {_name(of)}" for key, of in sorted(value.items())) or None
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_name(each)) for each in value) or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)
