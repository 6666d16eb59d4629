"""Writing and reading a profile directory. The format is described in profiles/README.md.

A directory appears under its final name with `run.json` and the first line of `samples.jsonl` in it, and every line after that
is one write and one sync: whenever the process dies, what was measured until then can be read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.documents import DocumentKind
from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, sync_directory, write_json

FORMAT = "edge-tprune-profile"
VERSION = 1
RUN = "run.json"
SAMPLES = "samples.jsonl"
KIND = DocumentKind(
    noun="profile",
    format=FORMAT,
    version=VERSION,
    make="Make one with: edge-tprune profile",
    mend="Copy the profile again",
    file=RUN,
    schema=Path(__file__).with_name("run.schema.json"),
)

#: The clock of every `t_ns`, `start_ns` and `latency_ns`.
clock_ns = time.perf_counter_ns


@dataclass(frozen=True)
class Check:
    """What the separate process found about one budget."""

    budget: str
    golden_ok: bool
    golden_max_abs_diff: float | None  #: None where an output was not a finite number, or nothing came out
    load_ms: float | None
    peak_memory_bytes: int | None
    error: str | None  #: why the budget could not be run at all


@dataclass(frozen=True)
class Round:
    """One budget's turn in one round."""

    round: int  #: from 0
    position: int  #: its place in the round's order, from 0
    budget: str
    t_ns: int  #: when timing began
    load_ms: float
    warmup_inferences: int
    warmup_steady: bool | None  #: whether latency had settled when timing began
    start_ns: np.ndarray  #: int64 (inferences,): start of each inference, from `t_ns`
    latency_ns: np.ndarray  #: int64 (inferences,): end-to-end time of each inference

    @property
    def latency_ms(self) -> np.ndarray:
        """float64 (inferences,)."""
        return self.latency_ns / 1e6


@dataclass(frozen=True)
class Reading:
    """One reading of one source's sensors."""

    source: str
    t_ns: int
    read_ns: int
    values: dict[str, float | None]  #: metric -> value


@dataclass(frozen=True)
class Run:
    """A profile that was read back."""

    path: Path
    info: dict[str, Any]  #: run.json
    checks: dict[str, Check]  #: by budget
    rounds: tuple[Round, ...]  #: in the order they ran
    readings: tuple[Reading, ...]
    notes: tuple[str, ...]
    end: str | None  #: "complete", "interrupted", "failed", or None where the process died
    warnings: tuple[str, ...]  #: what a person should know before trusting the numbers

    @property
    def budgets(self) -> list[str]:
        """Names of the run's budgets, in bundle order."""
        return [budget["name"] for budget in self.info["budgets"]]

    def of(self, budget: str) -> list[Round]:
        """The rounds of one budget."""
        return [entry for entry in self.rounds if entry.budget == budget]


class Recorder:
    """The writing end of one profile directory. Created by `Recorder.create`; a context manager."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @classmethod
    def create(cls, out: Path, name: str, run: dict[str, Any]) -> Recorder:
        """Makes `out/<name>` (or `<name>-2`, ... where that exists) with `run` as its run.json.

        Raises:
            UserError: `out` cannot be written.
        """
        KIND.check(run, out)
        draft = out / f".{name}.{run['run_id']}.tmp"
        with clear_write_errors(out):
            draft.mkdir(parents=True)
            try:
                write_json(draft / RUN, run)
                recorder = cls(draft, os.open(draft / SAMPLES, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666))
                try:
                    recorder.append("start", utc=datetime.now(timezone.utc).isoformat())
                    recorder.path = _rename_to_new(draft, out, name)
                except BaseException:
                    recorder.close()
                    raise
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_directory(out)
        return recorder

    def append(self, kind: str, t_ns: int | None = None, **values: Any) -> None:
        """Adds one line to samples.jsonl; when this returns, it is on the disk. `t_ns` is now unless given.

        Raises:
            UserError: no space is left. The lines before this one stay whole.
        """
        line = {"kind": kind, "t_ns": clock_ns() if t_ns is None else t_ns, **values}
        data = (json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n").encode()
        with clear_write_errors(self.path / SAMPLES):
            size = os.fstat(self._handle).st_size
            try:
                while data:  # once, unless the disk is nearly full
                    data = data[os.write(self._handle, data) :]
                os.fsync(self._handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._handle, size)
                raise

    def close(self) -> None:
        """Closes samples.jsonl. A second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def directory_name(started: datetime, bundle: str, hostname: str) -> str:
    """'<UTC time>-<bundle>-<hostname>', safe as a file name."""
    safe = [re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "unnamed" for text in (bundle, hostname)]
    return "-".join([started.strftime("%Y%m%dT%H%M%SZ"), *safe])


