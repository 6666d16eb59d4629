"""Exported programs for TensorRT, where there is no GPU. The Python one builds its engine with NVIDIA's builder and runs on emulated GPU memory; the C++
one is read by the compiler's front end. Both name only what NVIDIA's Python bindings have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.export.formats.package import export_package
from edge_tprune.export.formats.request import ExportRequest
from edge_tprune.runtime.tensorrt.library import Library

_TEMPLATES = Path(__import__("edge_tprune").__file__).parent / "export/formats/templates"
_EMULATED = Path(__file__).parent / "emulated_gpu"

#: What the C++ program uses: class of the Python binding -> its name there and the declaration. A Python name stands for the C++ one by TensorRT's
#: own convention, with the exceptions that its documentation lists (execute_async_v3 is enqueueV3).
_CLASSES = {
    "IExecutionContext": {
        "set_tensor_address": "bool setTensorAddress(const char* name, void* data) noexcept;",
        "execute_async_v3": "bool enqueueV3(cudaStream_t stream) noexcept;",
    },
    "ICudaEngine": {
        "create_execution_context": "IExecutionContext* createExecutionContext() noexcept;",
        "num_io_tensors": "int32_t getNbIOTensors() const noexcept;",
        "get_tensor_name": "const char* getIOTensorName(int32_t index) const noexcept;",
        "get_tensor_dtype": "DataType getTensorDataType(const char* name) const noexcept;",
        "get_tensor_mode": "TensorIOMode getTensorIOMode(const char* name) const noexcept;",
        "get_tensor_shape": "Dims getTensorShape(const char* name) const noexcept;",
    },
    "Runtime": {
        "deserialize_cuda_engine": "ICudaEngine* deserializeCudaEngine(const void* data, size_t bytes) noexcept;",
    },
}

_CUDA = {
    "cudaGetErrorString": "const char* cudaGetErrorString(cudaError_t error);",
    "cudaStreamCreate": "cudaError_t cudaStreamCreate(cudaStream_t* stream);",
    "cudaStreamDestroy": "cudaError_t cudaStreamDestroy(cudaStream_t stream);",
    "cudaStreamSynchronize": "cudaError_t cudaStreamSynchronize(cudaStream_t stream);",
    "cudaMalloc": "cudaError_t cudaMalloc(void** memory, size_t bytes);",
    "cudaFree": "cudaError_t cudaFree(void* memory);",
    "cudaMemcpyAsync": "cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);",
}


def export(built: Path, out: Path, **changes: Any) -> Path:
    request = ExportRequest(**{"budget": "0.6", "runtime": "tensorrt", "out": out} | changes)
    return export_package(Bundle.open(built), request).path


@pytest.mark.parametrize("options", [{}, {"frame": (48, 64), "top_k": 3}], ids=["plain", "folded"])
def test_the_python_program_builds_an_engine_and_prints_the_golden_answer(
    built: Path, tmp_path: Path, rtx: Library, options: dict[str, Any]
) -> None:
    path = export(built, tmp_path / "out", format="python", **options)
    assert (path / "requirements.txt").read_text().split()[2:] == ["tensorrt>=8.5", "cuda-python>=12"]
    environment = {"PYTHONPATH": str(_EMULATED)}
    for _ in range(2):  # the second run finds the engine file
        done = subprocess.run(
            [sys.executable, "classify.py"], cwd=path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        golden = json.loads((path / "golden.json").read_text())["top"][: options.get("top_k", 5)]
        printed = done.stdout.partition("golden.png\n")[2]  # TensorRT's own messages may come before
        lines = [line.split() for line in printed.splitlines()]
        assert [label for _, label in lines] == [answer["label"] for answer in golden]
        shares = [float(share.rstrip("%")) / 100 for share, _ in lines]
        assert shares == pytest.approx([answer["probability"] for answer in golden], abs=0.002)
        assert (path / "model.plan").stat().st_size > 1000
    (path / "model.plan").write_bytes(b"of another GPU")
    done = subprocess.run(
        [sys.executable, "classify.py"], cwd=path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip().endswith("model.plan is of another TensorRT or GPU: delete it, and it is built again")


def test_the_python_program_names_what_the_bindings_have(rtx: Library) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    code = (_TEMPLATES / "classify_tensorrt.py").read_text()
    names = set(re.findall(r"\bcuda[A-Z]\w+|\bcuda(?=Success)\w+", code))
    assert len(names) > 8
    for name in names:
        places = (runtime, runtime.cudaError_t, runtime.cudaMemcpyKind)
        assert any(hasattr(place, name) for place in places), name
    for name in re.findall(r"self\.engine\.(\w+)", code):
        assert hasattr(rtx.module.ICudaEngine, name)
    for name in re.findall(r"self\.context\.(\w+)", code):
        assert hasattr(rtx.module.IExecutionContext, name)


def test_the_cpp_program_is_read_by_the_compiler(built: Path, tmp_path: Path, rtx: Library) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    path = export(built, tmp_path / "out", format="cpp", frame=(48, 64))
    (tmp_path / "include").mkdir()
    (tmp_path / "include/NvInfer.h").write_text(make_header(rtx))
    (tmp_path / "include/cuda_runtime_api.h").write_text(make_cuda_header())
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", str(tmp_path / "include")]
    command.append(str(path / "classify.cc"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "neither linked nor run" in (path / "README.md").read_text()
    header = tmp_path / "include/NvInfer.h"
    header.write_text(header.read_text().replace("enqueueV3", "enqueueV2"))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def make_cuda_header() -> str:
    """cuda_runtime_api.h as far as the program uses it; every name in it is one of NVIDIA's Python binding."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    kinds = runtime.cudaMemcpyKind
    for name in _CUDA:
        assert hasattr(runtime, name), name
    return f"""#pragma once
#include <cstddef>
enum cudaError_t {{ cudaSuccess = {int(runtime.cudaError_t.cudaSuccess)} }};
enum cudaMemcpyKind {{ cudaMemcpyHostToDevice = {int(kinds.cudaMemcpyHostToDevice)}, cudaMemcpyDeviceToHost = {int(kinds.cudaMemcpyDeviceToHost)} }};
typedef struct CUstream_st* cudaStream_t;
{chr(10).join(_CUDA.values())}
"""


