"""What two rows must share to be compared: the machine and its state, the software, the load, the model, the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "unknown"
NOT_EVALUATED = "not evaluated"

#: Conditions of the place and the question. Two points in time must share these; the others may be the very change that is judged.
FIXED = (
    "host", "board", "CPU", "CPUs", "GPU", "power mode", "clocks", "CPU governor", "load", "power sensor",
    "batch", "model", "eval data", "eval data hash",
)  # fmt: skip


def clean(value: Any) -> str:
    """Text from a file, safe to show: what could steer a terminal or a layout becomes '�'."""
    return "".join(letter if letter.isprintable() else "�" for letter in str(value))


def run_conditions(info: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    """What all rows of a run must share with the rows they are compared with: label -> value."""
    environment, bundle, plan = info["environment"], info["bundle"], info["plan"]
    versions = environment.get("versions") or {}
    runtime = plan["runtime"]
    version = versions.get(runtime) or versions.get(f"{runtime}-gpu") or UNKNOWN
    model = bundle["model"]
    known = {
        "host": environment.get("hostname"),
        "board": environment.get("board_model") or _name(environment.get("board")),
        "L4T": environment.get("l4t_release"),
        "CPU": environment.get("cpu_model") or environment.get("machine"),
        "CPUs": environment.get("cpu_count"),
        "CPU governor": environment.get("cpu_governor"),
        "GPU": _name(environment.get("gpu")),
        "GPU driver": environment.get("gpu_driver"),
        "power mode": _name(environment.get("power_mode")),
        "clocks": _name(environment.get("clocks")),
        "runtime": f"{runtime} {version}",
        "edge-tprune": info.get("tool_version"),
        "threads": plan["threads"],
        "isolation": plan["isolation"],
        "load": _load(plan),
        "transfer": _name(plan.get("transfer")),
        "batch": bundle["batch"],
        "power sensor": _sensor(summary.get("sensor")),
        "model": model.get("name"),
        "weights": (model.get("weights_sha256") or "")[:12] or None,
    }
    return {label: UNKNOWN if value is None else clean(value) for label, value in known.items()}


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
        "eval data": clean(name if images is None else f"{name}, {images} images"),
        "eval data hash": clean(record.get("sha256") or UNKNOWN)[:12],
    }


def _load(plan: Mapping[str, Any]) -> str:
    """How the machine was kept busy: as fast as it goes, or at a camera's rate."""
    if plan.get("mode") != "fixed_rate":
        return "saturation"
    return "fixed rate" if plan.get("fps") is None else f"{plan['fps']:g} images/s"


def _sensor(sensor: Any) -> str | None:
    """Which rails power comes from: watts of a module and of a whole board are two different things."""
    return sensor.get("made_of") or sensor.get("metric") if isinstance(sensor, Mapping) else None


def _name(value: Any) -> str | None:
    """A state as one text: a name where it has one, else everything it says."""
    if isinstance(value, Mapping):
        named = value.get("name") or value.get("key")
        return str(named) if named else ", ".join(f"{key} {_name(of)}" for key, of in sorted(value.items())) or None
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_name(each)) for each in value) or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)
