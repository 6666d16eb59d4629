"""The program, compiled by the system's compiler, linked to the library of ONNX Runtime's Python package, and run.

No package of Python has ONNX Runtime's header. Where Debian's libonnxruntime-dev put it, or where ONNXRUNTIME_INCLUDE says, it is used; elsewhere
`include/onnxruntime_c_api.h`, which declares the functions that the program uses, at their places.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.formats.package import export_package
from edge_tprune.export.formats.request import ExportRequest

_PLACES = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include/onnxruntime/core/session")


def export(built: Path, out: Path, **changes: Any) -> Path:
    request = ExportRequest(**{"budget": "0.6", "format": "cpp", "out": out, "frame": (48, 64)} | changes)
    return export_package(Bundle.open(built), request).path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ONNX Runtime's header and library, as its releases have them."""
    places = [Path(p) for p in (os.environ.get("ONNXRUNTIME_INCLUDE"), *_PLACES) if p]
    places.append(Path(__file__).parent / "include")
    header = next(p / "onnxruntime_c_api.h" for p in places if (p / "onnxruntime_c_api.h").is_file())
    if shutil.which("g++") is None or shutil.which("cmake") is None:
        pytest.skip("needs g++ and cmake")
    library = next(iter((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")), None)
    if library is None:
        pytest.skip("this onnxruntime package holds no libonnxruntime.so to link to")
    path = tmp_path_factory.mktemp("onnxruntime")
    (path / "include").symlink_to(header.parent)
    (path / "lib").mkdir()
    (path / "lib/libonnxruntime.so").symlink_to(library)
    (path / "lib/libonnxruntime.so.1").symlink_to(library)
    return path


@pytest.mark.parametrize("top_k", [None, 3])
def test_the_program_prints_the_golden_answer(built: Path, root: Path, tmp_path: Path, top_k: int | None) -> None:
    path = export(built, tmp_path / "out", top_k=top_k)
    for command in (["cmake", "-B", "build", f"-DONNXRUNTIME_ROOT={root}"], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    environment = {"LD_LIBRARY_PATH": str(root / "lib")}
    program = [str(path / "build/classify"), "golden.ppm"]
    done = subprocess.run(program, cwd=path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    golden = json.loads((path / "golden.json").read_text())["top"][:top_k]
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [name for _, name in lines] == [answer["label"] for answer in golden]
    assert [float(share.rstrip("%")) / 100 for share, _ in lines] == pytest.approx(
        [a["probability"] for a in golden], abs=0.002
    )
    (path / "small.ppm").write_bytes(b"P6 2 2 255\n" + bytes(12))
    done = subprocess.run([program[0], "small.ppm"], cwd=path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "small.ppm has 2 x 2 pixels, and the graph takes 64 x 48\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": None}, "give --fold-preprocessing"),
        ({"channel_order": "bgr"}, "without --bgr"),
        ({"runtime": "tensorrt-rtx"}, "no program for tensorrt-rtx: use --runtime onnxruntime or tensorrt"),
    ],
)
def test_what_the_program_cannot_take(built: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(built, tmp_path / "out", **changes)
