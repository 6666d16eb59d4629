"""Builds one engine file in a process of its own: a builder that runs out of memory is killed, and memory that it once took would count
as the engine's.

    python -m edge_tprune.runtime.tensorrt.build_process '{"source": ..., ...}'

is that process; it writes one JSON object a line: progress, then the record or an error.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_tprune.errors import UserError
from edge_tprune.files import sha256_file, write_bytes
from edge_tprune.processes import child_environment, signal_name
from edge_tprune.runtime.tensorrt.builder import MEMORY_WAY_OUT, BuildError, BuiltEngine, Network, Progress
from edge_tprune.runtime.tensorrt.inspection import describe_engine, describe_engine_file
from edge_tprune.runtime.tensorrt.library import load
from edge_tprune.runtime.tensorrt.record import (
    EngineDescription,
    EngineKey,
    EngineRecord,
    EngineSettings,
    NetworkDescription,
    encode_record,
    encode_timing_cache,
    read_timing_cache,
    record_file,
)
from edge_tprune.runtime.tensorrt.runner import TensorRTEngine

_REPORT_SECONDS = 0.1
_TAIL = 2000  #: bytes of a crashed process's last words that are looked at


@dataclass(frozen=True)
class GraphSource:
    """The graph that an engine file is built from."""

    graph: Path
    precision: str  #: "fp32", "fp16", "mixed"
    graph_sha256: str
    weights_sha256: tuple[str, ...]  #: of every weight file that the graph may refer to
    blocks: int
    schedule: tuple[int, ...]  #: what the parsed network must realise


@dataclass(frozen=True)
class EngineBuild:
    """One build, as it is handed to the process that does it."""

    source: GraphSource
    key: EngineKey  #: where it names a target, the file is for a GPU that need not be here, and is not loaded afterwards
    file: Path  #: where it is written
    settings: EngineSettings
    timing_cache: Path | None = None

    def to_json(self) -> str:
        """For the command line."""
        return msgspec.json.encode(self, enc_hook=str).decode()

    @classmethod
    def from_json(cls, text: str) -> EngineBuild:
        """The other way round."""
        return msgspec.json.decode(text, type=cls, dec_hook=_path)


def _path(kind: type, value: Any) -> Path:
    if kind is not Path:
        raise NotImplementedError(kind)
    return Path(value)


class _Message(msgspec.Struct, omit_defaults=True):
    """A line of the build's process."""

    progress: tuple[str, int, int] | None = None
    record: EngineRecord | None = None
    error: str | None = None


def build_in_process(build: EngineBuild, progress: Progress | None = None) -> EngineRecord:
    """Runs a build in a process of its own and returns the engine file's record. Ctrl-C ends that process too.

    Raises:
        BuildError: the build failed or its process died.
    """
    command = [sys.executable, "-m", "edge_tprune.runtime.tensorrt.build_process", build.to_json()]
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True, env=child_environment())
        assert child.stdout is not None
        last = _Message()
        try:
            for line in child.stdout:
                try:
                    message = msgspec.json.decode(line, type=_Message)
                except ValueError:  # what Python prints as it starts there
                    continue
                if message.progress is None:
                    last = message
                elif progress is not None:
                    progress(*message.progress)
        finally:
            child.kill()  # where it has not ended by itself, the reader was interrupted
            code = child.wait()
            child.stdout.close()
        if last.record is not None:
            return last.record
        if last.error is not None:
            raise BuildError(last.error)
        words.seek(max(0, words.seek(0, os.SEEK_END) - _TAIL))
        raise BuildError(_last_words(build, code, words.read().decode(errors="replace")))


def _last_words(build: EngineBuild, code: int, text: str) -> str:
    """Why a build's process ended without a word of its own."""
    what = f"building the engine of {build.source.graph.name}"
    if code == -signal.SIGKILL or "bad_alloc" in text or "MemoryError" in text:
        return f"{what} ran out of memory: its process was ended. {MEMORY_WAY_OUT}"
    last = (text.strip().splitlines() or ["without a message"])[-1]
    how = f"by {signal_name(-code)}" if code < 0 else f"with {code}"
    return f"{what} failed: its process ended {how} ({last})"


