"""How and on what a run was measured, as lists of names and values for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edge_tprune.analysis.conditions import UNKNOWN
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Profile, Rows
from edge_tprune.statistics import Interval
from edge_tprune.text import printable

#: Conditions that say in which state the machine was.
_STATE = ("power mode", "clocks", "device", "driver", "runtime", "precision", "input", "transfer", "CUDA graph")


def list_measurement(profile: Profile, rows: Rows) -> list[tuple[str, str]]:
    """How a run was measured: (name, value)."""
    plan, bundle = profile.info["plan"], profile.info["bundle"]
    own = [row for row in rows.rows if row.profile is profile]
    counts = sorted({row.inferences for row in own if row.inferences})
    facts = [
        ("Model", f"{own[0].model}, {bundle['model'].get('weights', 'unknown')} weights, batch {bundle['batch']}"),
        ("Method", own[0].method),
        ("Rounds", f"{plan['rounds']}, each budget once per round in an order drawn anew (seed {plan['seed']})"),
        ("Timed", f"{plan['seconds_per_round']:.3g} s per budget and round after {plan['warmup_seconds']:.3g} s of warming up"),
        ("Load", _load(plan)),
        ("Inferences", f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} per budget" if counts else "none"),
        ("Isolation", plan["isolation"]),
        ("Latency", "wall-clock time of one synchronous inference, input in host memory to logits in host memory"),
        ("Peak memory", "growth of a fresh process from before the engine is loaded to after its first inferences"),
        *_power(profile.summary),
        *(("Note", note) for note in profile.notes),
    ]
    return [(name, printable(value)) for name, value in facts]


def _load(plan: Mapping[str, Any]) -> str:
    if plan.get("mode") != "fixed_rate":
        return "inferences back to back"
    return f"{plan['fps']:g} images per second, each due at its own time"


def _power(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How power was measured, where it was, and what measuring cost."""
    watts = METRICS["mean_power_w"]
    sensor, observer = summary.get("sensor"), summary.get("observer") or {}
    if sensor:
        parts = [f"{sensor['metric']} of {sensor['source']}"]
        for key, words in (
            ("made_of", "made of {}"),
            ("interval_s", "a new value every {:g} s"),
            ("step_w", "in steps of {:g} W"),
        ):
            if sensor.get(key) is not None:
                parts.append(words.format(sensor[key]))
        if sensor.get("coverage") is not None:
            parts.append(f"{100 * sensor['coverage']:.0f} % of the expected readings came")
        yield "Power sensor", ", ".join(parts)
    idle = summary.get("idle") or {}
    interval = Interval.from_json(idle.get("power_w"))
    if interval is not None:
        reach = watts.range(interval)
        drift = f", {idle['drift_w']:+.2f} W from before to after" if idle.get("drift_w") is not None else ""
        yield "Idle power", f"{watts.quantity(interval.value)}{f' ({reach})' if reach else ''}{drift}"
    if observer.get("cpu_percent") is not None:
        yield "Cost of measuring", f"{observer['cpu_percent']:.1f} % of one core read the sensors"


def list_environment(profile: Profile, rows: Rows) -> list[tuple[str, str]]:
    """What a run was measured on: (name, value)."""
    environment, plan = profile.info["environment"], profile.info["plan"]
    memory = environment.get("memory_total_bytes")
    versions = environment.get("versions") or {}
    facts = [
        ("Host", environment.get("hostname")),
        ("Board", environment.get("board_model")),
        ("CPU", environment.get("cpu_model")),
        ("CPUs", environment.get("cpu_count")),
        ("CPU governor", environment.get("cpu_governor")),
        ("Memory", None if memory is None else f"{memory / 1e9:.1f} GB"),
        ("Threads", plan["threads"]),
        ("System", ", ".join(str(text) for text in (environment.get("os"), environment.get("kernel")) if text) or None),
        ("L4T", environment.get("l4t_release")),
        ("Python", environment.get("python")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version) or None),
        ("Profile", profile.name),
    ]
    told = [(name, printable(value)) for name, value in facts if value is not None]
    own = next(row for row in rows.rows if row.profile is profile)
    known = {label: value for label in _STATE if (value := own.conditions.get(label, UNKNOWN)) != UNKNOWN}
    return [*told, *((capitalize(label), value) for label, value in known.items())]


def name_machine(profile: Profile) -> str:
    """'NVIDIA Jetson Orin Nano · bench-1'."""
    environment = profile.info["environment"]
    names = (environment.get("board_model") or environment.get("cpu_model"), environment.get("hostname"))
    return printable(" · ".join(str(name) for name in names if name)) or "unknown machine"


def capitalize(text: str) -> str:
    """The text with its first letter in upper case; the others stay what they are."""
    return text[:1].upper() + text[1:]
