"""The CUDA interface: without a GPU its errors and every call's signature, with one (`make test-gpu`) the work itself, in both bindings."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import BINDINGS, Cuda, CudaError, cuda_python, installed_bindings, open_cuda


def test_no_driver_is_one_clear_line(no_gpu: None) -> None:
    if "cuda-python" not in installed_bindings():
        pytest.skip("cuda-python is not installed")
    with pytest.raises(UserError, match=r"no CUDA driver|too old|sees no GPU") as error:
        open_cuda("cuda-python")
    assert "\n" not in str(error.value)


def test_a_driver_that_is_too_old_says_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the real runtime answers where the driver is older than it: here there is none, so the driver's version is put in its place."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    error = runtime.cudaGetDeviceCount()[0]
    if error != runtime.cudaError_t.cudaErrorInsufficientDriver:
        pytest.skip("this machine has a driver")
    monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (runtime.cudaError_t.cudaSuccess, 11040))
    with pytest.raises(
        UserError, match=r"serves CUDA 11\.4, and cuda-python here needs 1\d\.\d.*pip install 'cuda-python==11\.\*'"
    ):
        open_cuda("cuda-python")


def test_an_unknown_binding_brings_near_matches() -> None:
    with pytest.raises(UserError, match="Did you mean pycuda"):
        open_cuda("pycud")


def test_no_binding_at_all_names_the_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('cuda', 'cuda.bindings', 'pycuda'): sys.modules[name] = None\n"
        "from edge_tprune.errors import UserError\n"
        "from edge_tprune.runtime.cuda import installed_bindings, open_cuda\n"
        "assert installed_bindings() == []\n"
        "try: open_cuda()\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'edge-tprune[cuda]'" in done.stdout


def test_every_runtime_call_exists_and_takes_so_many_arguments() -> None:
    """The nearest thing to running them that a machine without a GPU allows: each call by name, against the real binding's signature."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    calls = [
        (node.args[0].value, len(node.args) - 1)
        for node in ast.walk(ast.parse(Path(cuda_python.__file__).read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "_call"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert len(calls) >= 25
    for name, count in calls:
        signature = (getattr(runtime, name).__doc__ or "").splitlines()[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")].strip()
        assert count == (inside.count(",") + 1 if inside else 0), f"{name}: {signature}"


def test_every_constant_of_the_runtime_exists() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse(Path(cuda_python.__file__).read_text())

    def path(node: ast.expr) -> str | None:
        if isinstance(node, ast.Attribute):
            before = path(node.value)
            return None if before is None else f"{before}.{node.attr}"
        return node.id if isinstance(node, ast.Name) else None

    found = {path(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    constants = {name.removeprefix("self._runtime.") for name in found if name and name.startswith("self._runtime.")}
    assert {"cudaHostAllocMapped", "cudaDeviceScheduleSpin", "cudaError_t.cudaSuccess"} <= constants
    for constant in constants:
        value = runtime
        for part in constant.split("."):
            value = getattr(value, part)


def test_both_bindings_do_everything() -> None:
    abstract = {name for name, member in inspect.getmembers(Cuda) if getattr(member, "__isabstractmethod__", False)}
    assert len(abstract) >= 18
    from edge_tprune.runtime.cuda.cuda_python import CudaPython
    from edge_tprune.runtime.cuda.pycuda_binding import PyCuda

    for binding in (CudaPython, PyCuda):
        assert not getattr(binding, "__abstractmethods__", None)
        for name in abstract:
            assert inspect.signature(getattr(binding, name)) == inspect.signature(getattr(Cuda, name)), name


# With a GPU.


@pytest.fixture(params=sorted(BINDINGS))
def cuda(request: pytest.FixtureRequest) -> Cuda:
    if request.param not in installed_bindings():
        pytest.skip(f"{request.param} is not installed")
    try:
        opened = open_cuda(request.param)
    except UserError as error:
        pytest.skip(str(error))
    return opened


@pytest.mark.gpu
def test_says_what_gpu_it_is(cuda: Cuda) -> None:
    major, _, minor = cuda.device.sm.partition(".")
    assert int(major) >= 5
    assert minor.isdigit()
    assert cuda.device.name
    assert cuda.device.memory_bytes > 10**9
    assert 0 < cuda.free_bytes() <= cuda.device.memory_bytes


@pytest.mark.gpu
def test_both_bindings_see_the_same_gpu(cuda: Cuda) -> None:
    assert cuda.device == open_cuda().device


@pytest.mark.gpu
def test_copies_there_and_back(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    source, _ = cuda.allocate_host((3, 1000), mapped=False)
    target, _ = cuda.allocate_host((3, 1000), mapped=False)
    address = cuda.allocate(source.nbytes)
    source[...] = np.random.default_rng(0).standard_normal(source.shape, dtype=np.float32)
    target[...] = 0
    cuda.copy_to_device(address, source, stream)
    cuda.copy_to_host(target, address, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(target, source)
    cuda.free(address)
    cuda.free_host(source)
    cuda.free_host(target)
    cuda.destroy_stream(stream)


@pytest.mark.gpu
def test_mapped_memory_is_the_gpus_too(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    mapped, address = cuda.allocate_host((1000,), mapped=True)
    target, _ = cuda.allocate_host((1000,), mapped=False)
    assert address
    mapped[...] = np.arange(1000)
    cuda.copy_to_host(target, address, stream)  # the GPU reads by its own address what the CPU wrote
    cuda.synchronize(stream)
    np.testing.assert_array_equal(target, np.arange(1000))
    cuda.free_host(mapped)
    cuda.free_host(target)


@pytest.mark.gpu
def test_events_take_times_that_grow_with_the_work(cuda: Cuda) -> None:
    stream = cuda.create_stream()
    array, _ = cuda.allocate_host((16_000_000,), mapped=False)
    address = cuda.allocate(array.nbytes)
    begin, middle, end = (cuda.create_event() for _ in range(3))
    cuda.copy_to_device(address, array, stream)  # warm
    cuda.record(begin, stream)
    cuda.copy_to_device(address, array, stream)
    cuda.record(middle, stream)
    for _ in range(8):
        cuda.copy_to_device(address, array, stream)
    cuda.record(end, stream)
    cuda.synchronize(stream)
    assert 0 < cuda.elapsed_ns(begin, middle) < cuda.elapsed_ns(middle, end)
    assert cuda.elapsed_ns(begin, end) == pytest.approx(cuda.elapsed_ns(begin, middle) + cuda.elapsed_ns(middle, end), rel=0.01)
    cuda.free(address)
    cuda.free_host(array)


@pytest.mark.gpu
def test_a_graph_does_what_was_captured_each_time_it_is_launched(cuda: Cuda) -> None:
    if cuda.name == "pycuda":
        with pytest.raises(CudaError, match="no CUDA graphs"):
            cuda.capture(cuda.create_stream(), lambda: None)
        return
    stream = cuda.create_stream()
    source, _ = cuda.allocate_host((100,), mapped=False)
    target, _ = cuda.allocate_host((100,), mapped=False)
    address = cuda.allocate(source.nbytes)

    def work() -> None:
        cuda.copy_to_device(address, source, stream)
        cuda.copy_to_host(target, address, stream)

    target[...] = -1
    graph = cuda.capture(stream, work)
    cuda.synchronize(stream)
    assert (target == -1).all()  # captured, not executed
    for value in (1.0, 2.0):
        source[...] = value
        cuda.launch(graph, stream)
        cuda.synchronize(stream)
        assert (target == value).all()
    cuda.destroy_graph(graph)


@pytest.mark.gpu
def test_a_failed_capture_leaves_the_stream_usable(cuda: Cuda) -> None:
    if cuda.name == "pycuda":
        pytest.skip("pycuda has no CUDA graphs")
    stream = cuda.create_stream()

    def work() -> None:
        raise CudaError("not this one")

    with pytest.raises(CudaError, match="not this one"):
        cuda.capture(stream, work)
    cuda.synchronize(stream)


@pytest.mark.gpu
def test_too_much_memory_is_one_clear_line(cuda: Cuda) -> None:
    with pytest.raises(UserError, match="out of memory"):
        cuda.allocate(cuda.device.memory_bytes * 4)
    cuda.free(cuda.allocate(1000))  # and it goes on
