"""What each stage of a method consists of beyond the slice oracle's: nodes, milliseconds and memory traffic, from ONNX Runtime's profiler.

    python -m tests.benchmarks.reduction --stages --methods "zero_tprune bat"

A method's graph and its oracle's run in turn, on one thread each. A stage's figures are those of all nodes of its block except the network's own
layers, less those of the oracle's graph in that block: what scores tokens, chooses among them and moves them, and what the attention takes longer
because its map is wanted or has a bias. "others": the blocks without a stage, where only that bias remains. A node's time is the lower quartile
of all runs: what else runs on a machine adds to it. The profiler adds some microseconds to every node. Memory traffic is
what the nodes read and wrote, weights included.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.files import write_json
from edge_tprune.models.loading import LoadedModel
from edge_tprune.reduction.host import network_shape
from edge_tprune.schedule import NetworkShape
from edge_tprune.telemetry.environment import read_environment
from tests.benchmarks.reduction import open_graphs
from tests.benchmarks.tables import write_table

RUNS = 30
_LAYERS = ("model.", "gemm_", "conv", "Reorder")  # names of the network's own nodes, some of which are ONNX Runtime's
_SHOWN = 4  # operators of a stage that the table names


@dataclass
class Share:
    """What some nodes take together."""

    nodes: int = 0
    milliseconds: float = 0.0
    megabytes: float = 0.0
    operators: dict[str, float] = field(default_factory=dict)  #: milliseconds by operator

    def add(self, other: Share, sign: int = 1) -> None:
        """Adds another share, or takes it off."""
        self.nodes += sign * other.nodes
        self.milliseconds += sign * other.milliseconds
        self.megabytes += sign * other.megabytes
        for operator, milliseconds in other.operators.items():
            self.operators[operator] = self.operators.get(operator, 0.0) + sign * milliseconds


@dataclass(frozen=True)
class Profile:
    """A graph's nodes."""

    milliseconds: float  #: of all nodes
    blocks: Mapping[int, Share]  #: by block, counted from 1: nodes that are no layers of the network


def profile(files: Sequence[Path], image: np.ndarray, runs: int = RUNS) -> list[Profile]:
    """Runs graphs in turn with ONNX Runtime's profiler, each on one thread, and sums up the nodes of each that are no layers of the network."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for number, file in enumerate(files):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.enable_profiling, options.profile_file_prefix = True, f"{folder}/{number}"
            sessions.append(onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))
        for _ in range(runs):
            for session in sessions:
                session.run(None, {session.get_inputs()[0].name: image})
        return [_sum_up(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))) for session in sessions]


def _sum_up(events: Iterable[Mapping[str, Any]]) -> Profile:
    durations: defaultdict[str, list[int]] = defaultdict(list)
    facts: dict[str, Mapping[str, Any]] = {}  # in the order of execution
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        durations[event["name"]].append(event["dur"])
        facts.setdefault(event["name"], event["args"])
    block, total = 0, 0.0
    blocks: defaultdict[int, Share] = defaultdict(Share)
    for name, fact in facts.items():
        milliseconds = float(np.quantile(durations[name], 0.25)) / 1e3
        total += milliseconds
        if name.startswith("model.blocks."):
            block = int(name.split(".")[2]) + 1
        if not name.startswith(_LAYERS):
            moved = sum(int(fact[key]) for key in ("activation_size", "parameter_size", "output_size")) / 1e6
            blocks[block].add(Share(1, milliseconds, moved, {fact["op_name"]: milliseconds}))
    return Profile(total, blocks)


def stages(own: Profile, oracle: Profile, schedule: Sequence[int], shape: NetworkShape) -> dict[str, Share]:
    """What each stage takes beyond the oracle, by "4: 197 to 154", and all other blocks together."""
    found: dict[str, Share] = {}
    counts = (shape.tokens, *schedule)
    last = len(schedule) if shape.saves_last_block(schedule) else None
    for block in range(len(counts)):
        removes = block not in (0, last) and counts[block] < counts[block - 1]
        name = f"{block}: {counts[block - 1]} to {counts[block]}" if removes else "others"
        share = found.setdefault(name, Share())
        share.add(own.blocks.get(block, Share()))
        share.add(oracle.blocks.get(block, Share()), -1)
    return {**{name: share for name, share in found.items() if name != "others"}, "others": found["others"]}


def write_stages(
    loaded: LoadedModel, methods: Sequence[str], budget: float, batches: Sequence[int], exact_savings: bool, folder: Path
) -> None:
    """Prints the stages of some methods, and writes them as `stages.json` and `stages.md`."""
    rows: list[dict[str, Any]] = []
    shape = network_shape(loaded.model)
    with show_progress("stages") as advance:
        for number, batch in enumerate(batches):
            image = np.random.default_rng(0).normal(size=(batch, *loaded.preprocessing.input_size)).astype(np.float32)
            with open_graphs(loaded, batch) as graphs:
                for place, method in enumerate(methods):
                    advance(f"{method}, batch {batch}", number * len(methods) + place, len(batches) * len(methods))
                    schedule = graphs.schedule(method, budget, exact_savings)
                    pair = graphs.beside_oracle(method, budget, exact_savings)
                    own, oracle = profile(pair, image, max(5, RUNS // batch))
                    for stage, share in stages(own, oracle, schedule, shape).items():
                        row = {"batch": batch, "method": method, "tokens": schedule, "stage": stage, **asdict(share)}
                        rows.append({**row, "oracle_milliseconds": oracle.milliseconds})
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "model": loaded.name,
        "budget": budget,
        "exact_savings": exact_savings,
        "runs": RUNS,
        "made_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": asdict(read_environment()),
        "rows": rows,
    }
    write_json(folder / "stages.json", document)
    title = f"{loaded.name}, budget {budget:g}, one thread: beyond the slice oracle"
    write_table(folder / "stages.md", HEADINGS, [cells(row) for row in rows], title, text=("method", "stage", HEADINGS[-1]))
    print_note(f"wrote {folder}/stages.json, stages.md")


HEADINGS = ("batch", "method", "stage", "nodes", "ms", "% of oracle", "MB", "most of it (µs)")


def cells(row: Mapping[str, Any]) -> list[str]:
    """One stage as a row of the table."""
    most = sorted(row["operators"].items(), key=lambda pair: -pair[1])[:_SHOWN]
    share = 100 * row["milliseconds"] / row["oracle_milliseconds"]
    numbers = [f"{row['nodes']}", f"{row['milliseconds']:.2f}", f"{share:.1f}", f"{row['megabytes']:.1f}"]
    return [str(row["batch"]), row["method"], row["stage"], *numbers, ", ".join(f"{name} {1e3 * ms:.0f}" for name, ms in most)]
