"""The reference task and model."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from edge_tprune.models import reference
from edge_tprune.models.loading import load_model


def test_train_and_test_share_no_digit() -> None:
    train, test = set(reference.source_indices("train").tolist()), set(reference.source_indices("test").tolist())
    assert not train & test
    assert len(train | test) == 1797
    with pytest.raises(ValueError, match="use 'train' or 'test'"):
        reference.source_indices("validation")


def test_no_test_canvas_contains_a_stroke_of_a_training_digit() -> None:
    """Draw with every training scan blanked: the test canvases must not change, down to the last pixel."""
    before = [reference.compose("test", i)[0] for i in range(20)]
    scans, _ = reference._sources()
    kept = scans.copy()
    try:
        scans[reference.source_indices("train")] = 0
        after = [reference.compose("test", i)[0] for i in range(20)]
    finally:
        scans[:] = kept
    assert all(np.array_equal(a, b) for a, b in zip(before, after))


def test_canvases_come_from_seeds_alone() -> None:
    image, label, box = reference.compose("test", 5)
    again = reference.compose("test", 5)
    assert np.array_equal(image, again[0])
    assert (label, box) == again[1:]
    digests = {
        hashlib.sha256(reference.compose(s, i, seed)[0].tobytes()).digest()
        for s in ("train", "test")
        for i in range(10)
        for seed in (0, 1)
    }
    assert len(digests) == 40


def test_the_whole_digit_is_inside_and_untouched_by_fragments() -> None:
    """The digit's box holds one tint only: its colour ratios are constant where it is bright."""
    for i in range(30):
        image, label, (top, left, side) = reference.compose("test", i)
        assert 0 <= label < 10
        assert 0 <= top <= reference.SIZE - side
        assert 0 <= left <= reference.SIZE - side
        box = image[top : top + side, left : left + side].reshape(-1, 3).astype(float)
        bright = box[box.max(1) > 110]
        assert len(bright) > 20
        ratio = bright / bright.max(1, keepdims=True)
        assert ratio.std(0).max() < 0.25


def test_labels_are_balanced() -> None:
    labels = [reference.compose("test", i)[1] for i in range(300)]
    assert np.bincount(labels, minlength=10).min() > 10


def test_the_model_has_the_shape_that_stages_mean_something_for() -> None:
    model = reference.build()
    assert len(model.blocks) == 12
    assert model.patch_embed.num_patches == 196
    assert model.num_prefix_tokens == 1


def test_the_shipped_weights_are_small_and_right() -> None:
    """The README quotes 1000 canvases; 300 are enough to see that these are the trained weights."""
    assert reference.WEIGHTS.stat().st_size <= 6_000_000
    loaded = load_model("reference")
    transform, dataset = loaded.transform(), reference.DigitsInClutter("test", 300)
    with torch.inference_mode():
        images = torch.stack([transform(dataset[i][0]) for i in range(300)])
        predicted = loaded.model(images).argmax(1)
    truth = torch.tensor([dataset[i][1] for i in range(300)])
    assert (predicted == truth).float().mean() >= 0.93