def read_run(path: Path | str) -> Run:
    """Reads the profile at `path`, whole or cut short; what is missing is said in `Run.warnings`.

    Raises:
        UserError: not a profile, a newer format, or a file that is damaged anywhere but in its last line.
    """
    path = Path(path)
    try:
        info = KIND.read(path)
    except UserError as error:
        if not path.is_dir() or (path / RUN).exists():
            raise
        raise UserError(f"{error}{_profiles_in(path)}") from error
    try:
        lines = (path / SAMPLES).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"profile {path}: cannot read {SAMPLES} ({error.strerror}). Copy the profile again") from error
    if not lines[-1]:
        lines.pop()
    checks: dict[str, Check] = {}
    rounds: list[Round] = []
    readings: list[Reading] = []
    notes: list[str] = []
    end: str | None = None
    warnings: list[str] = []
    names = {budget["name"] for budget in info["budgets"]}
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            kind = line["kind"]
            if kind == "check":
                check = _check(line)
                checks[check.budget] = check
            elif kind == "round":
                rounds.append(_round(line, names))
            elif kind == "sensors":
                readings.append(Reading(line["source"], line["t_ns"], line["read_ns"], dict(line["values"])))
            elif kind == "note":
                notes.append(str(line["text"]))
            elif kind == "end":
                end = str(line["reason"])
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise UserError(
                    f"profile {path}: line {number} of {SAMPLES} is damaged ({error!r}). Copy the profile again"
                ) from error
            warnings.append(f"the last line of {SAMPLES} was cut short and is left out")
    planned = info["plan"]["rounds"] * len(names)
    if end != "complete":
        why = {None: "was cut off", "interrupted": "was interrupted"}.get(end, end)
        warnings.append(f"the run {why}: {len(rounds)} of {planned} turns were measured")
    for check in checks.values():
        if not check.golden_ok:
            warnings.append(f"budget {check.budget} was not timed: {describe_failure(check)}")
    return Run(path, info, checks, tuple(rounds), tuple(readings), tuple(notes), end, tuple(warnings))


def describe_failure(check: Check) -> str:
    """Why a budget failed its check, in words."""
    if check.error is not None:
        return check.error
    if check.golden_max_abs_diff is None:
        return "its golden outputs are not finite numbers here"
    return f"its golden outputs are off by {check.golden_max_abs_diff:.3g}"


def _check(line: dict[str, Any]) -> Check:
    return Check(
        budget=line["budget"],
        golden_ok=line["golden_ok"],
        golden_max_abs_diff=line["golden_max_abs_diff"],
        load_ms=line["load_ms"],
        peak_memory_bytes=line["peak_memory_bytes"],
        error=line.get("error"),
    )


def _round(line: dict[str, Any], names: set[str]) -> Round:
    start_ns, latency_ns = np.array(line["start_ns"], dtype=np.int64), np.array(line["latency_ns"], dtype=np.int64)
    if line["budget"] not in names or start_ns.shape != latency_ns.shape or start_ns.ndim != 1 or not start_ns.size:
        raise ValueError("not a round of this run")
    return Round(
        round=line["round"],
        position=line["position"],
        budget=line["budget"],
        t_ns=line["t_ns"],
        load_ms=line["load_ms"],
        warmup_inferences=line["warmup_inferences"],
        warmup_steady=line.get("warmup_steady"),
        start_ns=start_ns,
        latency_ns=latency_ns,
    )


def _rename_to_new(draft: Path, out: Path, name: str) -> Path:
    """Renames the directory `draft` to the first free of `out/name`, `out/name-2`, ...; never onto something."""
    count = 1
    while True:
        path = out / (name if count == 1 else f"{name}-{count}")
        count += 1
        if path.exists():
            continue
        try:
            return draft.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def _profiles_in(path: Path) -> str:
    """The hint for someone who named the directory that holds the profiles."""
    inside = sorted(str(file.parent) for file in path.glob(f"[!.]*/{RUN}"))
    return f". Profiles in it: {', '.join(inside[-3:])}" if inside else ""
