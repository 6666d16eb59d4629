"""Plans for the GPU at hand: found in a cache under everything they depend on, or built in a process of their own.

    ~/.cache/edge-tprune/plans/<graph>-<key>.plan        the plan
                               <graph>-<key>.plan.json   its key in full, its SHA-256, and how building it went; written last
                         timing/<key>.timing             TensorRT's timing cache, one per device and version

The cache lies outside the bundle, so that a bundle stays what its manifest says and can be read-only. A plan whose key is another one is
never run: the right one is built beside it. A process of its own, because a builder that runs out of memory is killed, and because memory
that it once took would count as the engine's.

    python -m edge_tprune.runtime.tensorrt.cache '{"graph": ..., ...}'

is that process; it writes one JSON object a line: progress, a warning, the result or an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from edge_tprune.errors import UserError
from edge_tprune.files import clear_write_errors, sha256_file, sha256_json, write_bytes, write_json
from edge_tprune.processes import child_environment
from edge_tprune.runtime.tensorrt.builder import MEMORY_WAY_OUT, BuildError, Compiled, Network, Progress, Settings
from edge_tprune.runtime.tensorrt.inspection import describe_engine, describe_plan
from edge_tprune.runtime.tensorrt.library import load
from edge_tprune.runtime.tensorrt.runner import TensorRTEngine

Warn = Callable[[str], None]

_LAYOUT = 1  #: part of every key: changes when plans of an older edge-tprune must not be used any more
_REPORT_SECONDS = 0.1
_TAIL = 2000  #: bytes of a crashed process's last words that are looked at


@dataclass(frozen=True)
class Source:
    """The graph that a plan is built from."""

    graph: Path
    precision: str  #: "fp32", "fp16", "mixed"
    graph_sha256: str
    weights_sha256: tuple[str, ...]  #: of every weight file that the graph may refer to
    blocks: int
    schedule: tuple[int, ...]  #: what the parsed network must realise


def cache_root() -> Path:
    """Where plans and timing caches are kept: `$XDG_CACHE_HOME/edge-tprune`, by default `~/.cache/edge-tprune`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-tprune"


def plan_key(source: Source, machine: dict[str, Any]) -> dict[str, Any]:
    """Everything that a plan depends on.

    Args:
        source: the graph.
        machine: what identifies the device and its software: `edge_tprune.bundle.engines.machine`.
    """
    return {
        "layout": _LAYOUT,
        **machine,
        "precision": source.precision,
        "graph_sha256": source.graph_sha256,
        "weights_sha256": list(source.weights_sha256),
    }


