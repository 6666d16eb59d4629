"""Golden data that is damaged in whatever way is one line; an engine that is another network is found out."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_tprune.bundle.arrays import DamagedArrays, read_arrays
from edge_tprune.bundle.bundle import Bundle
from edge_tprune.bundle.golden import Golden, check_golden
from edge_tprune.errors import UserError
from edge_tprune.runtime.engine import open_engine


def arrays_of(bundle: Bundle) -> dict[str, Any]:
    with np.load(bundle.path / "golden.npz", allow_pickle=False) as data:
        return dict(data)


def npy(shape: str, data: bytes = b"", dtype: str = "<f4") -> bytes:
    """An array whose header says what it likes."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def archive(members: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def saved(arrays: dict[str, Any], compress: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def encrypted(data: bytes) -> bytes:
    """The flag that says so, in every header of the archive."""
    out = bytearray(data)
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = out.find(signature)
        while place >= 0:
            out[place + offset] |= 1
            place = out.find(signature, place + 4)
    return bytes(out)


def test_reads_what_was_written(bundle: Bundle) -> None:
    golden, arrays = bundle.golden(), arrays_of(bundle)
    np.testing.assert_array_equal(golden.images, arrays["input"])
    assert golden.outputs.keys() == {"1.0", "0.8", "0.6"}
    for name, logits in golden.outputs.items():
        np.testing.assert_array_equal(logits, arrays[f"logits/{name}"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda arrays: b"", "not a readable .npz file"),
        (lambda arrays: b"0" * 1000, "not a readable .npz file"),
        (lambda arrays: saved(arrays)[:-30], "not a readable .npz file"),
        (lambda arrays: saved(arrays, compress=True), "it is compressed"),
        (lambda arrays: encrypted(saved(arrays)), "it is encrypted"),
        (lambda arrays: saved({"input": arrays["input"]}), "it has no array 'logits/1.0'"),
        (lambda arrays: saved({**arrays, "input": arrays["input"][:, :, :, :9]}), "input is float32"),
        (lambda arrays: saved({**arrays, "input": arrays["input"][:0]}), "input is float32 (0, 1, 3, 48, 48)"),
        (lambda arrays: saved({**arrays, "input": arrays["input"].astype(float)}), "input is float64"),
        (lambda arrays: saved({**arrays, "logits/0.6": arrays["logits/0.6"][:1]}), "logits/0.6 are of 1 batches"),
        (lambda arrays: saved({**arrays, "logits/0.6": arrays["logits/0.6"] * np.nan}), "not finite"),
        (lambda arrays: archive({"input.npy": npy("(-1, 2)")}), "an array has shape (-1, 2)"),
        (lambda arrays: archive({"input.npy": npy("(1000000000000000,)")}), "an array has shape (1e+15)"),
        (lambda arrays: archive({"input.npy": npy("(100,)", b"x")}), "an array of shape (100) is cut off"),
        (lambda arrays: archive({"input.npy": npy("(1,)", b"x" * 8, "|O")}), "an array is of type object"),
        (lambda arrays: archive({"input.npy": b"\x93NUMPY\x09\x00"}), "an array has format 9.0"),
        (lambda arrays: archive({"input.npy": npy("(" * 500)}), "not a readable .npz file"),
        (lambda arrays: archive({"input.npy": b""}), "not a readable .npz file"),
    ],
)
def test_damaged_golden_data_is_one_line(bundle: Bundle, damage: Any, says: str) -> None:
    (bundle.path / "golden.npz").write_bytes(damage(arrays_of(bundle)))
    with pytest.raises(UserError) as caught:
        bundle.golden()
    assert f"golden.npz is damaged: {says}" in str(caught.value) or says in str(caught.value)
    assert str(caught.value).isprintable()


def test_arrays_that_would_become_too_large(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, zeros=np.zeros(10**6))
    assert read_arrays(file, 10**7)["zeros"].shape == (10**6,)
    with pytest.raises(DamagedArrays, match="shape"):
        read_arrays(file, 10**6)
    np.savez(file, a=np.zeros(600), b=np.zeros(600))
    with pytest.raises(DamagedArrays, match="shape"):
        read_arrays(file, 9000)


_FILE = saved({"input": np.arange(12, dtype=np.float32).reshape(3, 4), "flags": np.ones(5, bool)})


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), compress=st.booleans())
def test_any_damaged_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject, compress: bool) -> None:
    content = bytearray(_FILE if not compress else saved({"input": np.zeros((3, 4), np.float32)}, compress=True))
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, min(len(content), begin + 9)))
    content[begin:end] = data.draw(st.binary(max_size=9))
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    try:
        arrays = read_arrays(file, 10**6)
    except DamagedArrays as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(array.nbytes <= 10**6 for array in arrays.values())
    assert refusal.isprintable()


