from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_tprune.agent.observer import Observer
from edge_tprune.agent.probe import _run_probe, check_budget
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.record.lines import Check

from .conftest import MakeBundle
from .tiny_bundle import change_golden


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_grows_with_the_weights(bundle: Bundle) -> None:
    small, big = (check_budget(bundle, name, runtime="onnxruntime", threads=1)[0] for name in ("small", "big"))
    assert small.golden_ok
    assert big.golden_ok
    assert small.golden_max_abs_diff is not None
    assert small.golden_max_abs_diff < 1e-5
    assert small.load_ms is not None
    assert big.load_ms is not None
    assert 0 < small.load_ms < big.load_ms
    assert small.peak_memory_bytes is not None
    assert big.peak_memory_bytes is not None
    assert 0 < small.peak_memory_bytes < 15e6
    assert big.peak_memory_bytes - small.peak_memory_bytes > 0.9 * 20 * 512 * 512 * 4


@pytest.mark.parametrize(("amount", "ok", "diff"), [(5e-4, True, 5e-4), (0.25, False, 0.25)])
def test_golden_outputs_are_compared(make_bundle: MakeBundle, amount: float, ok: bool, diff: float) -> None:
    path = make_bundle({"a": (1, 16)})
    change_golden(path, "a", amount)
    check, _ = check_budget(Bundle.open(path), "a", runtime="onnxruntime", threads=1)
    assert check.golden_ok is ok
    assert check.golden_max_abs_diff == pytest.approx(diff, rel=0.01)
    assert check.error is None


def test_golden_outputs_that_are_not_finite_are_damage(make_bundle: MakeBundle) -> None:
    path = make_bundle({"a": (1, 16)})
    change_golden(path, "a", float("nan"))
    check, _ = check_budget(Bundle.open(path), "a", runtime="onnxruntime", threads=1)
    assert not check.golden_ok
    assert "golden.npz is damaged: logits/a holds numbers that are not finite" in (check.error or "")


def test_a_graph_that_cannot_be_loaded_is_a_failed_check(make_bundle: MakeBundle) -> None:
    path = make_bundle({"a": (1, 16)})
    bundle = Bundle.open(path)
    (path / "onnx/a.onnx").write_bytes(b"broken")
    check, _ = check_budget(bundle, "a", runtime="onnxruntime", threads=1)
    assert not check.golden_ok
    assert check.peak_memory_bytes is None
    assert "cannot load" in str(check.error)
    assert "a.onnx" in str(check.error)


def test_the_module_prints_one_json_object(bundle_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edge_tprune.agent.probe",
        str(bundle_path),
        "small",
        "--runtime",
        "onnxruntime",
        "--threads",
        "1",
    ]
    probed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert set(probed) == {"check", "file"}
    found = probed["check"]
    assert (found["budget"], found["golden_ok"], found["error"]) == ("small", True, None)
    assert set(found) == set(Check.__struct_fields__)
    assert (found["engine"]["runtime"], found["engine"]["threads"]) == ("onnxruntime", 1)
    command[4] = "smal"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean small?" in done.stderr


def test_works_from_any_directory(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    if sys.version_info >= (3, 11):  # before, Python has no way to leave the current directory out
        assert check_budget(bundle, "small", runtime="onnxruntime", threads=1)[0].golden_ok


def test_what_python_prints_as_it_starts_is_no_answer(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sitecustomize.py that greets, as on some clusters."""
    (tmp_path / "sitecustomize.py").write_text("print('Welcome'); print('{no JSON')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert check_budget(bundle, "small", runtime="onnxruntime", threads=1)[0].golden_ok
    with Observer() as observer:
        assert observer.problem is None
        assert observer.sources


def test_what_a_check_leaves_running_is_not_waited_for() -> None:
    started = time.monotonic()
    left = [sys.executable, "-c", "import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.exit('no engine')"]
    assert _run_probe(left, "small").check.error == "no engine"
    assert time.monotonic() - started < 30
