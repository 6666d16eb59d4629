"""How and on what a run was measured, as lists of names and values for the page."""

from __future__ import annotations

from collections.abc import Iterator

from edge_tprune.analysis.conditions import UNKNOWN
from edge_tprune.analysis.metrics import METRICS
from edge_tprune.analysis.table import Profile, Rows
from edge_tprune.record.settings import RunSettings
from edge_tprune.record.summary import Summary
from edge_tprune.text import printable

#: Conditions that say in which state the machine was.
_STATE = ("power mode", "clocks", "device", "driver", "runtime", "precision", "input", "transfer", "CUDA graph")


def list_measurement(profile: Profile, rows: Rows) -> list[tuple[str, str]]:
    """How a run was measured: (name, value)."""
    settings, bundle = profile.document.settings, profile.document.bundle
    own = [row for row in rows.rows if row.profile is profile]
    counts = sorted({row.inferences for row in own if row.inferences})
    facts = [
        ("Model", f"{own[0].model}, {bundle.model.weights} weights, batch {bundle.batch}"),
        ("Method", own[0].method),
        ("Rounds", f"{settings.rounds}, each budget once per round in a random order (seed {settings.seed})"),
        ("Timed", f"{settings.seconds_per_round:.3g} s per turn after {settings.warmup_seconds:.3g} s of warming up"),
        ("Load", _describe_load(settings)),
        ("Inferences", f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} per budget" if counts else "none"),
        ("Isolation", settings.isolation),
        ("Latency", "wall-clock time of one synchronous inference, input in host memory to output in host memory"),
        ("Peak memory", "growth of a fresh process from before the engine is loaded to after its first inferences"),
        *(() if profile.summary is None else _list_power(profile.summary)),
        *(("Note", note) for note in profile.notes),
    ]
    return [(name, printable(value)) for name, value in facts]


def _describe_load(settings: RunSettings) -> str:
    if settings.mode != "fixed_rate" or settings.fps is None:
        return "inferences back to back"
    return f"{settings.fps:g} images per second, each due at its own time"


def _list_power(summary: Summary) -> Iterator[tuple[str, str]]:
    """How power was measured, where it was, and what measuring cost."""
    watts, meter, idle = METRICS["mean_power_w"], summary.meter, summary.idle
    if meter is not None:
        parts = [f"{meter.metric} of {meter.source}"]
        parts += [f"made of {meter.made_of}"] if meter.made_of else []
        parts += [] if meter.interval_s is None else [f"a new value every {meter.interval_s:g} s"]
        parts += [] if meter.step_w is None else [f"in steps of {meter.step_w:g} W"]
        parts += [] if meter.coverage is None else [f"{100 * meter.coverage:.0f} % of the expected readings came"]
        yield "Power sensor", ", ".join(parts)
    if idle.power_w is not None:
        reach = watts.range(idle.power_w)
        drift = "" if idle.drift_w is None else f", {idle.drift_w:+.2f} W from before to after"
        yield "Idle power", f"{watts.quantity(idle.power_w.value)}{f' ({reach})' if reach else ''}{drift}"
    if summary.observer is not None:
        yield "Cost of measuring", f"{summary.observer.cpu_percent:.1f} % of one core read the sensors"


def list_environment(profile: Profile, rows: Rows) -> list[tuple[str, str]]:
    """What a run was measured on: (name, value)."""
    environment = profile.document.environment
    memory = environment.memory_total_bytes
    facts = [
        ("Host", environment.hostname),
        ("Board", environment.board_model),
        ("CPU", environment.cpu_model),
        ("CPUs", environment.cpu_count),
        ("CPU governor", environment.cpu_governor),
        ("Memory", None if memory is None else f"{memory / 1e9:.1f} GB"),
        ("Threads", profile.document.settings.threads),
        ("System", ", ".join(text for text in (environment.os, environment.kernel) if text) or None),
        ("L4T", environment.l4t_release),
        ("Python", environment.python),
        ("Versions", ", ".join(f"{name} {version}" for name, version in environment.versions.items() if version) or None),
        ("Profile", profile.name),
    ]
    known = [(name, printable(value)) for name, value in facts if value is not None]
    own = next(row for row in rows.rows if row.profile is profile)
    states = {label: value for label in _STATE if (value := own.conditions.get(label, UNKNOWN)) != UNKNOWN}
    return [*known, *((capitalize(label), value) for label, value in states.items())]


def name_machine(profile: Profile) -> str:
    """'NVIDIA Jetson Orin Nano · bench-1'."""
    environment = profile.document.environment
    names = (environment.board_model or environment.cpu_model, environment.hostname)
    return printable(" · ".join(name for name in names if name)) or "unknown machine"


def capitalize(text: str) -> str:
    """The text with its first letter in upper case; the others stay what they are."""
    return text[:1].upper() + text[1:]