@dataclass(frozen=True)
class Job:
    """One build, as it is handed to the process that does it."""

    source: Source
    key: dict[str, Any]
    plan: Path  #: where it is written
    settings: Settings
    target: str | None = (
        None  #: the GPU to build for ahead of time; None is the one at hand, on which the plan is then inspected
    )
    timing_cache: Path | None = None

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The other way round."""
        entries = json.loads(text)
        source = entries["source"]
        source |= {"graph": Path(source["graph"]), "weights_sha256": tuple(source["weights_sha256"])}
        timing = entries["timing_cache"]
        return cls(
            Source(**{**source, "schedule": tuple(source["schedule"])}),
            entries["key"],
            Path(entries["plan"]),
            Settings(**entries["settings"]),
            entries["target"],
            Path(timing) if timing else None,
        )


def job_for_device(source: Source, machine: dict[str, Any], settings: Settings | None = None, cache: Path | None = None) -> Job:
    """The build of `source` for the GPU at hand.

    Args:
        source: the graph.
        machine: this device: `edge_tprune.bundle.engines.machine`.
        settings: by default the library's own.
        cache: by default `cache_root()`.
    """
    root, key = cache or cache_root(), plan_key(source, machine)
    name = f"{source.graph.name.removesuffix('.onnx')}-{sha256_json(key)[:16]}.plan"
    timing = root / "timing" / f"{sha256_json(machine)[:16]}.timing"
    return Job(source, key, root / "plans" / name, settings or Settings(), timing_cache=timing)


def find_or_build(job: Job, *, force: bool = False, progress: Progress | None = None, warn: Warn | None = None) -> bool:
    """Sees to it that the plan of `job` is there; True where it had to be built. Two processes never build the same one.

    Args:
        job: the build. A plan of its key that is there already is used with whatever settings it was built, unless `force`.
        force: build anew.
        progress: called while building.
        warn: called with what a person should know.

    Raises:
        UserError: the build failed, or the plan cannot be written.
    """
    if not force and is_whole(job.plan, job.key):
        return False
    with clear_write_errors(job.plan):
        job.plan.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(job.plan.with_name(f".{job.plan.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            (progress or _ignore)("waiting for another process that builds this engine", 0, 0)
            lock.acquire()
    try:
        if not force and is_whole(job.plan, job.key):  # the other process built it
            return False
        for stale in job.plan.parent.glob(
            f".{job.plan.name}*.tmp"
        ):  # of a build that was killed: the lock says that none is at work
            stale.unlink(missing_ok=True)
        for text in build_apart(job, progress)["warnings"]:
            (warn or _ignore)(text)
        return True
    finally:
        lock.release()


def is_whole(plan: Path, key: dict[str, Any]) -> bool:
    """Whether `plan` was built for exactly `key` and is undamaged. Its JSON is written last, so a build that was cut short has none."""
    record = read_record(plan)
    if record is None or record.get("key") != key:
        return False
    try:
        found = plan.stat()
        return found.st_size == record.get("bytes") and _sha256_once(plan, found.st_mtime_ns) == record.get("sha256")
    except OSError:
        return False


@lru_cache(maxsize=64)
def _sha256_once(plan: Path, mtime_ns: int) -> str:
    """Plans are looked up before every turn of a profile, and hashing takes as long as loading."""
    return sha256_file(plan)


def read_record(plan: Path) -> dict[str, Any] | None:
    """What is written beside a plan; None where there is nothing readable."""
    with suppress(OSError, ValueError):
        record = json.loads(record_file(plan).read_text())
        if isinstance(record, dict):
            return record
    return None


def build_apart(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Runs a build in a process of its own and returns the plan's record. Ctrl-C ends that process too.

    Raises:
        UserError: the build failed or its process died.
    """
    command = [sys.executable, "-m", "edge_tprune.runtime.tensorrt.cache", job.to_json()]
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True, env=child_environment())
        assert child.stdout is not None
        result: dict[str, Any] = {}
        try:
            for line in child.stdout:
                message = json.loads(line)
                if "progress" in message:
                    (progress or _ignore)(*message["progress"])
                else:
                    result = message
        finally:
            child.kill()  # where it has not ended by itself, the reader was interrupted
            code = child.wait()
            child.stdout.close()
        if "record" in result:
            record: dict[str, Any] = result["record"]
            return record
        if "error" in result:
            raise BuildError(result["error"])
        words.seek(max(0, words.seek(0, os.SEEK_END) - _TAIL))
        raise BuildError(_last_words(job, code, words.read().decode(errors="replace")))


def _last_words(job: Job, code: int, text: str) -> str:
    """Why a build's process ended without a word of its own."""
    what = f"building the engine of {job.source.graph.name}"
    if code == -signal.SIGKILL or "bad_alloc" in text or "MemoryError" in text:
        return f"{what} ran out of memory: its process was ended. {MEMORY_WAY_OUT}"
    last = (text.strip().splitlines() or ["without a message"])[-1]
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
    return f"{what} failed: its process ended {how} ({last})"


def record_file(plan: Path) -> Path:
    """Where a plan's record lies."""
    return plan.with_name(f"{plan.name}.json")


def _ignore(*_: object) -> None:
    pass


# The build's own process.


