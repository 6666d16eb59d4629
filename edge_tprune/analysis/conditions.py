"""What two rows must share to be compared: the machine and its state, the software, the load, the model, the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_tprune.bundle.manifest import Accuracy
from edge_tprune.record.document import BudgetRecord, RunDocument
from edge_tprune.record.settings import RunSettings
from edge_tprune.record.summary import MeterSummary, Summary
from edge_tprune.telemetry.environment import ClockLocks
from edge_tprune.telemetry.state import Clocks, ClockState, MachineState, PowerMode
from edge_tprune.text import count_of, printable

UNKNOWN = "unknown"
NOT_EVALUATED = "not evaluated"

#: What two points in time of one thing must share. The other conditions may be the very change that is judged.
FIXED = (
    "host", "board", "CPU", "CPUs", "device", "power mode", "clocks", "CPU governor", "load", "input", "batch", "model",
)  # fmt: skip


def run_conditions(
    document: RunDocument, state: MachineState | None, engine: Mapping[str, object], summary: Summary | None
) -> dict[str, str]:
    """What all rows of a run must share with the rows they are compared with: label -> value.

    Args:
        document: run.json.
        state: of the machine when the run began; None where that is not known.
        engine: `Engine.info` of the run's engines; {} where that is not known.
        summary: summary.json, or None.
    """
    environment, settings, model = document.environment, document.settings, document.bundle.model
    runtime = settings.runtime
    versions = environment.versions
    version = engine.get("version") or versions.get(runtime) or versions.get(f"{runtime}-gpu") or UNKNOWN
    power_mode = environment.power_mode or (None if state is None else state.power_mode)
    known = {
        "host": environment.hostname,
        "board": environment.board_model,
        "L4T": environment.l4t_release,
        "CPU": environment.cpu_model or environment.machine,
        "CPUs": environment.cpu_count,
        "CPU governor": environment.cpu_governor,
        "device": engine.get("device"),
        "driver": engine.get("driver_cuda"),
        "power mode": None if power_mode is None else _describe_mode(power_mode),
        "clocks": (None if state is None else _describe_clocks(state.clocks)) or _describe_locks(environment.clock_locks),
        "runtime": f"{runtime} {version}",
        "edge-tprune": document.tool_version,
        "threads": settings.threads,
        "isolation": settings.isolation,
        "load": _describe_load(settings),
        "input": None if settings.input is None else settings.input.kind,
        "zero copy": _describe_flag(engine.get("zero_copy")),
        "CUDA graph": _describe_flag(engine.get("cuda_graph")),
        "waiting": _describe_flag(engine.get("wait")),
        "batch": document.bundle.batch,
        "power sensor": None if summary is None or summary.meter is None else _describe_meter(summary.meter),
        "model": model.name,
        "weights": model.weights_sha256[:12],
    }
    return {label: UNKNOWN if value is None else printable(value) for label, value in known.items()}


def data_conditions(budgets: Sequence[BudgetRecord]) -> dict[str, dict[str, str]]:
    """Per budget: the images its accuracy comes from. A budget that was not evaluated goes along with the others of its run."""
    own = {budget.name: _describe_data(budget.accuracy) for budget in budgets}
    evaluated = [data for data in own.values() if data is not None]
    agreed = bool(evaluated) and all(data == evaluated[0] for data in evaluated)
    default = evaluated[0] if agreed else {"eval data": NOT_EVALUATED, "eval data hash": NOT_EVALUATED}
    return {name: data or default for name, data in own.items()}


def _describe_data(accuracy: Accuracy | None) -> dict[str, str] | None:
    """Its name with the number of images, and its hash."""
    if accuracy is None:
        return None
    data = accuracy.data
    return {"eval data": printable(f"{data.name}, {count_of(data.images, 'image')}"), "eval data hash": data.sha256[:12]}


def _describe_load(settings: RunSettings) -> str:
    """How the machine was kept busy: as fast as it goes, or at a camera's rate."""
    if settings.mode != "fixed_rate":
        return "saturation"
    return "fixed rate" if settings.fps is None else f"{settings.fps:g} images/s"


def _describe_meter(meter: MeterSummary) -> str:
    """Which rails power comes from: watts of a module and of a whole board are two different things."""
    return meter.made_of or meter.metric


def _describe_locks(locks: ClockLocks | None) -> str | None:
    """Which clocks were locked."""
    flags = [] if locks is None else [("GPU", locks.gpu), *(("CPU", locked) for locked in locks.cpu)]
    parts = [f"{what} {'locked' if locked else 'free'}" for what, locked in flags if locked is not None]
    return ", ".join(dict.fromkeys(parts)) or None


def _describe_clocks(clocks: Clocks) -> str | None:
    """Which clocks were locked, and where: what they read at that moment is no condition."""
    known = [("GPU", clocks.gpu), *(("CPU", clock) for clock in clocks.cpu)]
    return ", ".join(dict.fromkeys(f"{what} {_describe_lock(clock)}" for what, clock in known if clock is not None)) or None


def _describe_lock(clock: ClockState) -> str:
    """'locked at 1300 MHz', 'up to 1300 MHz'."""
    if clock.max_mhz is None:
        return UNKNOWN
    return f"{'locked at' if clock.locked else 'up to'} {clock.max_mhz:g} MHz"


def _describe_mode(mode: PowerMode) -> str:
    """Name and id: ids mean different modes on different modules, and names are not unique either."""
    if not mode.name:
        return f"id {mode.id}"
    return mode.name if mode.id is None else f"{mode.name} ({mode.id})"


def _describe_flag(value: Any) -> str | None:
    """'yes', 'no', or the text itself."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)
