"""Runs a program as its user would: with the packages that it says it needs, and nothing else of this environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

_STDLIB_ONLY = "import runpy, sys; sys.path[:0] = sys.argv[1].split(':'); sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
#: A distribution -> what it installs; the second of onnxruntime's are its own needs.
_INSTALLED = {
    "numpy": ("numpy", "numpy.libs"),
    "pillow": ("PIL", "pillow.libs"),
    "onnxruntime": ("onnxruntime", "flatbuffers", "google", "packaging"),
}


def run_alone(program: Path, *arguments: str, requirements: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a Python program that sees the packages of its requirements.txt alone; `folder` is scratch."""
    folder.mkdir()
    site = Path(np.__file__).parents[1]
    for line in requirements.read_text().split():
        for name in _INSTALLED[line.partition(">=")[0]]:
            if (site / name).exists():
                (folder / name).symlink_to(site / name)
    path = f"{program.parent}:{folder}"
    command = [sys.executable, "-I", "-S", "-c", _STDLIB_ONLY, path, str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