def make_header(library: Library) -> str:
    """NvInfer.h as far as the program uses it; every class, name and number in it is one of the Python binding."""
    trt = library.module
    classes = []
    for name, members in _CLASSES.items():
        for member in members:
            assert hasattr(getattr(trt, name), member), f"{name}.{member}"
        cpp = {"Runtime": "IRuntime"}.get(name, name)
        classes.append(f"class {cpp} {{ public: virtual ~{cpp}() noexcept = default; {' '.join(members.values())} }};")
    kinds = {"kFLOAT": trt.DataType.FLOAT, "kHALF": trt.DataType.HALF, "kINT8": trt.DataType.INT8, "kINT32": trt.DataType.INT32}
    kinds |= {"kBOOL": trt.DataType.BOOL, "kUINT8": trt.DataType.UINT8, "kINT64": trt.DataType.INT64}
    # The program tells types apart by number, because older headers lack some of the names.
    assert [int(kinds[name]) for name in ("kFLOAT", "kINT32", "kUINT8", "kINT64")] == [0, 3, 5, 8]
    types = ", ".join(f"{name} = {int(kind)}" for name, kind in kinds.items())
    modes = ", ".join(f"k{name} = {int(getattr(trt.TensorIOMode, name))}" for name in ("NONE", "INPUT", "OUTPUT"))
    levels = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
    severities = ", ".join(f"k{name} = {int(getattr(trt.ILogger.Severity, name))}" for name in levels)
    return f"""#pragma once
#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>
namespace nvinfer1 {{
enum class DataType : int32_t {{ {types} }};
enum class TensorIOMode : int32_t {{ {modes} }};
struct Dims {{ int32_t nbDims; int64_t d[{trt.Dims.MAX_DIMS}]; }};
class ILogger {{
 public:
  enum class Severity : int32_t {{ {severities} }};
  virtual void log(Severity severity, const char* text) noexcept = 0;
  virtual ~ILogger() = default;
}};
{chr(10).join(classes)}
IRuntime* createInferRuntime(ILogger& logger) noexcept;
}}
"""
