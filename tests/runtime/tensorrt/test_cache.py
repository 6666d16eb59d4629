"""Engine files: what they are keyed by, that a wrong one is never run, and what is left of a build that was cut short. Built by the real library."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.engines import graph_source
from edge_tprune.bundle.manifest import FileEntry
from edge_tprune.errors import UserError
from edge_tprune.files import write_bytes
from edge_tprune.runtime.tensorrt.build_process import EngineBuild, GraphSource, build_in_process
from edge_tprune.runtime.tensorrt.builder import BuildError
from edge_tprune.runtime.tensorrt.cache import build_for_device, cache_root, engine_key, find_or_build
from edge_tprune.runtime.tensorrt.library import Library
from edge_tprune.runtime.tensorrt.record import (
    EngineSettings,
    Platform,
    encode_record,
    encode_timing_cache,
    is_whole,
    read_record,
    read_timing_cache,
    record_file,
)
from tests.runtime.tensorrt.engine_files import write_engine_file

PLATFORM = Platform(
    runtime="tensorrt-rtx",
    version="1.7",
    device="Orin",
    sm="8.7",
    module="NVIDIA Jetson Orin Nano",
    machine="aarch64",
    os="36.4.3",
    power_mode={"id": 2, "name": "MAXN_SUPER"},
)


def source_of(bundle: Bundle, budget: str = "0.6") -> GraphSource:
    chosen = bundle.budget(budget)
    return graph_source(bundle, chosen, chosen.artifact("tensorrt-rtx"))


@pytest.fixture
def build(rtx: Library, built: Path, tmp_path: Path) -> EngineBuild:
    """An engine for a GPU that need not be here: the same way as for the one at hand, without loading it afterwards."""
    source = source_of(Bundle.open(built))
    key = engine_key(source, Platform(runtime="tensorrt-rtx", version=rtx.version, target="sm86"))
    return EngineBuild(source, key, tmp_path / "engines" / "small.plan", EngineSettings(), tmp_path / "t.timing")


def test_a_key_depends_on_everything_that_makes_an_engine_file(built: Path) -> None:
    source = source_of(Bundle.open(built))
    keys = {engine_key(source, PLATFORM).digest}
    for name in Platform.__struct_fields__:
        keys.add(engine_key(source, msgspec.structs.replace(PLATFORM, **{name: "another"})).digest)
    for change in ({"precision": "fp16"}, {"graph_sha256": "0" * 64}, {"weights_sha256": ("0" * 64,)}):
        keys.add(engine_key(replace(source, **change), PLATFORM).digest)  # type: ignore[arg-type]
    assert len(keys) == 1 + len(Platform.__struct_fields__) + 3


def test_a_key_is_the_same_wherever_the_bundle_lies(built: Path, bundle: Bundle, tmp_path: Path) -> None:
    here, there = source_of(Bundle.open(built)), source_of(bundle)
    assert here.graph != there.graph
    first, second = (build_for_device(source, PLATFORM, cache=tmp_path) for source in (here, there))
    assert first.file == second.file
    assert first.timing_cache == second.timing_cache
    slower = msgspec.structs.replace(PLATFORM, power_mode={"id": 0, "name": "15W"})
    other = build_for_device(here, slower, cache=tmp_path)
    assert other.file != first.file
    assert other.timing_cache != first.timing_cache  # tactics are timed at the clocks of the mode


def test_the_weights_count_even_though_the_graph_file_is_the_same(bundle: Bundle) -> None:
    before = source_of(bundle)
    files = {**bundle.manifest.files, "onnx/weights.bin": FileEntry(sha256="0" * 64, bytes=1)}
    assert source_of(Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, files=files))) != before


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "edge-tprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "edge-tprune"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    with pytest.raises(UserError, match="set HOME or XDG_CACHE_HOME"):
        cache_root()


def test_a_build_survives_the_way_to_its_process(build: EngineBuild) -> None:
    assert EngineBuild.from_json(build.to_json()) == build
    without = replace(build, timing_cache=None, key=msgspec.structs.replace(build.key, target=None))
    assert EngineBuild.from_json(without.to_json()) == without


def test_builds_once_and_tells_what_it_built(build: EngineBuild) -> None:
    steps: list[tuple[str, int, int]] = []
    assert find_or_build(build, progress=lambda *step: steps.append(step))
    assert steps
    record = read_record(build.file)
    assert record is not None
    assert record.key == build.key
    assert record.bytes == build.file.stat().st_size
    assert record.network.tokens_after_blocks == build.source.schedule
    assert record.target == "sm86"
    assert record.engine.layers is None  # nothing was loaded: the GPU is elsewhere
    assert record.engine.fused_attention == 0  # TensorRT fuses attention in half precision only
    written = build.file.stat().st_mtime_ns
    assert not find_or_build(build)
    assert build.file.stat().st_mtime_ns == written
    assert find_or_build(build, force=True)


def test_a_file_built_with_other_settings_is_built_again(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_engine_file(tmp_path / "small.plan", PLATFORM)
    record = read_record(file)
    assert record is not None
    record = msgspec.structs.replace(record, settings=EngineSettings(optimization_level=3))
    record_file(file).write_bytes(encode_record(record))
    monkeypatch.setattr("edge_tprune.runtime.tensorrt.cache.build_in_process", lambda build, progress: record)
    there = EngineBuild(source_of(Bundle.open(built)), record.key, file, EngineSettings())
    for settings, again in (
        (EngineSettings(), False),
        (EngineSettings(optimization_level=3), False),
        (EngineSettings(optimization_level=5), True),
        (EngineSettings(workspace_mb=64, optimization_level=3), True),
    ):
        assert find_or_build(replace(there, settings=settings)) == again


def test_an_engine_file_of_another_key_or_a_damaged_one_is_rebuilt_not_run(build: EngineBuild) -> None:
    find_or_build(build)
    newer = replace(build, key=msgspec.structs.replace(build.key, version="99.0"))
    assert is_whole(build.file, build.key)
    assert not is_whole(build.file, newer.key)
    assert find_or_build(newer)
    assert is_whole(build.file, newer.key)
    with build.file.open("r+b") as stream:  # as long as it was, one byte changed
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    assert not is_whole(build.file, newer.key)
    assert find_or_build(newer)
    record_file(build.file).write_text("{")
    assert not is_whole(build.file, newer.key)


HALF_WRITTEN = """
import sys, time
from edge_tprune.runtime.tensorrt import build_process
from edge_tprune.files import atomic_writer
def write_half(path, data):
    with atomic_writer(path) as stream:
        stream.write(data[: len(data) // 2])
        stream.flush()
        print("half", flush=True)
        time.sleep(3600)
build_process.write_bytes = write_half
build_process.build_here(build_process.EngineBuild.from_json(sys.argv[1]))
"""


def test_a_build_killed_while_it_writes_leaves_nothing_broken(build: EngineBuild) -> None:
    build.file.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", HALF_WRITTEN, build.to_json()], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert not build.file.exists()
    assert len(list(build.file.parent.iterdir())) == 1  # the half
    assert find_or_build(build)
    assert is_whole(build.file, build.key)
    assert {file.suffix for file in build.file.parent.iterdir()} == {".plan", ".json", ".lock"}


def stand_in(tmp_path: Path, script: str) -> str:
    """A program that takes the place of the builder's process: what becomes of that process is what is tested."""
    program = tmp_path / "builder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_ctrl_c_ends_the_builder_too(build: EngineBuild, tmp_path: Path) -> None:
    endless = stand_in(tmp_path, """echo '{"progress": ["building", 0, 1]}'; exec sleep 3600""")
    code = (
        "import signal, sys\nfrom edge_tprune.runtime.tensorrt.build_process import EngineBuild\n"
        "from edge_tprune.runtime.tensorrt.cache import find_or_build\n"
        # A shell that starts the tests in the background ignores SIGINT, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "build, sys.executable = EngineBuild.from_json(sys.argv[1]), sys.argv[2]\n"
        "find_or_build(build, progress=lambda text, *_: print(text, flush=True))"
    )
    command = [sys.executable, "-c", code, build.to_json(), endless]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        (builder,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    psutil.wait_procs([builder], timeout=60)
    assert not builder.is_running()
    assert not build.file.exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -KILL $$", r"ran out of memory.*--workspace-mb"),  # as the system does when there is none left
        ("echo 'terminate called after throwing an instance of std::bad_alloc' >&2; kill -ABRT $$", "ran out of memory"),
        ("echo first >&2; echo 'the last word' >&2; kill -SEGV $$", r"SIGSEGV \(the last word\)"),
        ("exit 3", r"ended with 3 \(without a message\)"),
    ],
)
def test_a_builder_that_dies_is_one_clear_line(
    build: EngineBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with pytest.raises(BuildError, match=message) as error:
        find_or_build(build)
    assert "\n" not in str(error.value)
    assert not build.file.exists()


def test_a_failed_build_says_why_and_leaves_no_file(build: EngineBuild) -> None:
    with pytest.raises(BuildError, match="does not exist"):
        build_in_process(replace(build, source=replace(build.source, graph=build.file.with_name("none.onnx"))))
    with pytest.raises(
        BuildError, match=r"keeps \[37, \d+, \d+, \d+\] tokens after its blocks, but the schedule says \[37, 37, 37, 37\]"
    ):
        build_in_process(replace(build, source=replace(build.source, schedule=(37, 37, 37, 37))))
    assert not build.file.exists()


AFTER_A_WORD = """
import sys
from edge_tprune.runtime.tensorrt import cache
from edge_tprune.runtime.tensorrt.build_process import EngineBuild
build, before = EngineBuild.from_json(sys.argv[1]), cache.build_in_process
def build_later(build, progress):
    print("locked", flush=True)
    sys.stdin.readline()
    return before(build, progress)
cache.build_in_process = build_later
print(cache.find_or_build(build), flush=True)
"""


def test_two_processes_build_one_engine_file_once(build: EngineBuild) -> None:
    """The second waits for the first, and finds its file."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", AFTER_A_WORD, build.to_json()], **pipes) as first:
        assert first.stdout.readline() == "locked\n"

        def go_on(text: str, *_: object) -> None:
            assert text.startswith("waiting for another process")
            first.stdin.write("\n")
            first.stdin.flush()

        built = find_or_build(build, progress=go_on)
        assert first.communicate()[0] == "True\n"
    assert not built


def test_a_cache_that_cannot_be_written_says_so(build: EngineBuild, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        find_or_build(replace(build, file=tmp_path / "file" / "x.plan"))


def test_a_timing_cache_is_its_devices_own(tmp_path: Path) -> None:
    file = tmp_path / "timing" / "a.timing"
    assert read_timing_cache(file, "mine") == b""
    write_bytes(file, encode_timing_cache("mine", b"line\nline"))
    assert read_timing_cache(file, "mine") == b"line\nline"
    assert read_timing_cache(file, "another") == b""  # copied from another device: refused
    file.write_bytes(file.read_bytes()[:-1])
    assert read_timing_cache(file, "mine") == b""
    for rubbish in (b"", b"\xff\xfe", b"[]\n", b"null\nx", json.dumps({"device": "mine"}).encode() + b"\nx"):
        file.write_bytes(rubbish)
        assert read_timing_cache(file, "mine") == b""


def test_a_build_leaves_a_timing_cache_and_survives_a_foreign_one(build: EngineBuild) -> None:
    assert build.timing_cache is not None
    write_bytes(build.timing_cache, encode_timing_cache("another device", b"whatever"))
    find_or_build(build)
    header: dict[str, Any] = json.loads(build.timing_cache.read_bytes().partition(b"\n")[0])
    assert header["device"] != "another device"


def test_the_builder_needs_no_torch(build: EngineBuild) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['onnx'] = sys.modules['timm'] = None\n"
        "runpy.run_module('edge_tprune.runtime.tensorrt.build_process', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, build.to_json()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "record" in json.loads(done.stdout.splitlines()[-1])
