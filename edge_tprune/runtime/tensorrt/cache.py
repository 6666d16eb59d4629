"""Engine files for the GPU at hand: found in a cache under everything they depend on, or built in a process of their own.

    ~/.cache/edge-tprune/engines/<graph>-<key>.plan        the engine file, with NVIDIA's suffix
                                 <graph>-<key>.plan.json   its record; written last
                         timing/<key>.timing               TensorRT's timing cache, one per device and version

The cache lies outside the bundle, so that a bundle stays what its manifest says and can be read-only. An engine file whose key is another
one is never run: the right one is built beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from edge_tprune.files import clear_write_errors, user_cache
from edge_tprune.runtime.tensorrt.build_process import EngineBuild, GraphSource, build_in_process
from edge_tprune.runtime.tensorrt.builder import Progress
from edge_tprune.runtime.tensorrt.record import EngineKey, EngineSettings, Platform, is_whole, read_record

Warn = Callable[[str], None]

_LAYOUT = 1  #: part of every key: changes when engine files of an older edge-tprune must not be used any more


def cache_root() -> Path:
    """Where engine files and timing caches are kept: `$XDG_CACHE_HOME/edge-tprune`, by default `~/.cache/edge-tprune`."""
    return user_cache()


def engines_folder(root: Path | None = None) -> Path:
    """Where in the cache engine files lie."""
    return (root or cache_root()) / "engines"


def engine_key(source: GraphSource, platform: Platform) -> EngineKey:
    """Everything that an engine file depends on."""
    fields = {field: getattr(platform, field) for field in Platform.__struct_fields__}
    return EngineKey(
        layout=_LAYOUT,
        precision=source.precision,
        graph_sha256=source.graph_sha256,
        weights_sha256=source.weights_sha256,
        **fields,
    )


def build_for_device(
    source: GraphSource, platform: Platform, settings: EngineSettings | None = None, cache: Path | None = None
) -> EngineBuild:
    """The build of `source` for the GPU at hand.

    Args:
        source: the graph.
        platform: this device: `edge_tprune.bundle.engines.this_platform`.
        settings: by default the library's own.
        cache: by default `cache_root()`.
    """
    root, key = cache or cache_root(), engine_key(source, platform)
    name = f"{source.graph.name.removesuffix('.onnx')}-{key.digest[:16]}.plan"
    timing = root / "timing" / f"{key.platform_digest[:16]}.timing"
    return EngineBuild(source, key, engines_folder(root) / name, settings or EngineSettings(), timing)


def has_settings(engine_file: Path, settings: EngineSettings) -> bool:
    """Whether a file was built with these settings, as far as they are given: None is any."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    record = read_record(engine_file) if given else None
    return not given or (record is not None and given.items() <= asdict(record.settings).items())


def is_there(build: EngineBuild) -> bool:
    """Whether its file is whole, and what such a build would write."""
    return is_whole(build.file, build.key) and has_settings(build.file, build.settings)


def find_or_build(
    build: EngineBuild, *, force: bool = False, progress: Progress | None = None, warn: Warn | None = None
) -> bool:
    """Sees to it that the engine file of `build` is there; True where it had to be built. Two processes never build the same one.

    Args:
        build: what to build. A file of its key that is there already is used, unless it was built with other settings than those that are
            given.
        force: build it again.
        progress: called while building.
        warn: called with what a person should know.

    Raises:
        UserError: the build failed, or the file cannot be written.
    """
    file = build.file
    if not force and is_there(build):
        return False
    with clear_write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_name(f".{file.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress is not None:
                progress("waiting for another process that builds this engine", 0, 0)
            lock.acquire()
    try:
        if not force and is_there(build):  # the other process built it
            return False
        for stale in file.parent.glob(f".{file.name}*.tmp"):  # of a build that was killed: the lock says that none is at work
            stale.unlink(missing_ok=True)
        for text in build_in_process(build, progress).warnings:
            if warn is not None:
                warn(text)
        return True
    finally:
        lock.release()
