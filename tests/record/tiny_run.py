"""Profiles written by hand, and disks that fill up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_tprune.record.document import RunDocument
from edge_tprune.record.lines import EndLine, TurnLine
from edge_tprune.record.log import clock_ns
from edge_tprune.record.writer import Recorder

METHOD = {"name": "evit", "options": {}, "blocks": [1]}
MODEL = {
    "name": "tiny", "weights": "random", "weights_sha256": "a" * 64, "classes": 2, "parameters": 1, "tokens": 5, "prefix_tokens": 1,
    "blocks": 1, "macs": 1, "input": {"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32"},
    "output": {"name": "logits", "shape": [1, 2], "dtype": "float32"},
}  # fmt: skip


def info(**changes: Any) -> dict[str, Any]:
    """A valid run.json of two budgets and two rounds, of version 1."""
    artifact = {"runtime": "onnxruntime", "precision": "fp32", "form": "explicit", "file": "a.onnx", "sha256": "0", "bytes": 1}
    budget = {"requested": None, "schedule": [5], "macs": 1, "macs_share": 1.0, "accuracy": None, "artifact": artifact}
    plan = {"seed": 0, "rounds": 2, "seconds_per_round": 1, "warmup_seconds": 0, "threads": 1, "runtime": "onnxruntime"}
    return {
        "format": "edge-tprune-profile",
        "version": 1,
        "run_id": "r",
        "started_utc": "2025-01-01T00:00:00+00:00",
        "tool_version": "0",
        "bundle": {"name": "b", "fingerprint": "f", "batch": 1, "model": MODEL, "method": METHOD},
        "budgets": [{"name": "a", **budget}, {"name": "b", **budget}],
        "plan": {**plan, "isolation": "", "order": [["a", "b"], ["b", "a"]]},
        "environment": {},
        **changes,
    }


def document(**changes: Any) -> RunDocument:
    """The same as it is written today."""
    return msgspec.convert(info(version=2, **changes), RunDocument)


def turn_line(number: int, budget: str = "a", latency_ns: Sequence[int] = (5, 7, 6)) -> TurnLine:
    starts = [10 * index for index in range(len(latency_ns))]
    return TurnLine(
        t_ns=clock_ns(), round=number, position=0, budget=budget, load_ms=1.0, warmup_inferences=3, warmup_steady=True,
        start_ns=starts, latency_ns=list(latency_ns),
    )  # fmt: skip


def add_turn(recorder: Recorder, number: int, budget: str = "a", latency_ns: Sequence[int] = (5, 7, 6)) -> None:
    recorder.append(turn_line(number, budget, latency_ns))


def write_run(out: Path, rounds: int = 3, end: str | None = "complete") -> Path:
    """A profile with `rounds` turns of budget "a"."""
    with Recorder.create(out, "run", document()) as recorder:
        for number in range(rounds):
            add_turn(recorder, number)
        if end:
            recorder.append(EndLine(t_ns=clock_ns(), reason=end))
    return recorder.path


def in_full_disk(code: str, *arguments: str, size: str = "128k") -> subprocess.CompletedProcess[str]:
    """Runs `code` in a mount namespace of its own, with a small file system at its last argument."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    mount = f"mount -t tmpfs -o size={size} tmpfs {arguments[-1]}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    shell = f'{mount} && exec "$0" -c "$@"'
    command = ["unshare", "-rm", "sh", "-c", shell, sys.executable, code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
