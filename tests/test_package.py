"""What importing costs, and what boards need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import edge_tprune

ROOT = Path(__file__).parents[1]
RUN = ROOT / "tests" / "record" / "kept" / "version-1"
HOST_ONLY = ("polars", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "safetensors", "sklearn", "optuna")


def test_importing_the_package_is_light() -> None:
    code = "import sys, edge_tprune; print(sorted({'torch', 'timm', 'onnx', 'numpy', 'scipy', 'typer', 'rich'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names_are_found_lazily() -> None:
    assert callable(edge_tprune.prune)
    assert callable(edge_tprune.macs)
    assert not hasattr(edge_tprune, "nothing_of_this_name")


def test_every_extra_that_a_message_names_is_there() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "edge_tprune").rglob("*.py"))
    named = {*re.findall(r'missing_package\([^)]*?"(\w+)"[^"]*?\)', code), *re.findall(r"edge-tprune\[(\w+)\]", code)}
    assert {"analysis", "host", "cuda", "rtx", "ort"} <= named
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    assert named <= set(re.findall(r"^(\w+) = \[", extras.partition("\n[")[0], re.MULTILINE))


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", RUN, "--export", "rows.json"),
        ("compare", RUN, "--export", "rows.csv", "--markdown"),
        ("select", RUN, "--max-top1-drop", "2"),
        ("report", RUN, "--out", "page.html", "--picture", "accuracy.svg"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if isinstance(word, str)),
)
def test_reading_needs_only_the_extra_for_analysis(arguments: tuple[str | Path, ...], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {HOST_ONLY}:\n"
        "            raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "from edge_tprune.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for name in arguments:
        if str(name).endswith((".json", ".csv", ".html", ".svg")):
            assert (tmp_path / str(name)).stat().st_size > 100
