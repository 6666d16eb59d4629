from __future__ import annotations

import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_tprune.errors import UserError
from edge_tprune.runtime.engine import EngineInfo, open_engine, runtime_version

SHAPE = (2, 3, 4, 4)


def write_graph(file: Path, shape: tuple[int | str, ...] = SHAPE, dtype: int = TensorProto.FLOAT, outputs: int = 1) -> Path:
    """Twice the image, flattened: (B, 48)."""
    names = [f"logits{index}" for index in range(outputs)]
    nodes = [helper.make_node("Add", ["image", "image"], ["twice"])]
    nodes += [helper.make_node("Flatten", ["twice"], [name]) for name in names]
    out = [helper.make_tensor_value_info(name, dtype, [shape[0], 48]) for name in names]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("image", dtype, shape)], out)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file


def test_onnxruntime_writes_and_sends_nothing_of_its_own(tmp_path: Path) -> None:
    """Its telemetry keeps a database below the home directory."""
    script = "from edge_tprune.runtime import ort; ort.open_engine(__import__('pathlib').Path('graph.onnx'), 1)"
    write_graph(tmp_path / "graph.onnx")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    (tmp_path / "home").mkdir()
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
    assert {path.name for path in tmp_path.rglob("*")} == {"graph.onnx", "home"}


def test_a_path_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    with pytest.raises(UserError, match="whose path is not UTF-8 text: rename "):
        open_engine(write_graph(tmp_path / "graph.onnx").rename(folder / "graph.onnx"), "onnxruntime", threads=1)


def test_runs_a_graph_and_tells_its_shapes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    with open_engine(write_graph(tmp_path / "g.onnx"), "onnxruntime", threads=1) as engine:
        logits = engine.run(image)
        assert (engine.input_shape, engine.output_shape) == (SHAPE, (2, 48))
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, 2 * image.reshape(2, 48))


def test_says_what_ran(tmp_path: Path) -> None:
    with open_engine(write_graph(tmp_path / "g.onnx"), "onnxruntime", threads=2) as engine:
        assert engine.info == EngineInfo(
            runtime="onnxruntime",
            version=runtime_version("onnxruntime"),
            threads=2,
            providers=("CPUExecutionProvider",),
        )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 3, 4, 4), np.float32),
        np.zeros((2, 3, 4), np.float32),
        np.zeros(SHAPE, np.float64),
        np.zeros(SHAPE, np.uint8),
    ],
)
def test_refuses_another_shape_or_dtype(tmp_path: Path, image: np.ndarray) -> None:
    engine = open_engine(write_graph(tmp_path / "g.onnx"), "onnxruntime", threads=1)
    with engine, pytest.raises(UserError) as error:
        engine.run(image)
    for fact in ("float32", str(SHAPE), str(image.dtype), str(image.shape)):
        assert fact in str(error.value)


def test_close_frees_the_session_and_may_be_called_twice(tmp_path: Path) -> None:
    engine = open_engine(write_graph(tmp_path / "g.onnx"), "onnxruntime", threads=1)
    session = weakref.ref(engine._session)  # type: ignore[attr-defined]
    engine.close()
    engine.close()
    assert session() is None
    with pytest.raises(UserError, match="closed"):
        engine.run(np.zeros(SHAPE, np.float32))


def test_onnx_runtime_writes_no_names_of_a_foreign_graph_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = [1, 3, 4, 4]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 48])
    nodes = [
        helper.make_node("Cast", ["image"], ["index"], to=TensorProto.INT64),
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Flatten", ["index"], ["indices"]),
        helper.make_node("GatherElements", ["flat", "indices"], ["logits"], name="\x1b[31mgather", axis=1),
    ]
    graph = helper.make_graph(nodes, "g", [image], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")
    engine = open_engine(tmp_path / "g.onnx", "onnxruntime", threads=1)
    with pytest.raises(UserError, match=r"cannot run .*g\.onnx: .*GatherElements"):
        engine.run(np.full(shape, 1000, np.float32))
    assert "\x1b" not in "".join(capfd.readouterr())


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"cannot load .*broken\.onnx") as error:
        open_engine(file, "onnxruntime", threads=1)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"absent\.onnx does not exist"):
        open_engine(tmp_path / "absent.onnx", "onnxruntime", threads=1)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"shape": ("batch", 3, 4, 4)}, "static shape"),
        ({"dtype": TensorProto.DOUBLE}, "must be float32"),
        ({"outputs": 2}, "2 outputs"),
    ],
)
def test_refuses_graphs_that_are_no_static_float32_image_model(tmp_path: Path, graph: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_engine(write_graph(tmp_path / "g.onnx", **graph), "onnxruntime", threads=1)  # type: ignore[arg-type]


def test_an_unknown_runtime_brings_near_matches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean onnxruntime"):
        open_engine(tmp_path / "g.onnx", "onxruntime", threads=1)


def test_needs_a_thread(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 to 1024 threads, not 0"):
        open_engine(tmp_path / "g.onnx", "onnxruntime", threads=0)


def test_a_missing_runtime_names_the_extra_that_brings_it() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from edge_tprune.errors import UserError\n"
        "from edge_tprune.runtime.engine import open_engine\n"
        "try: open_engine(Path('g.onnx'), 'onnxruntime', threads=1)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'edge-tprune[ort]'" in done.stdout
