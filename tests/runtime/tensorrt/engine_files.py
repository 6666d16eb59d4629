"""Engine files that hold nothing, with whole records beside them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import msgspec

from edge_tprune.runtime.tensorrt.record import (
    EngineKey,
    EngineRecord,
    EngineSettings,
    NetworkDescription,
    Platform,
    encode_record,
    record_file,
)


def write_engine_file(file: Path, platform: Platform) -> Path:
    """A file that was built for `platform`, as far as its record says."""
    data = b"engine"
    key = EngineKey(**msgspec.structs.asdict(platform), layout=1, precision="fp16", graph_sha256="0" * 64, weights_sha256=())
    record = EngineRecord(
        key=key,
        sha256=sha256(data).hexdigest(),
        bytes=len(data),
        built_utc="2025-01-01T00:00:00+00:00",
        build_seconds=1.0,
        settings=EngineSettings(),
        target=None,
        typing="strong",
        network=NetworkDescription(layers=0, inputs=(), outputs=(), tokens_after_blocks=(), operations={}, attention=()),
        engine=None,
        skipped_tactics=0,
        warnings=(),
    )
    file.write_bytes(data)
    record_file(file).write_bytes(encode_record(record))
    return file