# The build's own process.


def build_here(build: EngineBuild, progress: Progress | None = None) -> EngineRecord:
    """Builds, checks and writes one engine file in this process, and returns its record.

    Raises:
        UserError: the graph cannot be parsed or built, or keeps other token counts than its schedule says.
    """
    source, key = build.source, build.key
    library = load(key.runtime)
    network = Network(library, source.graph)
    timing = None if build.timing_cache is None else read_timing_cache(build.timing_cache, key.platform_digest)
    built = network.compile(
        source.precision,
        build.settings,
        target=key.target,
        timing_cache=timing,
        blocks=source.blocks,
        progress=progress,
    )
    check_network(built.network, source)
    record_file(build.file).unlink(missing_ok=True)
    write_bytes(build.file, built.data)
    became = describe_engine_file(built.data)
    warnings = list(built.warnings)
    if key.target is None:
        with TensorRTEngine(build.file, library, 1, graph=False) as engine:
            became = describe_engine(engine.layers())
        warnings += _precision_warnings(source.precision, became)
    if build.timing_cache is not None and built.timing_cache is not None:
        # Of two builds at the same time the later one's stays, which holds enough.
        write_bytes(build.timing_cache, encode_timing_cache(key.platform_digest, built.timing_cache))
    record = _record(build, built, became, warnings)
    write_bytes(record_file(build.file), encode_record(record))
    return record


def check_network(network: NetworkDescription, source: GraphSource) -> None:
    """Holds what the parser made of the graph against what was asked for.

    Raises:
        BuildError: other token counts, or not one float32 input and output of static shape.
    """
    if network.tokens_after_blocks != source.schedule:
        raise BuildError(
            f"{source.graph}: the parsed network keeps {list(network.tokens_after_blocks)} tokens after its blocks, but the schedule "
            f"says {list(source.schedule)}"
        )
    for role, tensors in (("inputs", network.inputs), ("outputs", network.outputs)):
        if len(tensors) != 1 or tensors[0].dtype != "float32" or min(tensors[0].shape) < 1:
            seen = ", ".join(f"{tensor.name} ({tensor.dtype} {list(tensor.shape)})" for tensor in tensors) or "none"
            raise BuildError(
                f"{source.graph}: the parsed network's {role} are {seen}; one of float32 and static shape is needed"
            )


def _record(build: EngineBuild, built: BuiltEngine, became: EngineDescription | None, warnings: list[str]) -> EngineRecord:
    return EngineRecord(
        key=build.key,
        sha256=sha256_file(build.file),
        bytes=len(built.data),
        built_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=built.seconds,
        settings=build.settings,
        target=build.key.target,
        typing=built.typing,
        network=built.network,
        engine=became,
        skipped_tactics=built.skipped_tactics,
        warnings=tuple(warnings),
    )


def _precision_warnings(precision: str, became: EngineDescription) -> list[str]:
    """A wrong flag once gave an FP32 engine with only a warning in the log."""
    if precision != "fp32" and became.fp16_layers_percent == 0:
        return [f"the graph is {precision}, but no layer of the engine gives FP16: it will be as slow as FP32"]
    return []


def _reporter(reports: IO[str]) -> Callable[[str, int, int], None]:
    """Writes progress lines, not more often than a person can read."""
    last = 0.0

    def report(text: str, done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS or done == 0:
            last = now
            _send(reports, _Message(progress=(text, done, of)))

    return report


def _send(reports: IO[str], message: _Message) -> None:
    print(msgspec.json.encode(message).decode(), file=reports)


def _main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the library's calls last minutes and would hold Ctrl-C back
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: end
    reports: IO[str] = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the library prints to stdout, too
    try:
        record = build_here(EngineBuild.from_json(sys.argv[1]), _reporter(reports))
    except UserError as error:
        _send(reports, _Message(error=str(error)))
        return 2
    _send(reports, _Message(record=record))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
