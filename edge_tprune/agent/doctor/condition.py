"""The condition the machine is in: power mode, clocks, memory, disk, wall clock, heat."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from edge_tprune.agent.doctor.finding import Finding
from edge_tprune.telemetry import sysfs
from edge_tprune.telemetry.boards import Board
from edge_tprune.telemetry.state import MachineState

#: Bytes of memory available: with less than the first, loading an engine fails; with less than the second, it may swap.
_MEMORY_NEEDED, _MEMORY_WANTED = 250e6, 1e9
_DISK_NEEDED, _DISK_WANTED = 50e6, 1e9  #: bytes free where profiles and engine files are written
_HOT_C = 90.0


def check_power_mode(board: Board, now: MachineState) -> Iterator[Finding]:
    """Which power mode of nvpmodel is set."""
    mode = now.power_mode
    if mode is not None:
        name = mode.name or "without a name"
        yield Finding("power mode", "ok", f"{name} (id {mode.id}); its name is a cap on clocks, not watts")
    elif board.l4t_release is not None:
        yield Finding("power mode", "unknown", "nvpmodel does not say which one is on", "sudo nvpmodel -q")


def check_clocks(board: Board, now: MachineState) -> Iterator[Finding]:
    """Whether the clocks of CPU and GPU are locked."""
    clocks = [("GPU", now.clocks.gpu), *(("CPU", clock) for clock in now.clocks.cpu)]
    free = [(kind, clock) for kind, clock in clocks if clock is not None and clock.locked is False]
    locked = [(kind, clock) for kind, clock in clocks if clock is not None and clock.locked]
    if free:
        ranges = dict.fromkeys(f"{kind} {clock.min_mhz:.0f} to {clock.max_mhz:.0f} MHz" for kind, clock in free)
        fix = "sudo jetson_clocks" if board.l4t_release else "sudo cpupower frequency-set --governor performance"
        yield Finding("clocks", "warning", f"not locked ({', '.join(ranges)}): latency depends on what the governor does", fix)
    elif locked:
        at = dict.fromkeys(f"{kind} {clock.max_mhz:.0f} MHz" for kind, clock in locked)
        yield Finding("clocks", "ok", f"locked: {', '.join(at)}")
    else:
        yield Finding("clocks", "unknown", "this machine does not report whether its clocks may change")


def check_memory(now: MachineState) -> Iterator[Finding]:
    """Swap in use, and memory that is left."""
    swap = now.swap
    if swap.total_bytes is None:
        yield Finding("swap", "unknown", "the system does not report it")
    elif swap.used_bytes:
        kind = "zram" if swap.zram_devices else "swap"
        fix = "sudo systemctl disable --now nvzramconfig.service" if swap.zram_devices else "sudo swapoff -a"
        yield Finding("swap", "warning", f"{swap.used_bytes / 1e6:.0f} MB of {kind} in use: which can slow down what runs", fix)
    else:
        yield Finding("swap", "ok", "none in use" if swap.total_bytes else "there is none")
    available = now.memory_available_bytes
    if available is None:
        yield Finding("memory", "unknown", "the system does not report it")
        return
    yield _check_amount(
        "memory",
        available,
        "available",
        _MEMORY_NEEDED,
        _MEMORY_WANTED,
        "sudo systemctl isolate multi-user.target   # ends the desktop",
    )


def check_disk(place: Path) -> Iterator[Finding]:
    """Free space where profiles would be written."""
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield Finding("disk", "unknown", f"{place}: {error.strerror}")
        return
    yield _check_amount(
        "disk", free, f"free at {place}", _DISK_NEEDED, _DISK_WANTED, "sudo apt-get clean && sudo journalctl --vacuum-size=50M"
    )


def _check_amount(topic: str, have: float, what: str, needed: float, wanted: float, fix: str) -> Finding:
    text = f"{have / 1e9:.1f} GB {what}" if have >= 1e9 else f"{have / 1e6:.0f} MB {what}"
    if have < needed:
        return Finding(topic, "blocker", f"{text}, and at least {needed / 1e6:.0f} MB are needed", fix)
    return Finding(topic, "ok", text) if have >= wanted else Finding(topic, "warning", f"{text}: little", fix)


def check_time(root: Path) -> Iterator[Finding]:
    """Whether the network has set the wall clock, from the files of the time services. The clock only dates profiles."""
    if sysfs.is_there(root / "run/systemd/timesync/synchronized") or sysfs.text_or_none(root / "run/chrony/chronyd.pid"):
        yield Finding("time", "ok", "set by the network")
    elif sysfs.is_there(root / "run/systemd/timesync"):
        yield Finding(
            "time", "warning", "not set by the network yet: profiles may be dated wrongly", "sudo timedatectl set-ntp true"
        )
    else:
        yield Finding("time", "unknown", "no time service reports whether the clock is right", "timedatectl status")


def check_throttling(now: MachineState) -> Iterator[Finding]:
    """Whether heat or too much current slows the machine down, now or since boot."""
    slowed = [name for name, level in now.cooling_states.items() if level and level > 0]
    alarms = [name for name, on in now.current_alarms.items() if on]
    hot = {name: celsius for name, celsius in now.temperatures_c.items() if celsius is not None and celsius >= _HOT_C}
    if slowed:
        yield Finding(
            "throttling",
            "blocker",
            f"throttled by heat now: {', '.join(slowed)}",
            "sudo jetson_clocks --fan   # and let it cool",
        )
    if alarms:
        yield Finding(
            "throttling",
            "blocker",
            f"over its current limit now: {', '.join(alarms)}",
            "sudo nvpmodel -m ID   # a lower power mode",
        )
    if hot:
        yield Finding("throttling", "warning", "hot: " + ", ".join(f"{name} {celsius:.0f} °C" for name, celsius in hot.items()))
    counted = {name: count for name, count in now.over_current_counts.items() if count}
    counted.update({f"{core} (heat)": count for core, count in now.throttle_counts.items() if count})
    if counted:
        events = ", ".join(f"{name}: {count:.0f}" for name, count in counted.items())
        yield Finding(
            "throttling", "warning", f"it throttled since boot ({events}); a profile records whether it does while measuring"
        )
    elif not (slowed or alarms):
        if now.over_current_counts or now.throttle_counts:
            yield Finding("throttling", "ok", "none since boot")
        elif now.cooling_states:
            yield Finding("throttling", "ok", "none now; no count since boot can be read")
        else:
            yield Finding("throttling", "unknown", "this machine does not report it")
