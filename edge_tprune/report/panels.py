"""One panel of a picture of tokens: the image with its kept, merged and dropped patches, in pixels.

A patch that still is a token of its own is shown as it is; patches that share a token have the mean colour of their token and a border around them
where the token ends; patches that left lie under a veil with a thin line across.

Colours are Okabe and Ito's, which people with any common colour vision tell apart; that a patch left is said by lightness and, as the
image may be light itself, by the line; that it merged by a border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edge_tprune.export.explain import Fates

VEIL = np.array([228.0, 231.0, 236.0])
LINE = np.array([172.0, 179.0, 190.0])  #: across a dropped patch

_SEEN_THROUGH = 0.12  # of the image, under the veil
_BORDERS = tuple(
    (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16))
    for code in ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
)
_PANEL_PIXELS = 336  # a panel's side at least: patches are drawn as whole multiples of their pixels


def painted(pixels: np.ndarray, grid: tuple[int, int], after: Fates) -> np.ndarray:
    """The image (H, W, 3) uint8 with merged patches in their token's mean colour and dropped ones under the veil."""
    token = _by_pixel(pixels, grid, after.token)
    result = pixels.astype(np.float64)
    veiled = token < 0
    result[veiled] = _SEEN_THROUGH * result[veiled] + (1 - _SEEN_THROUGH) * VEIL
    for group in np.unique(after.token[after.shared]):
        result[token == group] = pixels[token == group].mean(0)
    return np.asarray(result.round().astype(np.uint8))


def panel(pixels: np.ndarray, grid: tuple[int, int], after: Fates) -> np.ndarray:
    """`painted`, enlarged by a whole number, with a line across every dropped patch and a border inside every merged token along its edges."""
    small = painted(pixels, grid, after)
    scale = _scale(pixels)
    large = enlarged(small)
    patch = (pixels.shape[0] // grid[0] * scale, pixels.shape[1] // grid[1] * scale)
    # (rows, columns, height, width, 3), the same memory.
    cells = large.reshape(grid[0], patch[0], grid[1], patch[1], 3).swapaxes(1, 2)
    y, x = ((np.arange(side) + 0.5) / side for side in patch)
    line = abs(y[:, None] + x - 1) * min(patch) < max(1.0, min(patch) / 24)
    for row, column in zip(*np.nonzero(after.token.reshape(grid) < 0)):
        cells[row, column][line] = LINE
    width = max(2, min(patch) // 11)
    token = np.where(after.shared, after.token, -1).reshape(grid)
    colours = _border_colours(token)
    padded = np.pad(token, 1, constant_values=-2)
    for row, column in zip(*np.nonzero(token >= 0)):
        cell = cells[row, column]
        around = padded[row : row + 3, column : column + 3] != token[row, column]
        colour = colours[token[row, column]]
        ends = (slice(None, width), slice(-width, None))
        for side in (0, 1):
            if around[2 * side, 1]:
                cell[ends[side]] = colour
            if around[1, 2 * side]:
                cell[:, ends[side]] = colour
            for other in (0, 1):  # the inner corner, where the token goes on along both sides but not across
                if around[2 * side, 2 * other]:
                    cell[ends[side], ends[other]] = colour
    return large


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Every pixel as a square of them, so that an image is as large as its panels."""
    return pixels.repeat(_scale(pixels), 0).repeat(_scale(pixels), 1)


def _by_pixel(pixels: np.ndarray, grid: tuple[int, int], values: np.ndarray) -> np.ndarray:
    """One value per patch -> one per pixel (H, W)."""
    height, width = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    return values.reshape(grid).repeat(height, 0).repeat(width, 1)


def _scale(pixels: np.ndarray) -> int:
    return int(max(1, -(-_PANEL_PIXELS // min(pixels.shape[:2]))))


def _border_colours(token: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """A colour for every token of a grid of patches (-1: none) such that, as far as there are colours, no two that touch share one."""
    padded = np.pad(token, 1, constant_values=-1)
    touching: dict[int, set[int]] = {}
    for row, column in zip(*np.nonzero(token >= 0)):
        touching.setdefault(int(token[row, column]), set()).update(padded[row : row + 3, column : column + 3].ravel().tolist())
    chosen: dict[int, int] = {}
    used = [0] * len(_BORDERS)
    for group, others in touching.items():
        taken = {chosen[other] for other in others if other in chosen}
        chosen[group] = min(range(len(_BORDERS)), key=lambda colour: (colour in taken, used[colour], colour))
        used[chosen[group]] += 1
    return {group: _BORDERS[colour] for group, colour in chosen.items()}
