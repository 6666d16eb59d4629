"""A live directory shaped like a board's /sys, /proc, /etc and /var, updated in real time.

Its power follows how busy this machine's cores really are (all of them: 1.0), by the law in `law`. Every value appears at the
sensor's own interval; a sensor faster than the 50 ms of the simulation (JetPack 4 has some) is shown at every step. The energy
that was really dissipated is in `simulator/truth.jsonl`: {t_ns, load, total_mj, rails_mj} on the clock of
`time.perf_counter_ns`. The load is constant between two lines, so the energy between them is a straight line.

Faults are asked for in `simulator/faults.json` (a list of {kind, file, seconds, value}, `file` being a pattern over paths
below the directory) or with `inject`; `simulator/faults.jsonl` says when each began and ended. Their
kinds are described in `faults`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections import Counter
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edge_tprune.documents import LARGEST_BYTES
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, files_below, read_regular, write_json
from edge_tprune.simulator.boards import board_law
from edge_tprune.simulator.faults import ActiveFault, FileFault
from edge_tprune.simulator.law import Heat, Physics, StepLoad, rail_sensors
from edge_tprune.simulator.layout import NEW, BoardFiles
from edge_tprune.simulator.truth import TRUTH
from edge_tprune.telemetry import boards
from edge_tprune.telemetry.host import cpu_ticks
from edge_tprune.telemetry.source import Clock, NoReading

STATE = "simulator/state.json"  #: there while the simulation runs: {board, pid, began_ns, seed}
FAULTS = "simulator/faults.json"
FAULT_LOG = "simulator/faults.jsonl"
FILES = "simulator/files.json"  #: the names of all files that it wrote in the beginning

_TICK_NS = 50_000_000  #: the load is measured this often: five of the kernel's own ticks
_KEEP_NS = 5 * 10**9  #: no sensor looks back further
#: Full match with what is there for a moment, or for a lock.
_LEFT_BEHIND = r"simulator/\..*"
_PARTS = ("sys", "proc", "etc", "var", "simulator")


class Tree:
    """The directory of one simulated board. `step` advances it; `run` does so in real time.

    Args:
        directory: new, empty, or left by an earlier simulation.
        board: a key of `boards.BOARDS`.
        now_ns: the time it begins at.
        seed: of the sensors' phases and noise.
        noise_steps: standard deviation of a shown value in steps of its sensor.
        locked: clocks are locked at their highest.

    Raises:
        UserError: no such board; the directory has something else in it; it cannot be written.
    """

    def __init__(
        self, directory: Path, board: str, now_ns: int, *, seed: int = 0, noise_steps: float = 0.5, locked: bool = False
    ) -> None:
        self.directory = directory
        self.law = board_law(board)
        self.load = StepLoad(begin_ns=now_ns)
        self.physics = Physics(self.law, self.load, now_ns)
        self._total = boards.board(board).total
        self._files = BoardFiles(directory, self.law, locked=locked)
        self._now_ns = self._changed_ns = now_ns
        self._energy_mj = dict.fromkeys((rail.label for rail in self.law.rails), 0.0)
        self._heat = Heat(now_ns)
        self._ended: list[ActiveFault] = []
        self._requests: tuple[tuple[int, int, int], list[FileFault]] = (
            (0, 0, 0),
            [],
        )  # the file's version, and what it asks for
        self._sensors = rail_sensors(self.law, self.physics, seed=seed, noise_steps=noise_steps)
        self._written_ns: dict[str, int] = {}
        with clear_write_errors(directory):
            self._clear()
            self._files.write_all()
            self._files.write_load(0.0, self._heat.celsius)
            self._show_rails()
            write_json(directory / FILES, [name for name in files_below(directory) if name.split("/")[0] in _PARTS])
            self._truth = _open_append(directory / TRUTH)
            self._fault_log = _open_append(directory / FAULT_LOG)
            self._write_truth(0.0)
            write_json(directory / STATE, {"board": board, "pid": os.getpid(), "began_ns": now_ns, "seed": seed})

    def close(self) -> None:
        """Ends every fault and the simulation; the files stay as they are."""
        for fault in list(self._files.faults):
            self._end(fault)
        self._close_pipes()
        (self.directory / STATE).unlink(missing_ok=True)
        for handle in (self._truth, self._fault_log, self._lock):
            os.close(handle)

    def step(self, now_ns: int, load: float) -> None:
        """Time has gone on to `now_ns`, and since the last step the machine's load was `load`."""
        before_ns, self._now_ns = self._now_ns, now_ns
        self.load.set(before_ns, load)
        total_mj = self.energy_mj()
        for rail in self.law.rails:
            self._energy_mj[rail.label] += self.physics.rail_energy_mj(rail, before_ns, now_ns)
        self._heat.warm(now_ns, self.energy_mj() - total_mj)
        self._write_truth(load)
        self._update_faults()
        self._show_rails()
        if now_ns - self._changed_ns >= _TICK_NS:
            self._changed_ns = now_ns
            self._files.write_load(load, self._heat.celsius)
        self.load.forget(now_ns - _KEEP_NS)

    def next_ns(self) -> int:
        """When the next step should be: at the next tick, or sooner where a sensor has a new value before it."""
        slow = (sensor for sensor in self._sensors.values() if sensor.interval_ns >= _TICK_NS)
        news = (sensor.conversion_ns(self._now_ns) + sensor.interval_ns for sensor in slow)
        ends = (fault.end_ns for fault in self._files.faults if fault.end_ns is not None)
        soonest = min([self._now_ns + _TICK_NS, *news, *ends])
        return max(soonest, self._now_ns + _TICK_NS // 5)

    def energy_mj(self) -> float:
        """What the board (its total) has dissipated since the beginning."""
        return sum(self._energy_mj[label] for label in self._total)

    def inject(self, fault: FileFault) -> None:
        """Begins a fault now.

        Raises:
            UserError: no file matches.
        """
        matching = [name for name in self._files.texts if fnmatchcase(name, fault.file)]
        if not matching:
            raise UserError(f"no file of the simulated board matches {fault.file!r}")
        end_ns = None if fault.seconds is None else self._now_ns + round(fault.seconds * 1e9)
        self._log("begin", fault)
        if fault.kind == "renumber":
            self._files.renumber(matching)
            return
        active = ActiveFault(fault, matching, end_ns)
        self._files.faults.append(active)
        for name in matching:
            active.apply(self.directory / name, self._files.texts[name], self._files.replace)

    def _clear(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()) and not (self.directory / TRUTH).exists():
            raise UserError(f"{self.directory} is not empty: choose a new directory for the simulated board")
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"a simulated board runs in {self.directory} already: choose another directory") from None
        if (other := _foreign_file(self.directory)) is not None:
            os.close(self._lock)
            raise UserError(
                f"{self.directory} holds {other}, which no simulation wrote: move it away, or choose a new directory"
            )
        (self.directory / STATE).unlink(missing_ok=True)
        for part in _PARTS:
            shutil.rmtree(self.directory / part, ignore_errors=True)
        (self.directory / "simulator").mkdir()

    def _show_rails(self) -> None:
        """Writes the rails whose sensor has a new value."""
        for label, sensor in self._sensors.items():
            since_ns = sensor.conversion_ns(self._now_ns)
            if self._written_ns.get(label) != since_ns:
                self._written_ns[label] = since_ns
                self._files.write_rail(sensor.rail, sensor.registers(self._now_ns))

    def _write_truth(self, load: float) -> None:
        line = {"t_ns": self._now_ns, "load": load, "total_mj": self.energy_mj(), "rails_mj": self._energy_mj}
        os.write(self._truth, (json.dumps(line) + "\n").encode())

    def _close_pipes(self) -> None:
        """Closes pipes one step after their fault ended: a reader that found one just before must still get an answer."""
        while self._ended:
            self._ended.pop().close()

    def _update_faults(self) -> None:
        self._close_pipes()
        for active in [fault for fault in self._files.faults if fault.end_ns is not None and fault.end_ns <= self._now_ns]:
            self._end(active)
        try:
            found = (self.directory / FAULTS).stat()
        except OSError:
            return
        version = (found.st_mtime_ns, found.st_size, found.st_ino)
        if version == self._requests[0]:
            return
        try:
            asked = [FileFault(**entry) for entry in json.loads(read_regular(self.directory / FAULTS, LARGEST_BYTES))]
        except (OSError, ValueError, TypeError, RecursionError, UserError) as error:
            self._log("refused", error=str(error))
            self._requests = version, self._requests[1]
            return
        known, self._requests = self._requests[1], (version, asked)
        for gone in (Counter(known) - Counter(asked)).elements():  # the same fault may be asked for twice
            for active in [active for active in self._files.faults if active.fault == gone][:1]:
                self._end(active)
        for fault in (Counter(asked) - Counter(known)).elements():
            try:
                self.inject(fault)
            except UserError as error:
                self._log("refused", fault, error=str(error))

    def _end(self, active: ActiveFault) -> None:
        self._files.faults.remove(active)
        for name in active.names:
            active.before_end(self.directory / name, self._files.texts[name])
            self._files.put(name, self._files.texts.pop(name))
        self._ended.append(active)
        self._log("end", active.fault)

    def _log(self, event: str, fault: FileFault | None = None, **more: Any) -> None:
        line = {"t_ns": self._now_ns, "event": event, **(asdict(fault) if fault else {}), **more}
        os.write(self._fault_log, (json.dumps(line) + "\n").encode())


