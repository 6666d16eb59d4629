"""What importing costs, and what boards need."""

from __future__ import annotations

import subprocess
import sys

import edge_tprune


def test_importing_the_package_is_light() -> None:
    code = "import sys, edge_tprune; print(sorted({'torch', 'timm', 'onnx', 'numpy', 'scipy', 'typer', 'rich'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names_are_found_lazily() -> None:
    assert callable(edge_tprune.prune)
    assert callable(edge_tprune.macs)
    assert not hasattr(edge_tprune, "nothing_of_this_name")
