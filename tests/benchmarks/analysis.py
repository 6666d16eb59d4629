"""How long it takes, and how much memory, to load a day of measuring and to sum it up: `make bench`.

A profile with ten million latencies (24 hours at 8.6 ms) is written into a temporary directory, and every reader gets a process of its
own, so that peak memory is that reader's. The target: `load_rows` within 10 s and 1 GB on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_tprune.cli.terminal import Heading, Table, print_table
from edge_tprune.record.document import KIND, VERSION
from edge_tprune.record.lines import SAMPLES
from edge_tprune.record.summary import SUMMARY
from tests.record.tiny_run import METHOD, MODEL

LIMIT_S, LIMIT_MB = 10.0, 1000.0
BUDGETS = {"1.0": 10.4e6, "0.8": 8.6e6, "0.65": 7.4e6, "0.5": 6.2e6}  # median latency in ns


def write_profile(path: Path, samples: int, per_turn: int = 2000) -> None:
    """A profile of `samples` latencies in turns of `per_turn`, the budgets in turn."""
    path.mkdir()
    rounds = max(2, samples // per_turn // len(BUDGETS))
    (path / "run.json").write_text(json.dumps(_run(rounds)))
    (path / SUMMARY).write_text(json.dumps({"format": "edge-tprune-summary", "version": 2, "budgets": {}}))
    rng = np.random.default_rng(0)
    with (path / SAMPLES).open("w") as stream:
        stream.write('{"kind":"start","t_ns":0,"utc":"2026-01-01T00:00:00+00:00"}\n')
        for turn in range(rounds * len(BUDGETS)):
            index, position = divmod(turn, len(BUDGETS))
            name, median = list(BUDGETS.items())[position]
            latency_ns = (median * rng.lognormal(0, 0.1, per_turn)).astype(np.int64)
            line = {
                "kind": "round", "t_ns": turn * 10**11, "round": index, "position": position, "budget": name, "load_ms": 50.0,
                "warmup_inferences": 5, "warmup_steady": True, "end_ns": turn * 10**11 + int(latency_ns.sum()),
                "start_ns": (np.cumsum(latency_ns) - latency_ns).tolist(), "latency_ns": latency_ns.tolist(),
            }  # fmt: skip
            stream.write(json.dumps(line, separators=(",", ":")) + "\n")
        stream.write('{"kind":"end","t_ns":9,"reason":"complete"}\n')


def _run(rounds: int) -> dict[str, Any]:
    artifact = {"runtime": "onnxruntime", "precision": "fp32", "form": "attention-op", "file": "x", "sha256": "0", "bytes": 1}
    return {
        "format": KIND.format,
        "version": VERSION,
        "run_id": "0",
        "started_utc": "2026-01-01T00:00:00+00:00",
        "tool_version": "0",
        "bundle": {"name": "b", "fingerprint": "0", "batch": 1, "model": {**MODEL, "tokens": 197}, "method": METHOD},
        "budgets": [
            {
                "name": name, "requested": float(name), "schedule": [int(197 * float(name))], "macs": 1, "macs_share": float(name),
                "accuracy": None, "artifact": artifact,
            }
            for name in BUDGETS
        ],
        "plan": {
            "seed": 0, "rounds": rounds, "seconds_per_round": 17, "warmup_seconds": 1, "threads": 2, "runtime": "onnxruntime",
            "isolation": "one engine at a time", "order": [list(BUDGETS)] * rounds,
        },
        "environment": {},
    }  # fmt: skip


def ours(path: Path) -> None:
    """What `compare` does before it prints: rows with percentiles, intervals and speed-ups."""
    from edge_tprune.analysis.loading import load_rows

    assert len(load_rows(path)) == len(BUDGETS)


def polars_alone(path: Path) -> None:
    """One query over the whole file: percentiles per budget, no intervals."""
    import polars as pl

    schema = {"kind": pl.String, "budget": pl.String, "latency_ns": pl.List(pl.Int64)}
    turns = pl.scan_ndjson(path / SAMPLES, schema=schema).filter(pl.col("kind") == "round")
    values = pl.col("latency_ns")
    percentiles = [values.quantile(share, "equiprobable").alias(str(share)) for share in (0.5, 0.95, 0.99)]
    turns.select("budget", "latency_ns").explode("latency_ns").group_by("budget").agg(percentiles).collect(engine="streaming")


def duckdb_alone(path: Path) -> None:
    """The same query in DuckDB."""
    import duckdb

    duckdb.sql("SET preserve_insertion_order = false")
    columns = "{kind: 'VARCHAR', budget: 'VARCHAR', latency_ns: 'BIGINT[]'}"
    duckdb.sql(
        "SELECT budget, quantile_disc(value, [0.5, 0.95, 0.99]) FROM (SELECT budget, unnest(latency_ns) AS value FROM "
        f"read_json('{path / SAMPLES}', format = 'newline_delimited', columns = {columns}) WHERE kind = 'round') GROUP BY 1"
    ).fetchall()


READERS: dict[str, Callable[[Path], None]] = {
    "load_rows": ours,
    "Polars, one query": polars_alone,
    "DuckDB, one query": duckdb_alone,
}


def main() -> None:
    """Times every reader in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--read", nargs=2, metavar=("READER", "PROFILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        reader, path = arguments.read
        begin = time.perf_counter()
        READERS[reader](Path(path))
        seconds = time.perf_counter() - begin
        print(json.dumps([seconds, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "profile"
        write_profile(path, arguments.samples)
        size = (path / SAMPLES).stat().st_size / 1e6
        rows = []
        title = f"{arguments.samples / 1e6:g} million latencies, {size:.0f} MB of JSON (target: {LIMIT_S:g} s, {LIMIT_MB:g} MB)"
        for reader in READERS:
            command = [sys.executable, "-m", "tests.benchmarks.analysis", "--read", reader, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                rows.append([reader, done.stderr.strip().splitlines()[-1], "", ""])
                continue
            seconds, cpu_seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
            rows.append([reader, f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{megabytes:.0f}"])
        print_table(Table(list(map(Heading, ("reader", "s", "CPU s", "peak MB"))), rows, title))


if __name__ == "__main__":
    main()
