"""The dense task: masks of the whole digit, and the shipped head that reads them from features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_tprune.models import reference
from edge_tprune.models.segmentation import HEAD, MaskHead, intersection_over_union, to_image, to_patches
from edge_tprune.models.train_segmentation import draw_features, train_head


def test_a_mask_is_the_strokes_of_the_whole_digit() -> None:
    for index in range(5):
        image, _, (top, left, side) = reference.compose("test", index)
        same, mask = reference.compose_mask("test", index)
        assert np.array_equal(image, same)
        assert not mask[:top].any()
        assert not mask[:, :left].any()
        assert not mask[top + side :].any()
        assert not mask[:, left + side :].any()
        assert 0.05 < mask[top : top + side, left : left + side].mean() < 0.6
        brightness = image.max(2) / 255
        assert brightness[mask].mean() > 2 * brightness[~mask].mean(), "strokes are bright, most of a canvas is not"


def test_pixels_of_patches_lie_where_a_loop_puts_them() -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 196, 64))
    slow = np.empty((2, 112, 112))
    for patch in range(196):
        for pixel in range(64):
            slow[:, 8 * (patch // 14) + pixel // 8, 8 * (patch % 14) + pixel % 8] = pixels[:, patch, pixel]
    assert np.array_equal(to_image(pixels), slow)
    assert np.array_equal(to_patches(slow), pixels)


def test_intersection_over_union_counts_pixels() -> None:
    found, truth = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    found[0, 0, :3], truth[0, 0, 1:] = True, True  # 2 of 4
    truth[1, 0, 0] = True
    assert intersection_over_union(found, truth).tolist() == [0.5, 0.0, 1.0]


def test_the_shipped_head_finds_digits_it_was_not_trained_on() -> None:
    assert HEAD.stat().st_size < 50_000
    features, masks = draw_features("test", 12)
    head = MaskHead.load()
    assert intersection_over_union(head(features.numpy()), masks).mean() > 0.6
    elsewhere = features.roll(7, dims=3).numpy()
    assert intersection_over_union(head(elsewhere), masks).mean() < 0.3


def test_training_lowers_the_loss_and_folds_the_scaling_in(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    features = 3 + 5 * torch.randn(16, 8, 14, 14)  # a mask that the first channel tells, in features that are not of unit scale
    masks = to_image((features[:, :1].flatten(2).transpose(1, 2) > 3).expand(-1, -1, 64).numpy())
    head = MaskHead(**{name: tensor.numpy() for name, tensor in train_head(features, masks, 100, seed=0).items()})
    assert intersection_over_union(head(features.numpy()), masks).mean() > 0.95
    assert "step 100 of 100" in capsys.readouterr().out
