from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_tprune.models.loading import make_transform
from edge_tprune.models.preprocess import Preprocessing


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Large shapes with noise on them: what resizing and rounding can get wrong."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 5, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


@settings(max_examples=60)
@given(
    width=st.integers(20, 400),
    height=st.integers(20, 400),
    size=st.sampled_from([(224, 224), (64, 64), (97, 97), (48, 80)]),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    seed=st.integers(0, 9),
)
def test_the_same_bits_as_timm(
    width: int, height: int, size: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str, seed: int
) -> None:
    record = {
        "input_size": [3, *size],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }
    preprocessing = msgspec.convert(record, Preprocessing)
    image = picture(width, height, seed)
    found = preprocessing(image)
    expected = make_transform(preprocessing)(image).numpy()
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_extreme_shapes(crop_mode: str) -> None:
    record = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": crop_mode,
    }
    preprocessing = msgspec.convert(record, Preprocessing)
    for width, height in ((500, 33), (33, 500), (32, 32), (31, 33)):
        image = picture(width, height, 1)
        np.testing.assert_array_equal(preprocessing(image), make_transform(preprocessing)(image).numpy())


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": [1, 32, 32]},
        {"input_size": [3, 0, 32]},
        {"input_size": [3, 10**9, 32]},
        {"mean": [0.5, 0.5]},
        {"std": [0.5, 0.5, 0.0]},
        {"std": [0.5, 0.5, -1.0]},
        {"interpolation": "cubic"},
        {"crop_pct": 0.0},
        {"crop_pct": 1e-9},
        {"crop_mode": "left"},
    ],
)
def test_what_no_image_can_be_prepared_by_is_refused(change: dict[str, object]) -> None:
    good = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    msgspec.convert(good, Preprocessing)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | change, Preprocessing)


def test_the_thinnest_image_keeps_a_pixel() -> None:
    """Of one that is 200 times as high as wide, which is not refused."""
    for crop_mode in ("center", "border", "squash"):
        record = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
        prepare = msgspec.convert({**record, "crop_mode": crop_mode}, Preprocessing)
        for size in ((1, 200), (200, 1)):
            assert min(prepare.resized(*size)) >= 1
            assert prepare(Image.new("RGB", size, "red")).shape == (3, 64, 64)