def _foreign_file(directory: Path) -> str | None:
    """A file that the simulation which ran there did not write; None where there is none, or where an older version did not say what it writes."""
    if not (directory / FILES).exists():
        return None
    try:
        wrote = json.loads(read_regular(directory / FILES, LARGEST_BYTES))
        own = {_numbered(name) for name in (*wrote, FILES, TRUTH, FAULT_LOG, FAULTS, STATE, NEW)}
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{directory / FILES} is damaged: choose a new directory for the simulated board") from None
    places = (name for name in files_below(directory) if name.split("/")[0] in _PARTS)
    return next((name for name in places if _numbered(name) not in own and not re.fullmatch(_LEFT_BEHIND, name)), None)


def _numbered(name: str) -> str:
    """A name whatever number its chip has, which a fault may change."""
    return re.sub(r"hwmon\d+|iio:device\d+", "*", name)


def is_running(directory: Path) -> bool:
    """Whether a simulation is at work there: it holds a lock, which ends with it."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (directory / STATE).exists()
    finally:
        os.close(handle)
    return False


def run(tree: Tree, *, seconds: float | None = None, clock_ns: Clock = time.perf_counter_ns) -> None:
    """Keeps a tree alive for some time, or until it is interrupted, with the load that this machine really has."""
    begin_ns, ticks = clock_ns(), _ticks()
    load = 0.0
    while seconds is None or clock_ns() - begin_ns < seconds * 1e9:
        time.sleep(max(0, tree.next_ns() - clock_ns()) / 1e9)
        now = _ticks()
        if now[1] > ticks[1]:
            load = min(1.0, max(0.0, (now[0] - ticks[0]) / (now[1] - ticks[1])))
            ticks = now
        tree.step(clock_ns(), load)


def _ticks() -> tuple[int, int]:
    try:
        return cpu_ticks()
    except (NoReading, ValueError):
        raise UserError("/proc/stat does not report how busy this machine is, which a simulated board needs") from None


def _open_append(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
