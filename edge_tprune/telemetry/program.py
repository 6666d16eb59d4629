"""Sensors that another program reads and reports line by line: tegrastats, jtop."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from edge_tprune.processes import child_environment, end_process
from edge_tprune.telemetry.boards import Board
from edge_tprune.telemetry.metric import SensorMetric
from edge_tprune.telemetry.rails import power_metric, total_sensor
from edge_tprune.telemetry.source import LARGEST_READING, NOT_REPORTED, Clock, NoReading, Reading

_LONGEST_LINE = 1 << 16
_QUIET_INTERVALS = 4  #: a program that wrote no line for this many intervals is quiet
_END_S = 2.0


@dataclass
class Report:
    """What one line says."""

    values: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, SensorMetric] = field(default_factory=dict)  #: what the values and gaps are
    rails: dict[str, SensorMetric] = field(default_factory=dict)  #: the power metrics among them, by the rail's label
    unknown: list[str] = field(default_factory=list)  #: words that were not understood

    def add(self, metric: SensorMetric, value: float | None, low: float = 0.0, high: float = float("inf")) -> None:
        """Adds a value, or a gap where it is None, no number, or outside of what can be."""
        if metric.name in self.metrics:
            return  # the first of two with the same name
        self.metrics[metric.name] = metric
        if value is None:
            self.gaps[metric.name] = NOT_REPORTED
        elif not (low <= value <= min(high, LARGEST_READING)):
            self.gaps[metric.name] = f"implausible: {value:g}"
        else:
            self.values[metric.name] = value

    def add_rail(self, label: str, chip: str, power_mw: float | None) -> None:
        """Adds the power of a rail."""
        metric = power_metric(label, chip, None, None)
        self.rails[label] = metric
        self.add(metric, power_mw, -1e6, 1e6)


class ProgramSource:
    """A source whose readings are the newest line of a running program, stamped with the time the line came.

    Args:
        name: of the source.
        command: writes one report per line, each as soon as it has one.
        parse: parses a line; never raises.
        board: says what the total is made of.
        interval_s: how often the program was asked to report.
        clock_ns: stamps the lines.
        first_line_s: how long to wait for the first line. Without one, the source has no metrics.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        parse: Callable[[str], Report],
        board: Board,
        *,
        interval_s: float,
        clock_ns: Clock = time.perf_counter_ns,
        first_line_s: float = 5.0,
    ) -> None:
        self.name = name
        self.metrics: tuple[SensorMetric, ...] = ()
        self._parse = parse
        self._clock_ns = clock_ns
        self._quiet_ns = round(_QUIET_INTERVALS * interval_s * 1e9)
        self._latest: tuple[int, str] | None = None
        self._came = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                start_new_session=True,
            )
        if self._process is None:
            return
        self._listener = threading.Thread(target=self._listen, args=(self._process,), name=name, daemon=True)
        self._listener.start()
        try:
            self._came.wait(first_line_s)
        except BaseException:  # interrupted, and nobody has this object yet to close it
            self.close()
            raise
        first = parse(self._latest[1]) if self._latest else Report()
        self._total = total_sensor(board, first.rails)
        metrics = [*first.metrics.values(), *(self._total.metrics if self._total else ())]
        # The chip may be slower still, but what comes through the program is never newer than its last report.
        self.metrics = tuple(replace(metric, interval_s=interval_s) for metric in metrics)
        if not self.metrics:
            self.close()

    def read(self) -> Reading:
        """The newest line's values; gaps where it lacks them, where it is old, or where the program has ended."""
        now_ns, latest = self._clock_ns(), self._latest
        if self._process is None or latest is None or not self._listener.is_alive():
            return self._empty_reading(now_ns, f"{self.name} has ended")
        t_ns, line = latest
        if now_ns - t_ns > self._quiet_ns:
            return self._empty_reading(now_ns, f"{self.name} has been quiet for {(now_ns - t_ns) / 1e9:.1f} s")
        report = self._parse(line)
        if self._total:
            try:
                self._total.read(report.values, report.gaps)
            except NoReading as error:
                report.gaps[self._total.metrics[0].name] = str(error)
        values = {metric.name: report.values[metric.name] for metric in self.metrics if metric.name in report.values}
        gaps = {
            metric.name: report.gaps.get(metric.name, "not in this line")
            for metric in self.metrics
            if metric.name not in report.values
        }
        return Reading(t_ns, 0, values, gaps)

    def wait(self, timeout_s: float) -> bool:
        """Waits for the next line; whether it came (or the program ended) in time."""
        self._came.clear()
        return self._came.wait(timeout_s)

    def close(self) -> None:
        """Ends the program."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        end_process(process, _END_S)
        self._listener.join(_END_S)

    def _empty_reading(self, t_ns: int, reason: str) -> Reading:
        return Reading(t_ns, 0, {}, {metric.name: reason for metric in self.metrics})

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        stream = process.stdout
        if stream is None:
            return
        with stream:
            while data := stream.readline(_LONGEST_LINE):
                self._latest = self._clock_ns(), data.decode(errors="replace")
                self._came.set()
        self._came.set()
