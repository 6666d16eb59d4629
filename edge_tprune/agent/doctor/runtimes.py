"""Which runtimes work on this machine, and which engine files in the cache were built for another one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from edge_tprune.agent.doctor.finding import Finding
from edge_tprune.bundle.engines import this_platform
from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import installed_bindings, open_cuda
from edge_tprune.runtime.engine import RUNTIMES, runtime_version
from edge_tprune.runtime.tensorrt import library as tensorrt
from edge_tprune.runtime.tensorrt.cache import engines_folder
from edge_tprune.runtime.tensorrt.record import Platform, read_record
from edge_tprune.telemetry.boards import Board
from edge_tprune.text import command_line

#: What JetPack ships as TensorRT, by the first parts of its version; other versions are not expected to run there.
_TENSORRT_OF = {"5": "8.5", "6.0": "8.6", "6": "10.3", "7.2": "10.16", "7": "10.13"}
_SYSTEM_PACKAGES = ("usr/lib/python3/dist-packages", "usr/local/lib/python3*/dist-packages", "usr/lib/python3*/dist-packages")


def check_runtimes(board: Board) -> Iterator[Finding]:
    """Which runtimes can be used, each with its version and where it comes from, or why not."""
    usable = []
    for runtime in RUNTIMES:
        try:
            usable.append((runtime, runtime_version(runtime)))
        except UserError as error:
            if runtime == "tensorrt" and board.l4t_release is not None:
                yield Finding("TensorRT", "warning", str(error), _tensorrt_fix(board))
            elif runtime == "tensorrt":
                yield _without_tensorrt()
    for runtime, version in usable:
        where = _origin(runtime)
        yield Finding("runtime", "ok", f"{runtime} {version}{f' ({where})' if where else ''}")
        if runtime == "tensorrt" and (wrong := _unexpected_tensorrt(board, version)):
            yield wrong
    if not usable:
        yield Finding(
            "runtime",
            "blocker",
            "nothing here can run a graph: neither TensorRT nor ONNX Runtime",
            pip_command("onnxruntime"),
        )
    if any(runtime.startswith("tensorrt") for runtime, _ in usable):
        yield from _cuda(board, [runtime for runtime, _ in usable])


def _without_tensorrt() -> Finding:
    """What a machine that is no Jetson misses without TensorRT."""
    try:
        device = open_cuda().device
    except Exception:  # no binding, driver or GPU; a driver may fail in any way
        return Finding("TensorRT", "note", "not installed: not needed without an NVIDIA GPU")
    return Finding("TensorRT", "note", f"not installed: this {device.name} is not used", pip_command("tensorrt"))


def _cuda(board: Board, runtimes: Collection[str]) -> Iterator[Finding]:
    """Whether the GPU can be used for engines, and is one that these runtimes support."""
    bindings = installed_bindings()
    if not bindings:
        major = {"5": "11", "7": "13"}.get((board.jetpack or "").partition(".")[0], "12")
        yield Finding(
            "CUDA", "warning", "TensorRT is here, but no Python binding of CUDA", pip_command(f"cuda-python=={major}.*")
        )
        return
    try:
        device = open_cuda().device
    except Exception as error:  # a driver may fail in any way; the other checks go on
        yield Finding("CUDA", "warning", " ".join(str(error).split()), _driver_fix(board))
        return
    yield Finding(
        "CUDA", "ok", f"{device.name}, SM {device.sm}, driver for CUDA {device.driver}, through {' and '.join(bindings)}"
    )
    for runtime in runtimes:
        if runtime.startswith("tensorrt"):
            if why := tensorrt.unserved(tensorrt.load(runtime), device.sm):
                yield Finding("TensorRT", "note", why)
                continue
            try:
                yield from check_foreign_engines(this_platform(runtime), engines_folder())
            except UserError as error:  # no home directory
                yield Finding("engines", "warning", str(error))


def check_foreign_engines(here: Platform, cache: Path) -> Iterator[Finding]:
    """Engine files in `cache` that were built for another platform than `here`."""
    foreign = []
    for file in sorted(cache.glob("*.plan")):
        record = read_record(file)
        if record is not None and record.key.runtime == here.runtime:
            # An engine file of another power mode is useful again when that mode is set again.
            fields = [field for field in Platform.__struct_fields__ if field != "power_mode"]
            if any(getattr(record.key, field) != getattr(here, field) for field in fields):
                foreign.append(file)
    if foreign:
        size = sum(file.stat().st_size for file in foreign)
        fix = command_line("rm", *foreign) if len(foreign) <= 3 else f"{command_line('rm', '-r', cache)}   # all of them"
        text = f"{len(foreign)} engine files of another device or version in the cache ({size / 1e6:.0f} MB): they are not used here"
        yield Finding("engines", "note", text, fix)


def pip_command(requirement: str) -> str:
    """The command that installs a package into this very environment, which may have no pip of its own (`deploy` leaves it out)."""
    python = command_line(sys.executable)
    begin = "" if importlib.util.find_spec("pip") else f"{python} -m ensurepip && "
    return f"{begin}{python} -m pip install {command_line(requirement)}"


def _driver_fix(board: Board) -> str:
    return "sudo apt-get install nvidia-jetpack" if board.l4t_release else "nvidia-smi"


def _tensorrt_fix(board: Board) -> str:
    """JetPack's bindings are for the system's Python only."""
    if (board.jetpack or "").startswith("5"):
        return "deploy/install.sh   # JetPack 5 has TensorRT for Python 3.8 only; it says what can be done"
    return "sudo apt-get install python3-libnvinfer && edge-tprune doctor"


def _unexpected_tensorrt(board: Board, version: str) -> Finding | None:
    """A TensorRT that is not this JetPack's."""
    if board.jetpack is None:
        return None
    for length in (3, 1):
        expected = _TENSORRT_OF.get(board.jetpack[:length])
        if expected:
            break
    else:
        return None
    if version.startswith(f"{expected}."):
        return None
    return Finding(
        "TensorRT",
        "warning",
        f"JetPack {board.jetpack} has {expected}, and this is {version}: engine files may fail to build or to load",
        "pip uninstall tensorrt && sudo apt-get install --reinstall python3-libnvinfer",
    )


def _origin(runtime: str) -> str | None:
    """Whether a runtime's package is the system's or the virtual environment's."""
    for name in {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "tensorrt": ("tensorrt",)}.get(runtime, ()):
        with suppress(importlib.metadata.PackageNotFoundError):
            place = str(importlib.metadata.distribution(name).locate_file(""))
            if sys.prefix == sys.base_prefix:
                return None
            return "of the virtual environment" if place.startswith(sys.prefix) else "of the system"
    return None


def check_packaged_tensorrt(root: Path, board: Board) -> Iterator[Finding]:
    """TensorRT, from the files below another root."""
    versions = sorted(installed_versions(root, "tensorrt"))
    if versions:
        yield Finding("TensorRT", "ok", f"{', '.join(versions)} for the system's Python")
        for version in versions:
            if wrong := _unexpected_tensorrt(board, version):
                yield wrong
    elif board.l4t_release is not None:
        yield Finding("TensorRT", "warning", "no Python bindings in the system's packages", _tensorrt_fix(board))


def installed_versions(root: Path, name: str) -> list[str]:
    """Versions of a distribution in the system's Python directories below `root`."""
    found = []
    for pattern in _SYSTEM_PACKAGES:
        for info in root.glob(f"{pattern}/{name.replace('-', '_')}-*.*-info"):
            found.append(re.sub(r"\.(dist|egg)-info$", "", info.name).split("-")[1])
    return list(dict.fromkeys(found))