def without_outliers(arrays: dict[str, Any]) -> dict[str, Any]:
    """What bundles held before there were outlier images."""
    return {name: array for name, array in arrays.items() if not name.startswith("outlier")}


def test_the_difference_is_that_of_the_worst_logit(bundle: Bundle) -> None:
    golden = bundle.golden()
    plain = replace(golden, outliers=None)
    with open_engine(bundle.path / bundle.budget("0.6").artifact("onnxruntime").file, "onnxruntime", threads=1) as engine:
        assert check_golden(engine.run, golden, "0.6").difference < 1e-4
        for amount, passes in ((5e-4, True), (0.5, False), (np.nan, False)):
            moved = golden.outputs["0.6"].copy()
            moved[-1, 0, -1] += amount
            result = check_golden(engine.run, replace(plain, outputs={"0.6": moved}), "0.6")
            assert result.passed is passes
            if np.isfinite(amount):
                assert result.difference == pytest.approx(amount, abs=1e-4)
        assert "its logits are not finite numbers" in result.describe()
        with pytest.raises(UserError, match="logits of shape"):
            check_golden(engine.run, replace(plain, outputs={"0.6": golden.outputs["0.6"][..., :5]}), "0.6")


def test_an_engine_that_is_wrong_on_one_outlier_image_only(bundle: Bundle) -> None:
    golden = bundle.golden()
    assert golden.outliers is not None
    white = golden.outliers.images[1]
    with open_engine(bundle.path / bundle.budget("0.6").artifact("onnxruntime").file, "onnxruntime", threads=1) as engine:

        def saturates(batch: np.ndarray) -> np.ndarray:
            return engine.run(batch) * (2 if np.array_equal(batch, white) else 1)

        assert check_golden(engine.run, golden, "0.6").passed
        result = check_golden(saturates, golden, "0.6")
    assert list(result.failed_outliers) == ["all white"]
    assert result.difference <= result.allowed
    assert not result.passed
    assert "on the outlier image 'all white'" in result.describe()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop("outlier/logits/0.8"), "no array 'outlier/logits/0.8'"),
        (lambda a: a.pop("outlier/allowed/fp32/0.6"), "no array 'outlier/allowed/fp32/0.6'"),
        (lambda a: a.update({"outlier": a["outlier"][:4]}), "outlier holds 4 images"),
        (lambda a: a.update({"outlier/logits/0.8": a["outlier/logits/0.8"][:4]}), "outlier/logits/0.8 are of 4 batches"),
        (lambda a: a.update({"outlier/allowed/fp32/1.0": a["outlier/allowed/fp32/1.0"] * np.inf}), "not finite"),
    ],
)
def test_damaged_outliers_are_one_line(bundle: Bundle, change: Any, says: str) -> None:
    arrays = arrays_of(bundle)
    change(arrays)
    (bundle.path / "golden.npz").write_bytes(saved(arrays))
    with pytest.raises(UserError, match=says):
        bundle.golden()


def test_a_bundle_without_outliers_stays_readable(bundle: Bundle) -> None:
    (bundle.path / "golden.npz").write_bytes(saved(without_outliers(arrays_of(bundle))))
    golden = bundle.golden()
    assert golden.outliers is None
    with open_engine(bundle.path / bundle.budget("0.6").artifact("onnxruntime").file, "onnxruntime", threads=1) as engine:
        assert check_golden(engine.run, golden, "0.6").passed


def test_integers_may_move_an_ordinary_image_as_far_as_they_did_when_built() -> None:
    """Where they turned a near tie, and no other image."""
    outputs = {"0.5": np.zeros((2, 1, 4), np.float32)}
    allowed = {("0.5", "int8"): np.array([[9.0], [0.1]], np.float32)}
    golden = Golden(np.zeros((2, 1, 3, 2, 2), np.float32), outputs, None, allowed)

    def engine(*moved: float) -> Callable[[np.ndarray], np.ndarray]:
        left = [np.full((1, 4), each, np.float32) for each in moved]
        return lambda _: left.pop(0)

    assert check_golden(engine(8.0, 2.9), golden, "0.5", precision="int8").passed
    bad = check_golden(engine(8.0, 3.1), golden, "0.5", precision="int8")
    assert (bad.passed, bad.allowed, bad.worst_batch) == (False, 3.0, 1)
    assert not check_golden(engine(float("nan"), 0.0), golden, "0.5", precision="int8").passed
    assert not check_golden(engine(8.0, 0.0), golden, "0.5", precision="fp16").passed, "the bound is of integers"
