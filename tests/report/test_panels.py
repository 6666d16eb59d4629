"""A panel says by its pixels what became of every patch."""

from __future__ import annotations

import numpy as np

from edge_tprune.export.explain import Fates
from edge_tprune.report.panels import painted, panel


def test_pixels_of_kept_merged_and_dropped_patches() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (16, 24, 3)).astype(np.uint8)
    after = Fates(1, 5, np.array([0, 1, 1, -1, 2, 1]))  # two rows of three patches, 8 pixels each
    small = painted(pixels, (2, 3), after)

    def patch(array: np.ndarray, number: int) -> np.ndarray:
        top, left = 8 * (number // 3), 8 * (number % 3)
        return array[top : top + 8, left : left + 8]

    for alone in (0, 4):
        assert (patch(small, alone) == patch(pixels, alone)).all()
    mean = np.concatenate([patch(pixels, n).reshape(-1, 3) for n in (1, 2, 5)]).mean(0).round()
    for merged in (1, 2, 5):
        assert (patch(small, merged) == mean).all()
    veiled = patch(small, 3).astype(int)
    assert (veiled != patch(pixels, 3)).all()
    assert veiled.min() > 195, "a light veil, whatever lies under it"
    assert veiled.max() - veiled.min() < 40


def test_borders_lie_inside_merged_tokens_and_along_their_edges_only() -> None:
    pixels = np.full((16, 24, 3), 100, np.uint8)
    after = Fates(1, 5, np.array([0, 1, 1, -1, 2, 1]))
    scale = 336 // 16
    plain = painted(pixels, (2, 3), after).repeat(scale, 0).repeat(scale, 1)
    drawn = panel(pixels, (2, 3), after)
    assert drawn.shape == plain.shape == (16 * scale, 24 * scale, 3)
    changed = (drawn != plain).any(-1)
    side = 8 * scale
    cells = changed.reshape(2, side, 3, side).swapaxes(1, 2)
    assert not cells[0, 0].any()
    assert not cells[1, 1].any()
    dropped = cells[1, 0]
    assert np.diagonal(dropped[::-1]).all(), "a line across"
    assert dropped.mean() < 0.1
    left, right, below = cells[0, 1], cells[0, 2], cells[1, 2]
    assert left[:, 0].all(), "an edge to another token"
    assert left[0].all()
    assert left[-1].all()
    assert not right[side // 2, 0], "the token goes on to the left: no border between"
    assert not right[-1, side // 2]
    assert right[-1, 0], "the inner corner is closed"
    assert right[side // 2, -1]
    assert not below[0, side // 2]
    assert below[-1].all()
    assert not left[side // 2, side // 2], "the inside shows the colour"


def test_that_a_patch_was_dropped_shows_on_any_image() -> None:
    for value in (0, 128, 228, 255):
        pixels = np.full((16, 16, 3), value, np.uint8)
        drawn = panel(pixels, (2, 2), Fates(1, 4, np.array([0, 1, -1, 2]))).astype(int)
        kept, dropped = drawn[:168], drawn[168:, :168]
        assert (kept == value).all()
        assert abs(dropped - value).max() > 45


def test_tokens_that_touch_differ_in_their_borders() -> None:
    token = np.arange(36) // 2  # pairs side by side
    drawn = panel(np.full((48, 48, 3), 90, np.uint8), (6, 6), Fates(1, 19, token))
    scale = len(drawn) // 48
    corner = drawn[:: 8 * scale, :: 8 * scale].astype(int)  # the first pixel of every patch lies on its border or in its inside
    for row in range(6):
        for column in (0, 2):
            assert (corner[row, column] != corner[row, column + 2]).any()
        if row:
            assert (corner[row, 0] != corner[row - 1, 0]).any()
