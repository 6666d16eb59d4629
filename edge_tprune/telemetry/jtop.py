"""jtop (jetson-stats): its service knows every board, and what it knows needs no root here.

The package is optional, and AGPL; importing it changes how the whole process starts others (from version 7 on), and its client
runs threads. So it lives in a process of its own: this module run as a program, which writes one JSON line per update. The
process that measures never imports it.

Its `avg` is (power + previous) / 2, not a mean: it is not used.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.boards import INPUT_RAILS, Board
from edge_tprune.telemetry.gpu import CLOCK as GPU_CLOCK
from edge_tprune.telemetry.gpu import EMC_CLOCK
from edge_tprune.telemetry.gpu import LOAD as GPU_LOAD
from edge_tprune.telemetry.host import SWAP
from edge_tprune.telemetry.program import ProgramSource, Report
from edge_tprune.telemetry.source import Clock
from edge_tprune.telemetry.tegrastats import EMC_LOAD, MEMORY_USED
from edge_tprune.telemetry.thermal import OFFLINE_C, PLAUSIBLE_C, temperature_metric, zone_name

Json = dict[Any, Any]  # a part of an update: versions 3 to 7 differ, so everything in it is looked at before it is used

SOCKETS = ("run/jtop.sock", "var/run/jtop.sock")  #: of the service, below the root
_INTERVAL_S = 0.5  #: faster is unstable


def service_socket(root: Path = Path("/")) -> str | None:
    """The path of the service's socket; None where it does not run."""
    return next((f"/{path}" for path in SOCKETS if sysfs.is_there(root / path)), None)


def jtop_source(board: Board, *, clock_ns: Clock = time.perf_counter_ns, first_line_s: float = 10.0) -> ProgramSource | None:
    """The source "jtop"; None where jetson-stats is not installed or its service does not run.

    Args:
        board: says what the total is made of.
        clock_ns: stamps the updates.
        first_line_s: how long to wait for the first of them.
    """
    if service_socket() is None or importlib.util.find_spec("jtop") is None:
        return None
    command = [sys.executable, "-m", __name__]
    return ProgramSource("jtop", command, parse, board, interval_s=_INTERVAL_S, clock_ns=clock_ns, first_line_s=first_line_s)


def parse(line: str) -> Report:
    """What one update says; nothing is raised.

    Args:
        line: JSON of {power, gpu, memory, temperature} as versions 3 to 7 of jtop have them, or of {error}.
    """
    report = Report()
    try:
        update = json.loads(line)
    except (ValueError, RecursionError):
        return report
    if not isinstance(update, dict):
        return report
    rails = _rails(update.get("power"))
    for label, rail in rails.items():
        if rail.get("online", True):
            report.add_rail(label, "jtop", _number(rail.get("power")))
    _take_gpu(update.get("gpu"), report)
    memory = _dict(update.get("memory"))
    for metric, name in ((MEMORY_USED, "RAM"), (SWAP, "SWAP")):
        used_kib = _number(_dict(memory.get(name)).get("used"))
        if used_kib is not None:
            report.add(metric, used_kib * 1024)
    emc = _dict(memory.get("EMC"))
    for metric, value in ((EMC_LOAD, _number(emc.get("val"))), (EMC_CLOCK, _number(emc.get("cur")))):
        if value is not None:
            report.add(metric, value if metric is EMC_LOAD else value / 1000)  # kHz
    for name, zone in _dict(update.get("temperature")).items():
        if metric_name := zone_name(str(name)):
            _take_temperature(metric_name, zone, report)
    return report


def _rails(power: Any) -> dict[str, Json]:
    """Rails by label. From 4.x on {rail: {label: ...}, tot: ...}; in 3.x a pair (total, {label: ...}) with `cur` for power.

    `tot` is a rail only where the board measures its total; otherwise it is a sum, which `total_sensor` computes with its parts stated.
    """
    if isinstance(power, list) and len(power) == 2:
        rails, total = _dict(power[1]), {}
    else:
        rails, total = _dict(_dict(power).get("rail")), _dict(_dict(power).get("tot"))
    found = {str(label): _dict(rail) for label, rail in rails.items()}
    found = {label: {**rail, "power": rail.get("power", rail.get("cur"))} for label, rail in found.items()}
    if (name := total.get("name")) in INPUT_RAILS:
        found.setdefault(name, total)
    return found


def _take_gpu(gpu: Any, report: Report) -> None:
    """The first GPU of {name: {status: {load}, freq: {cur}}}; load in percent, clock in kHz. 3.x has {name: {val, frq}}."""
    for device in _dict(gpu).values():
        device = _dict(device)
        load = _number(_dict(device.get("status")).get("load", device.get("val")))
        clock_khz = _number(_dict(device.get("freq")).get("cur", device.get("frq")))
        if load is not None:
            report.add(GPU_LOAD, load, high=100)
        if clock_khz:
            report.add(GPU_CLOCK, clock_khz / 1000)
        return


def _take_temperature(name: str, zone: Any, report: Report) -> None:
    """{temp, online} from 4.x on, a number before."""
    celsius = _number(zone.get("temp") if isinstance(zone, dict) else zone)
    if celsius is None:
        return
    metric = temperature_metric(name)
    report.add(metric, celsius, *PLAUSIBLE_C)
    if metric.name in report.gaps and (celsius <= OFFLINE_C or (isinstance(zone, dict) and zone.get("online") is False)):
        report.gaps[metric.name] = "offline"


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _report(interval_s: float) -> None:
    """Writes a line per update until the service goes quiet. This is the only place that imports jtop."""
    from jtop import jtop

    with jtop(interval=interval_s) as client:
        while client.ok():
            line = json.dumps(
                {name: _part_of_update(client, name) for name in ("power", "gpu", "memory", "temperature")}, default=str
            )
            print(line, flush=True)


def _part_of_update(client: Any, name: str) -> Any:
    """One part of an update; some versions fail on some boards ('load' on Thor before 7.1.5), and the rest is still good."""
    try:
        value = getattr(client, name)
        return dict(value) if hasattr(value, "items") else value
    except Exception as error:
        return {"error": repr(error)}


if __name__ == "__main__":
    try:
        _report(_INTERVAL_S)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)
    except Exception as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)
