"""One budget in a process of its own: does it answer as the bundle says, and how much memory does it take?

    python -m edge_tprune.agent.probe BUNDLE BUDGET --runtime onnxruntime --threads 2

prints one JSON object, a `Probed`. A fresh process, because an engine does not give all its memory back.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.engines import prepare
from edge_tprune.bundle.golden import check_golden
from edge_tprune.bundle.guard import Guard
from edge_tprune.bundle.predictor import load_predictor
from edge_tprune.errors import UserError
from edge_tprune.processes import child_environment, signal_name
from edge_tprune.record.lines import Check
from edge_tprune.record.settings import TOLERANCE
from edge_tprune.runtime.engine import runtime_version


class Probed(msgspec.Struct, kw_only=True, frozen=True):
    """What the process prints."""

    check: Check
    file: str | None = None  #: what to open instead, where the engine failed and a higher precision passed


def check_budget(
    bundle: Bundle,
    budget: str,
    *,
    runtime: str,
    threads: int,
    precision: str | None = None,
    tolerance: float = TOLERANCE,
    warn: Callable[[str], None] = lambda text: None,
) -> tuple[Check, Path | None]:
    """Runs `probe` on one budget in a fresh process. A budget that cannot be run is a failed check, not an exception.

    An engine that fails has its fault named, and higher precisions are tried, in a second process; `warn` is called before, because with TensorRT that
    builds engines.

    Returns:
        The check, and what to open the engine from where that is not what `prepare` gives: a higher precision passed, in part or as a whole
        (`Check.fallback`). The check's numbers are of that engine then, from a process of its own.
    """
    command = [sys.executable, "-m", "edge_tprune.agent.probe", str(bundle.path.absolute()), budget]
    command += ["--runtime", runtime, "--threads", str(threads), "--tolerance", repr(tolerance)]
    command += [] if precision is None else ["--precision", precision]
    first = _run_probe(command, budget).check
    if first.failure is None:
        return first, None
    slow = "" if runtime == "onnxruntime" else ". This builds engines and takes minutes"
    warn(f"budget {budget}: {first.failure}. Looking for the block at fault, and for a precision that is right{slow}")
    second = _run_probe([*command, "--fall-back"], budget)
    if second.check.error is not None:  # what was found at first stands
        return msgspec.structs.replace(first, failure=f"{first.failure}; no fall-back: {second.check.error}"), None
    if second.file is None:
        return msgspec.structs.replace(first, fallback=second.check.fallback), None
    third = _run_probe([*command, "--file", second.file], budget).check
    return msgspec.structs.replace(third, fallback=second.check.fallback), Path(second.file)


def _run_probe(command: list[str], budget: str) -> Probed:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # what is left running would keep pipes open
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=child_environment(), check=False)
        for file in (out, err):
            file.seek(0)
        printed, said = out.read(), err.read()
    if done.returncode == 0:
        with suppress(ValueError):  # what Python prints as it starts there comes before
            return msgspec.json.decode(printed.rstrip().rpartition(b"\n")[2], type=Probed)
    if done.returncode < 0:
        name = signal_name(-done.returncode)
        return Probed(
            check=failed_check(budget, f"its process was ended by {name} (the system kills programs when memory runs out)")
        )
    lines = said.decode(errors="replace").strip().splitlines()
    return Probed(check=failed_check(budget, lines[-1] if lines else f"its process ended with {done.returncode}"))


def failed_check(budget: str, error: str) -> Check:
    """The check of a budget that could not be run."""
    return Check(budget=budget, golden_ok=False, golden_max_abs_diff=None, load_ms=None, peak_memory_bytes=None, error=error)


def probe(
    bundle: Bundle,
    budget: str,
    *,
    runtime: str,
    threads: int,
    precision: str | None = None,
    tolerance: float = TOLERANCE,
    file: Path | None = None,
    fall_back: bool = False,
) -> Probed:
    """Loads one budget's engine in this process, runs the golden inputs, outliers included, and compares.

    Memory is counted from after the runtime's library was loaded, so it is what the graph costs: weights, buffers, threads. What to open is
    `file`, or what `prepare` gives. With `fall_back` an engine that fails has its fault named, and others in higher precision are tried.

    Raises:
        UserError: the engine cannot be loaded, or takes other inputs than the golden ones.
    """
    kind, precision_of_graph = bundle.manifest.model.output.name, bundle.budget(budget).artifact(runtime, precision).precision
    opened = file or prepare(bundle, budget, runtime, precision)
    golden = bundle.golden()
    runtime_version(runtime)
    peak_memory = _PeakMemory()
    begin = time.perf_counter()
    with load_predictor(bundle, budget, opened, runtime, precision, threads) as model:
        load_ms = (time.perf_counter() - begin) * 1e3
        result = check_golden(model.run, golden, budget, kind, precision_of_graph, tolerance)
        info = msgspec.to_builtins(model.info)
        peak = peak_memory.grown_bytes()
    check = Check(
        budget=budget,
        golden_ok=result.passed,
        golden_max_abs_diff=_finite(result.difference),
        load_ms=load_ms,
        peak_memory_bytes=peak,
        engine=info,
        outliers={name: _finite(pair[0]) for name, pair in result.outliers.items()} or None,
        failure=None if result.passed else result.describe(),
    )
    if result.passed or not fall_back:
        return Probed(check=check)
    guard = Guard(bundle, budget, runtime, precision_of_graph, threads, tolerance)
    fallback, other = guard.fall_back(result)
    return Probed(check=msgspec.structs.replace(check, fallback=fallback), file=None if other is None else str(other))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


class _PeakMemory:
    """The growth of this process's peak resident memory from here on, where Linux reports it."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        self._before = _resident_bytes()

    def grown_bytes(self) -> int | None:
        before, after = self._before, _resident_bytes()
        if before is None or after is None:
            return None
        if after[1] == before[1] and before[1] > before[0]:
            return None  # the old peak hides the new one
        return after[1] - before[0]


def _resident_bytes() -> tuple[int, int] | None:
    """(resident now, peak resident) of this process; None where the system does not report them."""
    try:
        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    except OSError:
        return None
    kib = {words[0]: int(words[1]) for words in lines if words and words[0] in ("VmRSS:", "VmHWM:")}
    return (kib["VmRSS:"] * 1024, kib["VmHWM:"] * 1024) if len(kib) == 2 else None


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_tprune.agent.probe", description="Check one budget and its memory.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("budget")
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--fall-back", action="store_true")
    options = parser.parse_args()
    try:
        bundle = Bundle.open(options.bundle, verify=False)  # the caller did, and hashing takes as long as all the rest
        found = probe(
            bundle,
            options.budget,
            runtime=options.runtime,
            precision=options.precision,
            threads=options.threads,
            tolerance=options.tolerance,
            file=options.file,
            fall_back=options.fall_back,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
