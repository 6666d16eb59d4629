"""Student's quantiles, and what is said without SciPy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.statistics import (
    student_95,
)


def test_without_scipy_the_error_says_what_to_install():
    code = (  # None in sys.modules would be a package that is there and broken, as the import of a sub-module sees it
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'scipy': raise ModuleNotFoundError('No module named scipy', name='scipy')\n"
        "sys.meta_path.insert(0, Absent)\n"
        "from edge_tprune.errors import UserError\n"
        "from edge_tprune.statistics import mean_interval\n"
        "try: mean_interval([1, 2, 3])\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "scipy" in done.stdout
    assert "edge-tprune[analysis]" in done.stdout


@pytest.mark.parametrize("megabytes", [180, 220, 260, 300])
def test_with_little_memory_scipy_is_loaded_or_not_and_nothing_waits(megabytes: int) -> None:
    code = (
        "import numpy, resource\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({megabytes} << 20,) * 2)\n"
        "from edge_tprune.processes import guard_memory; guard_memory()\n"
        "from edge_tprune.statistics.distributions import special\n"
        "print(special('stdtrit')(5, 0.975))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("2.57") if done.returncode == 0 else done.stderr.endswith("MemoryError\n")


@given(st.floats(1, 500))
def test_students_quantile(freedom: float) -> None:
    exact = scipy.stats.t.ppf(0.975, freedom)
    assert student_95(freedom) >= exact * (0.995 if freedom >= 3 else 0.999)
    if freedom >= 3:
        assert student_95(freedom) == pytest.approx(exact, rel=0.005)
