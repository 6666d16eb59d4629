"""The TensorRT runner: without a GPU its errors, and its calls against the real library's classes; with one (`make test-gpu`) the work."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_tprune.errors import UserError
from edge_tprune.runtime.cuda import Cuda, installed_bindings, open_cuda
from edge_tprune.runtime.engine import open_engine, runtime_version
from edge_tprune.runtime.tensorrt import runner as tensorrt
from edge_tprune.runtime.tensorrt.builder import Network
from edge_tprune.runtime.tensorrt.inspection import describe_engine
from edge_tprune.runtime.tensorrt.library import MODULES, Library, TensorRTLog, load, rtx_targets, unserved
from edge_tprune.runtime.tensorrt.record import EngineSettings
from edge_tprune.runtime.tensorrt.runner import TensorRTEngine

SHAPE = (2, 3, 8, 8)


@pytest.fixture(scope="module")
def rtx() -> Library:
    try:
        return load("tensorrt-rtx")
    except UserError as error:
        pytest.skip(str(error))


def printed(code: str, *paths: Path) -> str:
    """What a fresh Python prints that has only `paths` more to look into."""
    start = (
        f"import sys\nsys.path[:0] = {[str(path) for path in paths]!r}\n"
        "from edge_tprune.errors import UserError\nfrom edge_tprune.runtime.tensorrt.library import load\n"
    )
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_missing_library_says_how_to_get_it() -> None:
    code = (
        "for name in ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings'): sys.modules[name] = None\n"
        "for runtime in ('tensorrt', 'tensorrt-rtx'):\n"
        "    try: load(runtime)\n"
        "    except UserError as error: print(error)"
    )
    tensorrt_line, rtx_line = printed(code).splitlines()
    assert "JetPack" in tensorrt_line
    assert "--system-site-packages" in tensorrt_line
    assert "pip install 'edge-tprune[rtx]'" in rtx_line


def test_a_library_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt/__init__.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    line = printed("try: load('tensorrt')\nexcept UserError as error: print(error)", tmp_path)
    assert "installed but cannot be imported (libnvinfer.so.10: cannot open" in line


def test_tells_the_librarys_version(rtx: Library) -> None:
    assert runtime_version("tensorrt-rtx") == rtx.module.__version__ == rtx.version


def test_the_gpus_that_engines_can_be_built_for(rtx: Library) -> None:
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(rtx_targets(rtx))


def test_without_a_gpu_an_engine_is_one_clear_line(rtx: Library, no_gpu: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_engine(tmp_path / "none.plan", "tensorrt-rtx", threads=1)
    (tmp_path / "a.plan").write_bytes(b"engine")
    with pytest.raises(UserError, match=r"no CUDA driver|too old|sees no GPU|no Python binding") as error:
        open_engine(tmp_path / "a.plan", "tensorrt-rtx", threads=1)
    assert "\n" not in str(error.value)


def test_the_log_keeps_errors_and_warnings_on_one_line_each(rtx: Library) -> None:
    log, severity = TensorRTLog(rtx.module), rtx.module.ILogger.Severity
    assert log.why() == "it gave no reason"
    for kind, text in (
        (severity.INFO, "chatter"),
        (severity.WARNING, "careful"),
        (severity.ERROR, "the\n cause"),
        (severity.INTERNAL_ERROR, "what followed"),
        (severity.VERBOSE, "more chatter"),
    ):
        log.logger.log(kind, text)
    assert log.warnings == ["careful"]
    assert log.errors == ["the cause", "what followed"]
    assert log.why() == "the cause"


def test_a_jetson_is_not_for_rtx(rtx: Library) -> None:
    assert unserved(rtx, "8.6") is None
    assert "this GPU is sm87: use --runtime tensorrt" in str(unserved(rtx, "8.7"))


def test_every_call_is_one_of_the_real_classes(rtx: Library) -> None:
    """What the runner asks of an engine, a context and an inspector, against the classes of the real library."""
    classes = {
        "_engine": rtx.module.ICudaEngine,
        "engine": rtx.module.ICudaEngine,
        "_context": rtx.module.IExecutionContext,
        "context": rtx.module.IExecutionContext,
        "inspector": rtx.module.EngineInspector,
        "runtime": rtx.module.Runtime,
    }
    optional = {"device_memory_size"}  # of older versions, asked for only where the newer one is absent
    asked = set()
    for node in ast.walk(ast.parse(Path(tensorrt.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
            if owner in classes and node.attr not in optional:
                asked.add((owner, node.attr))
    assert {("_context", "execute_async_v3"), ("_context", "set_tensor_address"), ("engine", "get_tensor_mode")} <= asked
    for owner, name in asked:
        assert hasattr(classes[owner], name), f"{owner}.{name}"


# With a GPU.


def write_graph(file: Path) -> Path:
    """A convolution, a matrix product and a softmax: (B, 3, 8, 8) -> (B, 10)."""
    random = np.random.default_rng(0)
    weights = {"kernel": (8, 3, 4, 4), "head": (32, 10)}
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"], name="conv", strides=[4, 4]),
        helper.make_node("Flatten", ["a"], ["b"], name="flatten"),
        helper.make_node("MatMul", ["b", "head"], ["c"], name="head"),
        helper.make_node("Softmax", ["c"], ["logits"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [SHAPE[0], 10])],
        [numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file


@pytest.fixture(scope="module", params=sorted(MODULES))
def library(request: pytest.FixtureRequest) -> Library:
    try:
        found, device = load(request.param), open_cuda().device
    except UserError as error:
        pytest.skip(str(error))
    if why := unserved(found, device.sm):
        pytest.skip(why)
    return found


@pytest.fixture(scope="module")
def engine_file(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built for the GPU at hand."""
    folder = tmp_path_factory.mktemp("engine")
    built = Network(library, write_graph(folder / "g.onnx")).compile("fp32", EngineSettings())
    (folder / "g.plan").write_bytes(built.data)
    return folder / "g.plan"


