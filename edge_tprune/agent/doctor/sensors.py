"""Which sensors can be read: power rails and what their total is, the GPU, jtop."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_tprune.agent.doctor.finding import Finding
from edge_tprune.agent.doctor.runtimes import installed_versions, pip_command
from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.boards import Board
from edge_tprune.telemetry.gpu import gpu_devfreq, gpu_source
from edge_tprune.telemetry.machine import open_sources
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.state import MachineState

_GPU_NODES = ("nvhost-gpu", "nvhost-ctrl-gpu", "nvgpu/igpu0/ctrl", "nvmap", "nvidia0", "nvidiactl")


def check_rails(root: Path, board: Board, now: MachineState) -> Iterator[Finding]:
    """The power rails, and what the energy will be computed from."""
    rails = now.rails
    for label, rail in rails.items():
        if rail.power_mw is None:
            yield Finding("rails", "warning", f"{label}: {rail.gap}", _permission_fix(rail.gap))
            continue
        interval = (
            "how often it changes is not known"
            if rail.interval_s is None
            else f"a new value every {rail.interval_s * 1e3:.0f} ms"
        )
        step = "" if rail.step_mw is None else f", in steps of {rail.step_mw:.3g} mW"
        yield Finding("rails", "ok", f"{label} {rail.power_mw / 1e3:.2f} W, {interval}{step}")
    present = board.match_rails(rails)
    missing = [rail for rail in board.rails if rail not in present]
    if rails and missing:
        yield Finding(
            "rails", "warning", f"missing, though this board should have them: {', '.join(missing)}", "sudo modprobe ina3221"
        )
    totals = _totals(root)
    of_gpu = [metric for name, metric in totals if name.startswith("nvml")]
    if of_gpu:
        yield Finding("energy", "ok", f"of engines of TensorRT: {of_gpu[0].help}")
    of_all = [metric for name, metric in totals if not name.startswith("nvml")]
    if of_all or not of_gpu:
        yield _check_total(of_all, has_rails=bool(rails), is_jetson=board.l4t_release is not None)


def _check_total(totals: Sequence[SensorMetric], *, has_rails: bool, is_jetson: bool) -> Finding:
    """What the energy of everything that runs here is computed from, a graphics card's apart."""
    if totals:
        return Finding("energy", "warning" if totals[0].guess else "ok", totals[0].help)
    if has_rails:
        text = "no total: edge-tprune does not know which of these rails add up to the whole board, so no energy is reported"
        return Finding("energy", "warning", text)
    text = "no power sensor that this user can read: no energy is reported"
    return Finding("energy", "warning", text, "sudo modprobe ina3221") if is_jetson else Finding("energy", "note", text)


def _totals(root: Path) -> list[tuple[str, SensorMetric]]:
    """The metrics of a whole machine's or device's power or energy with their sources, the most trusted first."""
    sources = open_sources(root)
    try:
        return [
            (source.name, metric)
            for source in sources
            for metric in source.metrics
            if metric.name in ("total_power_mw", "total_energy_mj")
        ]
    finally:
        for source in sources:
            source.close()


def _permission_fix(gap: str | None) -> str | None:
    return (
        "sudo chmod a+r /sys/class/hwmon/hwmon*/{in,curr}*_input" if gap and ("ermission" in gap or "EACCES" in gap) else None
    )


def check_gpu(root: Path, board: Board, live: bool) -> Iterator[Finding]:
    """Whether the GPU's load and clock can be read, and whether this user may use it."""
    if board.l4t_release is None and gpu_devfreq(root) is None:
        return
    names = [metric.name for metric in gpu_source(root).metrics]
    missing = [what for what, name in (("load", "gpu_load_percent"), ("clock", "gpu_frequency_mhz")) if name not in names]
    if missing:
        yield Finding("GPU", "warning", f"its {' and '.join(missing)} cannot be read: no such file for this board")
    else:
        yield Finding("GPU", "ok", f"load and clock can be read ({getattr(gpu_devfreq(root), 'name', '')})")
    if "emc_frequency_mhz" not in names:
        yield Finding("GPU", "note", "only root may read the memory's clock: it is left out")
    nodes = [path for name in _GPU_NODES if sysfs.is_there(path := root / "dev" / name)]
    closed = [path for path in nodes if not os.access(path, os.R_OK | os.W_OK)] if live else []
    if closed:
        yield Finding(
            "permissions",
            "warning",
            f"this user may not use {', '.join(map(str, closed))}",
            'sudo usermod -aG video,render "$USER"   # then log in again',
        )


def check_jtop(root: Path, now: MachineState, live: bool) -> Iterator[Finding]:
    """jtop is optional: most of what it reports is read directly."""
    socket, system = now.jtop.socket, installed_versions(root, "jetson-stats")
    client = _client_version("jetson-stats") if live else (system[0] if system else None)
    restart = "sudo systemctl restart jtop.service"
    if socket is None and client is None:
        yield Finding("jtop", "note", "not installed: nothing here depends on it")
    elif socket is None:
        yield Finding("jtop", "warning", f"jetson-stats {client} is installed, but its service does not run", restart)
    elif live and not os.access(socket, os.R_OK | os.W_OK):
        yield Finding(
            "jtop",
            "warning",
            f"this user may not use its service at {socket}",
            'sudo usermod -aG jtop "$USER"   # then log in again',
        )
    elif client is None:
        yield Finding("jtop", "note", "its service runs, and its Python client is not installed here", _client_fix(system))
    elif system and _minor(client) != _minor(system[0]):
        text = f"its service is {system[0]} and the client here is {client}: they work together only within one minor version"
        yield Finding("jtop", "warning", text, _client_fix(system))
    else:
        yield Finding("jtop", "ok", f"service runs, client {client}")


def _client_fix(system: list[str]) -> str:
    return pip_command(f"jetson-stats=={system[0]}" if system else "jetson-stats")


def _client_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
