"""Pictures do not depend on what a person configured for pictures of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PICTURE = """
import io, sys
from edge_tprune.errors import UserError
from edge_tprune.report.drawing import matplotlib_style
try:
    with matplotlib_style({"font.size": 9}):
        from matplotlib.figure import Figure
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4], label="budget 0.65_a$")
        figure.legend()
        stream = io.BytesIO()
        figure.savefig(stream, metadata={"Software": None})
except UserError as error:
    sys.exit(str(error))
sys.stdout.buffer.write(stream.getvalue())
"""


def _draw(place: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MPL")} | environment
    return subprocess.run([sys.executable, "-c", PICTURE], cwd=place, env=env, capture_output=True, timeout=100)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    done = _draw(tmp_path_factory.mktemp("plain"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\x89PNG")
    return done.stdout


@pytest.mark.parametrize("backend", ["Qt4Agg", "module://matplotlib_inline.backend_inline_that_is_not_here", "agg"])
def test_a_backend_of_a_notebook_changes_nothing(plain: bytes, tmp_path: Path, backend: str) -> None:
    done = _draw(tmp_path, MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain


@pytest.mark.parametrize(
    "line", ["text.usetex: True", "savefig.format: xyz", "savefig.dpi: 7", "axes.facecolor: red", "font.family: nosuchfont"]
)
def test_a_configuration_of_ones_own_changes_nothing(plain: bytes, tmp_path: Path, line: str) -> None:
    (tmp_path / "matplotlibrc").write_text(line)
    done = _draw(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"axes.facecolor: \xff\xfe\n")
    done = _draw(tmp_path)
    assert done.returncode == 1
    assert b"Matplotlib cannot be loaded; check its configuration (matplotlibrc)" in done.stderr
