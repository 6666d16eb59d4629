"""What a board needs is concluded from what it says it has. The journey as a whole runs in test_board.py."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest

from edge_tprune.agent.doctor.finding import Diagnosis
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.cli.commands.deploy import _raise_for_failures
from edge_tprune.cli.progress import BoardProgress
from edge_tprune.deploy import journey, ssh
from edge_tprune.deploy.answers import Done, Listing, Ran, Wanted
from edge_tprune.deploy.hosts import Target
from edge_tprune.errors import EdgeTPruneError, InternalError, NegativeAnswer, UserError
from edge_tprune.telemetry.boards import Board

FACTS: dict[str, Any] = {
    "python": [3, 10, 12],
    "executable": "/usr/bin/python3",
    "machine": "aarch64",
    "system": "linux",
    "venv": True,
    "home": "/home/jetson/.edge-tprune",
    "writable": True,
    "packages": {"numpy": "1.21.5"},
    "tensorrt": False,
    "cuda": None,
    "glibc": "2.35",
    "stamp": None,
    "root": False,
}


def facts(**changes: Any) -> journey.Facts:
    return msgspec.convert({**FACTS, **changes}, journey.Facts)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"venv": False}, r"sudo apt-get install python3\.10-venv"),
        ({"root": True}, "would install as root"),
        ({"system": "darwin"}, "needs Linux"),
        ({"writable": False}, "cannot be written"),
    ],
)
def test_a_board_that_cannot_be_used_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        journey._check(Target("orin"), facts(**changes))


def test_onnxruntime_comes_along_only_where_nothing_else_runs_the_bundle(bundle: Bundle) -> None:
    assert journey._needed_extras(facts(), bundle) == {"ort"}
    assert journey._needed_extras(facts(packages={"onnxruntime-gpu": "1.20"}), bundle) == set()
    assert journey._needed_extras(facts(tensorrt=True), bundle) == {"ort"}  # this bundle has no graph for TensorRT


def test_a_binding_of_the_boards_own_cuda_comes_with_tensorrt() -> None:
    assert journey._cuda_binding(facts(tensorrt=True, cuda="12.6.68")) == ["cuda-python==12.*"]
    assert journey._cuda_binding(facts(tensorrt=True, cuda="13.0", packages={"pycuda": "2025.1"})) == []
    assert journey._cuda_binding(facts(tensorrt=True)) == []
    assert journey._cuda_binding(facts(cuda="12.6")) == []


def test_a_gpu_that_is_not_measured_is_named() -> None:
    def warning(profile: tuple[str, ...] | None, **changes: Any) -> str | None:
        return journey._unused_tensorrt(facts(**changes), journey.Options(profile=profile))

    assert "--runtime tensorrt" in (warning(("--rounds", "3"), tensorrt=True) or "")
    assert warning(("--runtime", "tensorrt"), tensorrt=True) is None
    assert warning(("--runtime=tensorrt",), tensorrt=True) is None
    assert warning(("--runtime", "onnxruntime"), tensorrt=True) is None, "it was chosen"
    assert warning(("--rounds", "3")) is None
    assert warning(None, tensorrt=True) is None


@pytest.mark.parametrize(
    ("code", "kind"), [(0, UserError), (1, NegativeAnswer), (2, UserError), (3, UserError), (-9, UserError)]
)
def test_what_a_measurement_on_a_board_came_to_is_passed_on(code: int, kind: type[Exception]) -> None:
    """A fault there (exit code 3) asked for a report there."""

    class FakeConnection:
        target = "orin"

        def call(self, do: str, answer: Any, on_stderr: Any = None, **request: Any) -> Any:
            if do == "list":
                return Listing({})
            on_stderr("edge-tprune: it is so\n")
            return Ran(code=code, stdout="")

    board = Board("x", "x", None, (), (), None, None, None, None, None, None)
    doctor = Diagnosis(format="f", version=1, tool_version="1", root="/", board=board, ready=True, findings=())
    with pytest.raises(
        EdgeTPruneError, match=r"orin: (it is so|the measurement was ended there by signal 9|.* there is no new profile)"
    ) as raised:
        journey._profile(
            FakeConnection(),
            {"name": "b", "fingerprint": "0" * 64},
            doctor,
            journey.Options(profile=()),
            BoardProgress(quiet=True),
        )  # type: ignore[arg-type]
    assert type(raised.value) is kind


def test_only_what_the_system_lacks_is_carried() -> None:
    missing = journey._missing_requirements(facts().packages, [])
    assert any(text.startswith("numpy") for text in missing)  # 1.21 is too old
    assert any(text.startswith("psutil") for text in missing)
    assert not any(text.startswith(("onnxruntime", "torch", "pytest")) for text in missing)
    assert not any(text.startswith("numpy") for text in journey._missing_requirements({"numpy": "1.26.4"}, []))
    assert any(text.startswith("onnxruntime") for text in journey._missing_requirements({}, ["ort"]))


def test_a_signal_ends_a_deployment_between_two_requests(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hang_up` ends what runs; what begins after it is ended as well, also where the signal comes twice."""
    between, begun = threading.Event(), []

    def deploy(bundle: Bundle, target: Target, *rest: object) -> journey.Deployment:
        between.set()
        time.sleep(0.5)  # no request is under way now
        with subprocess.Popen(["sleep", "60"]) as process, ssh.until_hang_up(process):
            begun.append(process.wait())
        return journey.Deployment(target)

    def interrupt(futures: object, timeout: float) -> Any:
        between.wait()
        os.kill(os.getpid(), signal.SIGINT)
        return wait(futures, timeout)

    wait = journey.wait
    monkeypatch.setattr(journey, "deploy", deploy)
    monkeypatch.setattr(journey, "wait", interrupt)
    monkeypatch.setattr(journey, "result_of", lambda future: (_ for _ in ()).throw(KeyboardInterrupt))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        journey.deploy_all(bundle, [Target("orin")], journey.Options(), lambda target: BoardProgress(True))
    assert begun == [-9]
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (PermissionError(13, "Permission denied", "/tmp/x"), UserError, "orin: this machine says: Permission denied: /tmp/x"),
        (MemoryError(), UserError, "orin: this machine says: out of memory"),
        (ValueError("a\nb"), InternalError, "orin: ValueError: a b"),
    ],
)
def test_what_goes_wrong_with_one_board_ends_no_other(
    error: Exception, kind: type[Exception], says: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(target: Target, **_: object) -> Any:
        raise error if target.host == "orin" else UserError("no such host")

    monkeypatch.setattr(journey, "Connection", connect)
    targets = [Target("orin"), Target("nano")]
    first, second = journey.deploy_all(bundle, targets, journey.Options(), lambda target: BoardProgress(True))
    assert (type(first.error), str(first.error)) == (kind, says)
    assert str(second.error) == "no such host"
    with pytest.raises(kind, match="2 of 2 boards failed: orin, nano") as raised:
        _raise_for_failures([first, second])
    assert raised.value.__cause__ is first.error


class FakeBoard:
    """Takes what it is sent."""

    target = Target("orin")

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def call(self, do: str, kind: Any, payload: Any = None, **request: Any) -> Any:
        if do == "check":
            return facts()
        if do == "wanted":
            self.meanwhile()
            return Wanted(dict.fromkeys(request["files"], 0))
        if payload is not None:
            payload(Sink())
        return Done()


class Sink:
    def write(self, data: bytes) -> int:
        return len(data)


@pytest.mark.parametrize("change", ["removed", "shorter", "other manifest"])
def test_a_bundle_that_changes_while_it_is_copied_is_said(change: str, bundle: Bundle) -> None:
    file = bundle.path / next(iter(bundle.files))

    def meanwhile() -> None:
        if change == "removed":
            file.unlink()
        elif change == "shorter":
            file.write_bytes(b"")

    if change == "other manifest":
        manifest = bundle.path / "manifest.json"
        manifest.write_text(manifest.read_text().replace(bundle.manifest.fingerprint, "0" * 64))
    with pytest.raises(UserError, match="tiny was changed while it was being copied: repeat the command"):
        journey._copy_bundle(FakeBoard(meanwhile), bundle, None, BoardProgress(True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "there"), [(None, "tiny"), ("my fit-candidates-1", "my-fit-candidates-1"), ("_+.ref-", "ref"), ("__", "bundle")]
)
def test_a_bundle_has_the_name_there_that_it_is_given(
    name: str | None, there: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journey, "Connection", lambda target, **options: nullcontext(FakeBoard(lambda: None)))
    monkeypatch.setattr(journey, "_install", lambda *given: False)
    monkeypatch.setattr(journey, "_doctor", lambda connection: None)
    deployment = journey.deploy(bundle, Target("orin"), journey.Options(name=name), BoardProgress(True))
    assert deployment.error is None
    assert deployment.steps[1].startswith(f"bundle {there}: ")
