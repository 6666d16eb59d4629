"""Plans: what they are keyed by, that a wrong one is never run, and what is left of a build that was cut short. Built by the real library."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.engines import source
from edge_tprune.errors import UserError
from edge_tprune.files import sha256_json
from edge_tprune.runtime.tensorrt.builder import BuildError, Settings
from edge_tprune.runtime.tensorrt.cache import (
    Job,
    Source,
    build_apart,
    cache_root,
    find_or_build,
    is_whole,
    job_for_device,
    plan_key,
    read_record,
    read_timing_cache,
    record_file,
    write_timing_cache,
)
from edge_tprune.runtime.tensorrt.library import Library

MACHINE = {
    "runtime": "tensorrt-rtx",
    "version": "1.7",
    "device": "Orin",
    "sm": "8.7",
    "module": "NVIDIA Jetson Orin Nano",
    "machine": "aarch64",
    "os": "36.4.3",
    "power_mode": {"id": 2, "name": "MAXN_SUPER"},
}


def source_of(bundle: Bundle, budget: str = "0.6") -> Source:
    chosen = bundle.budget(budget)
    return source(bundle, chosen, chosen.artifact("tensorrt-rtx"))


@pytest.fixture
def job(rtx: Library, built: Path, tmp_path: Path) -> Job:
    """An engine for a GPU that need not be here: the same way as for the one at hand, without loading it afterwards."""
    made = source_of(Bundle.open(built))
    key = plan_key(made, {"runtime": "tensorrt-rtx", "version": rtx.version, "target": "sm86"})
    return Job(made, key, tmp_path / "plans" / "small.plan", Settings(), "sm86", tmp_path / "t.timing")


def test_a_key_depends_on_everything_that_makes_a_plan(built: Path) -> None:
    made = source_of(Bundle.open(built))
    keys = {sha256_json(plan_key(made, MACHINE))}
    for name in MACHINE:
        keys.add(sha256_json(plan_key(made, {**MACHINE, name: "another"})))
    for change in ({"precision": "fp16"}, {"graph_sha256": "0" * 64}, {"weights_sha256": ("0" * 64,)}):
        keys.add(sha256_json(plan_key(replace(made, **change), MACHINE)))  # type: ignore[arg-type]
    assert len(keys) == 1 + len(MACHINE) + 3


def test_a_key_is_the_same_wherever_the_bundle_lies(built: Path, bundle: Bundle, tmp_path: Path) -> None:
    here, there = source_of(Bundle.open(built)), source_of(bundle)
    assert here.graph != there.graph
    first, second = (job_for_device(made, MACHINE, cache=tmp_path) for made in (here, there))
    assert first.plan == second.plan
    assert first.timing_cache == second.timing_cache
    other = job_for_device(here, {**MACHINE, "power_mode": {"id": 0, "name": "15W"}}, cache=tmp_path)
    assert other.plan != first.plan
    assert other.timing_cache != first.timing_cache  # tactics are timed at the clocks of the mode


def test_the_weights_count_even_though_the_graph_file_is_the_same(bundle: Bundle) -> None:
    before = source_of(bundle)
    bundle.manifest["files"]["onnx/weights.bin"]["sha256"] = "0" * 64
    assert source_of(bundle) != before


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "edge-tprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "edge-tprune"


def test_a_job_survives_the_way_to_its_process(job: Job) -> None:
    assert Job.from_json(job.to_json()) == job
    without = replace(job, timing_cache=None, target=None)
    assert Job.from_json(without.to_json()) == without


def test_builds_once_and_tells_what_it_built(job: Job) -> None:
    steps: list[tuple[str, int, int]] = []
    assert find_or_build(job, progress=lambda *step: steps.append(step))
    assert steps
    record = read_record(job.plan)
    assert record is not None
    assert record["key"] == job.key
    assert record["bytes"] == job.plan.stat().st_size
    assert record["network"]["tokens_after_blocks"] == list(job.source.schedule)
    assert record["target"] == "sm86"
    assert record["engine"]["layers"] is None  # nothing was loaded: the GPU is elsewhere
    assert record["engine"]["fused_attention"] == 0  # TensorRT fuses attention in half precision only
    written = job.plan.stat().st_mtime_ns
    assert not find_or_build(job)
    assert job.plan.stat().st_mtime_ns == written
    assert find_or_build(job, force=True)


def test_a_plan_of_another_key_or_a_damaged_one_is_rebuilt_not_run(job: Job) -> None:
    find_or_build(job)
    newer = replace(job, key={**job.key, "version": "99.0"})
    assert is_whole(job.plan, job.key)
    assert not is_whole(job.plan, newer.key)
    assert find_or_build(newer)
    assert is_whole(job.plan, newer.key)
    with job.plan.open("r+b") as stream:  # as long as it was, one byte changed
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    assert not is_whole(job.plan, newer.key)
    assert find_or_build(newer)
    record_file(job.plan).write_text("{")
    assert not is_whole(job.plan, newer.key)


HALF_WRITTEN = """
import sys, time
from edge_tprune.runtime.tensorrt import cache as plans
from edge_tprune.files import atomic_writer
def write_half(path, data):
    with atomic_writer(path) as stream:
        stream.write(data[: len(data) // 2])
        stream.flush()
        print("half", flush=True)
        time.sleep(3600)
plans.write_bytes = write_half
plans.build_here(plans.Job.from_json(sys.argv[1]))
"""


def test_a_build_killed_while_it_writes_leaves_nothing_broken(job: Job) -> None:
    job.plan.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", HALF_WRITTEN, job.to_json()], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert not job.plan.exists()
    assert len(list(job.plan.parent.iterdir())) == 1  # the half
    assert find_or_build(job)
    assert is_whole(job.plan, job.key)
    assert {file.suffix for file in job.plan.parent.iterdir()} == {".plan", ".json", ".lock"}


def stand_in(tmp_path: Path, script: str) -> str:
    """A program that takes the place of the builder's process: what becomes of that process is what is tested."""
    program = tmp_path / "builder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_ctrl_c_ends_the_builder_too(job: Job, tmp_path: Path) -> None:
    endless = stand_in(tmp_path, """echo '{"progress": ["building", 0, 1]}'; exec sleep 3600""")
    code = (
        "import signal, sys\nfrom edge_tprune.runtime.tensorrt import cache as plans\n"
        # A shell that starts the tests in the background ignores SIGINT, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "job, plans.sys.executable = plans.Job.from_json(sys.argv[1]), sys.argv[2]\n"
        "plans.find_or_build(job, progress=lambda text, *_: print(text, flush=True))"
    )
    command = [sys.executable, "-c", code, job.to_json(), endless]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        (builder,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    psutil.wait_procs([builder], timeout=60)
    assert not builder.is_running()
    assert not job.plan.exists()


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
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with pytest.raises(BuildError, match=message) as error:
        find_or_build(job)
    assert "\n" not in str(error.value)
    assert not job.plan.exists()


def test_a_failed_build_says_why_and_leaves_no_plan(job: Job) -> None:
    with pytest.raises(BuildError, match="does not exist"):
        build_apart(replace(job, source=replace(job.source, graph=job.plan.with_name("none.onnx"))))
    with pytest.raises(
        BuildError, match=r"keeps \[37, \d+, \d+, \d+\] tokens after its blocks, but the schedule says \[37, 37, 37, 37\]"
    ):
        build_apart(replace(job, source=replace(job.source, schedule=(37, 37, 37, 37))))
    assert not job.plan.exists()


AFTER_A_WORD = """
import sys
from edge_tprune.runtime.tensorrt import cache as plans
job, before = plans.Job.from_json(sys.argv[1]), plans.build_apart
def build_later(job, progress):
    print("locked", flush=True)
    sys.stdin.readline()
    return before(job, progress)
plans.build_apart = build_later
print(plans.find_or_build(job), flush=True)
"""


def test_two_processes_build_one_plan_once(job: Job) -> None:
    """The second waits for the first, and finds its plan."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", AFTER_A_WORD, job.to_json()], **pipes) as first:
        assert first.stdout.readline() == "locked\n"

        def go_on(text: str, *_: object) -> None:
            assert text.startswith("waiting for another process")
            first.stdin.write("\n")
            first.stdin.flush()

        built = find_or_build(job, progress=go_on)
        assert first.communicate()[0] == "True\n"
    assert not built


def test_a_cache_that_cannot_be_written_says_so(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        find_or_build(replace(job, plan=tmp_path / "file" / "x.plan"))


def test_a_timing_cache_is_its_devices_own(tmp_path: Path) -> None:
    file = tmp_path / "timing" / "a.timing"
    assert read_timing_cache(file, "mine") == b""
    write_timing_cache(file, "mine", b"line\nline")
    assert read_timing_cache(file, "mine") == b"line\nline"
    assert read_timing_cache(file, "another") == b""  # copied from another device: refused
    file.write_bytes(file.read_bytes()[:-1])
    assert read_timing_cache(file, "mine") == b""
    for rubbish in (b"", b"\xff\xfe", b"[]\n", b"null\nx", json.dumps({"device": "mine"}).encode() + b"\nx"):
        file.write_bytes(rubbish)
        assert read_timing_cache(file, "mine") == b""


def test_a_build_leaves_a_timing_cache_and_survives_a_foreign_one(job: Job) -> None:
    assert job.timing_cache is not None
    write_timing_cache(job.timing_cache, "another device", b"whatever")
    find_or_build(job)
    header: dict[str, Any] = json.loads(job.timing_cache.read_bytes().partition(b"\n")[0])
    assert header["device"] != "another device"


def test_the_builder_needs_no_torch(job: Job) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['onnx'] = sys.modules['timm'] = None\n"
        "runpy.run_module('edge_tprune.runtime.tensorrt.cache', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, job.to_json()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "record" in json.loads(done.stdout.splitlines()[-1])