def build_here(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Builds, checks and writes one plan in this process, and returns its record.

    Raises:
        UserError: the graph cannot be parsed or built, or keeps other token counts than its schedule says.
    """
    library = load(job.key["runtime"])
    network = Network(library, job.source.graph)
    device_key = sha256_json({name: job.key[name] for name in job.key if name not in _GRAPH_KEYS})
    timing = None if job.timing_cache is None else read_timing_cache(job.timing_cache, device_key)
    compiled = network.compile(
        job.source.precision,
        job.settings,
        target=job.target,
        timing_cache=timing,
        blocks=job.source.blocks,
        progress=progress,
    )
    check_network(compiled.network, job.source)
    record_file(job.plan).unlink(missing_ok=True)
    write_bytes(job.plan, compiled.plan)
    record = _record(job, compiled)
    if job.target is None:
        with TensorRTEngine(job.plan, library, 1, graph=False) as engine:
            record["engine"] = describe_engine(engine.layers())
        record["warnings"] += _precision_warnings(job.source.precision, record["engine"])
    if job.timing_cache is not None and compiled.timing_cache is not None:
        write_timing_cache(job.timing_cache, device_key, compiled.timing_cache)
    write_json(record_file(job.plan), record)
    return record


_GRAPH_KEYS = ("precision", "graph_sha256", "weights_sha256")


def check_network(network: dict[str, Any], source: Source) -> None:
    """Holds what the parser made of the graph against what was asked for.

    Raises:
        BuildError: other token counts, or not one float32 input and output of static shape.
    """
    realised = network["tokens_after_blocks"]
    if realised != list(source.schedule):
        raise BuildError(
            f"{source.graph}: the parsed network keeps {realised} tokens after its blocks, but the schedule says {list(source.schedule)}"
        )
    for role in ("inputs", "outputs"):
        tensors = network[role]
        if len(tensors) != 1 or tensors[0]["dtype"] != "float32" or min(tensors[0]["shape"]) < 1:
            raise BuildError(
                f"{source.graph}: the parsed network's {role} are {tensors}; one of float32 and static shape is needed"
            )


def _record(job: Job, compiled: Compiled) -> dict[str, Any]:
    return {
        "key": job.key,
        "sha256": sha256_file(job.plan),
        "bytes": len(compiled.plan),
        "built_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "build_seconds": compiled.seconds,
        "settings": asdict(job.settings),
        "target": job.target,
        "typing": compiled.typing,
        "network": compiled.network,
        "engine": describe_plan(compiled.plan),
        "skipped_tactics": compiled.skipped_tactics,
        "warnings": list(compiled.warnings),
    }


def _precision_warnings(precision: str, engine: dict[str, Any]) -> list[str]:
    """A wrong flag once gave an FP32 engine with only a warning in the log."""
    if precision != "fp32" and engine["fp16_layers_percent"] == 0:
        return [f"the graph is {precision}, but no layer of the engine gives FP16: it will be as slow as FP32"]
    return []


def read_timing_cache(file: Path, device_key: str) -> bytes:
    """The timing cache kept for this device; empty where there is none, or where it is another device's or damaged.

    The first line is JSON: whose it is, and the SHA-256 of the rest.
    """
    with suppress(OSError, ValueError, AttributeError):
        header, _, blob = file.read_bytes().partition(b"\n")
        written = json.loads(header)
        if written.get("device") == device_key and written.get("sha256") == _sha256(blob):
            return blob
    return b""


def write_timing_cache(file: Path, device_key: str, blob: bytes) -> None:
    """Writes the timing cache atomically. Of two builds at the same time the later one's stays, which holds enough."""
    header = json.dumps({"device": device_key, "sha256": _sha256(blob)}).encode()
    write_bytes(file, header + b"\n" + blob)


def _sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the library's calls last minutes and would hold Ctrl-C back
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: end
    reports: IO[str] = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the library prints to stdout, too
    last = 0.0

    def report(text: str, done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or done == 0:
            last = now
            print(json.dumps({"progress": [text, done, of]}), file=reports)

    try:
        print(json.dumps({"record": build_here(Job.from_json(sys.argv[1]), report)}), file=reports)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=reports)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
