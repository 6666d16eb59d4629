"""What a board needs is concluded from what it says it has. The journey as a whole runs in test_board.py."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.deploy import journey
from edge_tprune.deploy.hosts import Target
from edge_tprune.errors import UserError

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
    assert warning(("--rounds", "3")) is None
    assert warning(None, tensorrt=True) is None


def test_only_what_the_system_lacks_is_carried() -> None:
    missing = journey._missing_requirements(facts().packages, [])
    assert any(text.startswith("numpy") for text in missing)  # 1.21 is too old
    assert any(text.startswith("psutil") for text in missing)
    assert not any(text.startswith(("onnxruntime", "torch", "pytest")) for text in missing)
    assert not any(text.startswith("numpy") for text in journey._missing_requirements({"numpy": "1.26.4"}, []))
    assert any(text.startswith("onnxruntime") for text in journey._missing_requirements({}, ["ort"]))
