"""The matrices against Pillow itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_tprune.export.formats.resize import cropped_matrix, resize_matrix


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + np.float32(0.5)), 0, 255)


@settings(max_examples=15)
@given(
    size=st.integers(16, 500),
    resized=st.integers(16, 200),
    interpolation=st.sampled_from(["bicubic", "bilinear", "lanczos", "hamming", "box"]),
    seed=st.integers(0, 99),
)
def test_one_axis_is_pillows(size: int, resized: int, interpolation: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, size)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((resized, 4), Image.Resampling[interpolation.upper()]))
    found = rounded(pixels.astype(np.float32) @ resize_matrix(size, resized, interpolation).T.astype(np.float32))
    difference = np.abs(found - expected)
    assert difference.max() <= 1  # a tie that float32 turns
    assert (difference > 0).mean() < 0.03


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_both_axes_of_a_photograph(interpolation: str) -> None:
    random = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(random.integers(0, 256, (30, 40)).astype(np.uint8)).resize((640, 480)))
    expected = np.asarray(Image.fromarray(pixels).resize((341, 256), Image.Resampling[interpolation.upper()]))
    rows = rounded(pixels.astype(np.float32) @ resize_matrix(640, 341, interpolation).T.astype(np.float32))
    found = rounded(resize_matrix(480, 256, interpolation).astype(np.float32) @ rows)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.01


def test_weights_sum_to_one_and_nothing_is_done_to_an_equal_size() -> None:
    for interpolation in ("bicubic", "bilinear", "lanczos", "box", "hamming", "nearest"):
        for size, resized in ((640, 224), (50, 224), (7, 3)):
            np.testing.assert_allclose(resize_matrix(size, resized, interpolation).sum(1), 1, atol=1e-5)
        np.testing.assert_array_equal(resize_matrix(9, 9, interpolation), np.eye(9))


def test_a_crop_takes_rows_and_outside_is_zero() -> None:
    full = resize_matrix(50, 30, "bicubic")
    np.testing.assert_array_equal(cropped_matrix(50, 30, 4, 20, "bicubic"), full[4:24])
    wide = cropped_matrix(50, 30, -3, 40, "bicubic")
    np.testing.assert_array_equal(wide[3:33], full)
    assert not wide[:3].any()
    assert not wide[33:].any()


def test_the_nearest_pixel_is_pillows_at_every_size() -> None:
    """At ties too, where Pillow's sum of steps rounds."""
    for size in range(16, 300, 7):
        row = Image.fromarray(np.arange(size, dtype=np.int32)[None])
        for resized in range(16, 300, 5):
            expected = np.asarray(row.resize((resized, 1), Image.Resampling.NEAREST))[0]
            np.testing.assert_array_equal(resize_matrix(size, resized, "nearest").argmax(1), expected)
