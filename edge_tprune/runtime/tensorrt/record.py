"""What is written beside an engine file: everything that it depends on, how building it went, and what it became."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from edge_tprune.documents import InvalidDocument, decode
from edge_tprune.errors import UserError
from edge_tprune.files import read_regular, sha256_file, sha256_json

MOST_LEVEL = 5
_MOST_BYTES = 16_000_000


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine file is built for and with: this device, or (`target`) a GPU that need not be here.

    All Orin modules call their GPU "Orin", and tactics are chosen at the clocks of the build: so module and power mode count, too.
    """

    runtime: str  #: "tensorrt" or "tensorrt-rtx"
    version: str  #: the library's
    target: str | None = None  #: "sm86"; null for this device, which the following describe
    device: str | None = None  #: the GPU's name
    sm: str | None = None  #: its compute capability, "8.7"
    module: str | None = None  #: the board's
    machine: str | None = None  #: the processor's architecture
    os: str | None = None  #: L4T's release, or the operating system
    power_mode: dict[str, int | str | None] | None = None  #: id and name


class EngineKey(Platform, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that an engine file depends on. One whose key is another one is never run."""

    layout: int
    precision: str
    graph_sha256: str
    weights_sha256: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the key."""
        return sha256_json(msgspec.to_builtins(self))

    @property
    def platform_digest(self) -> str:
        """SHA-256 of the platform alone, whose builds may share measured tactics."""
        return sha256_json({field: getattr(self, field) for field in Platform.__struct_fields__})


@dataclass(frozen=True)
class EngineSettings:
    """How an engine file is built; None leaves it to the library."""

    workspace_mb: int | None = None  #: most scratch memory (10^6 bytes) that a tactic may ask for
    optimization_level: int | None = None  #: 0 (build fast) to 5 (search longest)

    def __post_init__(self) -> None:
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UserError(f"a workspace of {self.workspace_mb} MB is out of range: give 1 or more")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= MOST_LEVEL:
            raise UserError(f"optimisation level {self.optimization_level} is out of range: give 0 to {MOST_LEVEL}")


class NetworkTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of a parsed network."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class NetworkDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What TensorRT's parser made of a graph."""

    layers: int
    inputs: tuple[NetworkTensor, ...]
    outputs: tuple[NetworkTensor, ...]
    tokens_after_blocks: tuple[int | None, ...]  #: what each block's MLP works on; null where it cannot be read
    operations: dict[str, dict[str, int]]  #: kind -> precision -> how many
    attention: tuple[str | None, ...]
    """Per block: "operator" (ONNX's own), "fusable" (softmax with one consumer, which TensorRT can fuse), or "map is used" (by a
    reduction, which forbids it)."""


class EngineDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine became; null is unknown."""

    layers: int | None
    fp16_layers_percent: float | None  #: of the layers whose outputs are floating point, how many give FP16
    fused_attention: int  #: layers that are fused attention kernels
    fused_attention_blocks: tuple[int, ...] | None  #: the blocks (from 0) that they belong to


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one engine file."""

    key: EngineKey
    sha256: str
    bytes: int
    built_utc: str
    build_seconds: float
    settings: EngineSettings
    target: str | None
    typing: str  #: "strong", or "fp16 flag" where the library has no strong typing
    network: NetworkDescription
    engine: EngineDescription | None
    skipped_tactics: int  #: that there was no memory for
    warnings: tuple[str, ...]


def record_file(engine_file: Path) -> Path:
    """Where an engine file's record lies."""
    return engine_file.with_name(f"{engine_file.name}.json")


def read_record(engine_file: Path) -> EngineRecord | None:
    """What is written beside an engine file; None where there is nothing readable."""
    with suppress(OSError, InvalidDocument, UserError):
        return decode(read_regular(record_file(engine_file), _MOST_BYTES), EngineRecord)
    return None


def encode_record(record: EngineRecord) -> bytes:
    """As `read_record` reads it."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def is_whole(engine_file: Path, key: EngineKey) -> bool:
    """Whether a file was built for exactly `key` and is undamaged. Its record is written last, so a build that was cut short has none."""
    record = read_record(engine_file)
    if record is None or record.key != key:
        return False
    try:
        found = engine_file.stat()
        return found.st_size == record.bytes and _sha256_once(engine_file, found.st_mtime_ns) == record.sha256
    except OSError:
        return False


@lru_cache(maxsize=64)
def _sha256_once(file: Path, mtime_ns: int) -> str:
    """Engine files are looked up before every turn of a profile, and hashing takes as long as loading."""
    return sha256_file(file)


def read_timing_cache(file: Path, platform_digest: str) -> bytes:
    """The timing cache kept for this platform; empty where there is none, or where it is another one's or damaged.

    The first line is JSON: whose it is, and the SHA-256 of the rest.
    """
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        header, _, blob = file.read_bytes().partition(b"\n")
        written = json.loads(header)
        if written.get("device") == platform_digest and written.get("sha256") == hashlib.sha256(blob).hexdigest():
            return blob
    return b""


def encode_timing_cache(platform_digest: str, blob: bytes) -> bytes:
    """As `read_timing_cache` reads it."""
    header = json.dumps({"device": platform_digest, "sha256": hashlib.sha256(blob).hexdigest()}).encode()
    return header + b"\n" + blob