def images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.standard_normal(SHAPE, dtype=np.float32) for _ in range(count)]


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_gives_the_logits_of_onnx_runtime(library: Library, engine_file: Path, graph: bool, binding: str) -> None:
    if binding not in installed_bindings():
        pytest.skip(f"{binding} is not installed")
    reference = open_engine(engine_file.with_name("g.onnx"), "onnxruntime", threads=1)
    with reference, TensorRTEngine(engine_file, library, 1, graph=graph, binding=binding) as engine:
        assert (engine.input_shape, engine.output_shape) == (reference.input_shape, reference.output_shape)
        assert engine.info.cuda_graph == (graph and binding == "cuda-python"), engine.info.cuda_graph_missing_because
        for image in images(5):  # another input each time: a replayed graph must not answer with the first
            np.testing.assert_allclose(engine.run(image), reference.run(image), atol=1e-5)


@pytest.mark.gpu
def test_the_stages_are_within_the_time_that_the_caller_saw(library: Library, engine_file: Path) -> None:
    with TensorRTEngine(engine_file, library, 1) as engine:
        for image in images(20):
            engine.run(image)
        engine.stages_ns()
        seen = []
        for image in images(50):
            begin = time.perf_counter_ns()
            engine.run(image)
            seen.append(time.perf_counter_ns() - begin)
        stages = engine.stages_ns()
        assert {stage: len(values) for stage, values in stages.items()} == {"h2d": 50, "compute": 50, "d2h": 50}
        for number, end_to_end in enumerate(seen):
            assert 0 < stages["compute"][number] < end_to_end
            assert sum(values[number] for values in stages.values()) < end_to_end
        assert engine.stages_ns() == {"h2d": [], "compute": [], "d2h": []}


@pytest.mark.gpu
def test_says_what_ran(library: Library, engine_file: Path) -> None:
    with TensorRTEngine(engine_file, library, 1) as engine:
        info = engine.info
    assert info.runtime == library.runtime
    assert info.engine_file_bytes == engine_file.stat().st_size
    assert info.scratch_bytes >= 0
    assert info.device_free_after_bytes <= info.device_free_before_bytes
    assert info.wait in ("spin", "auto", "yield", "block")
    assert info.built is None


@pytest.mark.gpu
def test_a_thousand_runs_take_no_memory(library: Library, engine_file: Path) -> None:
    cuda = open_cuda()
    image = images(1)[0]
    with TensorRTEngine(engine_file, library, 1) as engine:
        first = engine.run(image)
        free = cuda.free_bytes()
        for _ in range(1000):
            engine.run(image)
        np.testing.assert_array_equal(engine.run(image), first)
        assert free - cuda.free_bytes() < 2**20


def opened_and_closed(cuda: Cuda, engine_file: Path, library: Library) -> int:
    with TensorRTEngine(engine_file, library, 1) as engine:
        engine.run(images(1)[0])
    return cuda.free_bytes()


@pytest.mark.gpu
def test_closing_gives_the_memory_back(library: Library, engine_file: Path) -> None:
    cuda = open_cuda()
    free = opened_and_closed(cuda, engine_file, library)  # what the library keeps for good, it has taken now
    for _ in range(20):
        last = opened_and_closed(cuda, engine_file, library)
    assert free - last < 2**24


@pytest.mark.gpu
def test_a_closed_engine_says_so_and_may_be_closed_again(library: Library, engine_file: Path) -> None:
    engine = TensorRTEngine(engine_file, library, 1)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.run(images(1)[0])


@pytest.mark.gpu
def test_a_damaged_engine_file_is_one_clear_line(library: Library, engine_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.plan").write_bytes(engine_file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load") as error:
        TensorRTEngine(tmp_path / "x.plan", library, 1)
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_an_engine_file_for_another_gpu_is_refused(rtx: Library, tmp_path: Path) -> None:
    try:
        here = f"sm{open_cuda().device.sm.replace('.', '')}"
    except UserError as error:
        pytest.skip(str(error))
    other = next(target for target in rtx_targets(rtx) if target not in (here, "sm75"))
    built = Network(rtx, write_graph(tmp_path / "g.onnx")).compile("fp32", EngineSettings(), target=other)
    (tmp_path / "g.plan").write_bytes(built.data)
    with pytest.raises(UserError, match=r"Engine files run only on the GPU and with the version they were built for"):
        TensorRTEngine(tmp_path / "g.plan", rtx, 1)


@pytest.mark.gpu
def test_layers_and_their_times(library: Library, engine_file: Path) -> None:
    with TensorRTEngine(engine_file, library, 1) as engine:
        layers = engine.layers()
        times = engine.layer_times_ms(images(1)[0], runs=5)
    assert layers
    assert describe_engine(layers).fp16_layers_percent in (None, 0)
    assert times
    assert all(ms >= 0 for ms in times.values())
