"""From an image file to what a graph takes, as timm does it for evaluation, with pillow and numpy alone: a board has no torch.

The steps and their rounding are those of timm's `transforms_imagenet_eval` and of the torchvision transforms it is made of; a test
holds the two to the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import msgspec
import numpy as np
from msgspec import Meta

if TYPE_CHECKING:
    from PIL import Image

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]
CropMode = Literal["center", "squash", "border"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
CROP_MODES: tuple[str, ...] = get_args(CropMode)

_Side = Annotated[int, Meta(ge=1, le=16384)]
_Mean = Annotated[float, Meta(ge=-1, le=1)]
LEAST_DEVIATION = 1e-6  #: smaller ones are 0 in float32, or make every pixel overflow
_Deviation = Annotated[float, Meta(ge=LEAST_DEVIATION, le=1)]
_PerChannel = Meta(min_length=1, max_length=3)


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """Resize, crop in the middle, scale to [0, 1], normalise. Call it with an RGB image, also where the graph takes grey ones."""

    input_size: tuple[Literal[1, 3], _Side, _Side]  #: (C, H, W) of what the graph takes
    mean: Annotated[tuple[_Mean, ...], _PerChannel]
    std: Annotated[tuple[_Deviation, ...], _PerChannel]
    interpolation: Interpolation
    crop_pct: Annotated[float, Meta(ge=0.01, le=1)]  #: share of the resized image's side that the crop keeps
    crop_mode: CropMode  #: as timm has them

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.input_size[0]:
            raise ValueError(f"mean and std need one value for each of {self.input_size[0]} channels")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.input_size[1], self.input_size[2]

    def __call__(self, image: Image.Image) -> np.ndarray:
        """(C, H, W) float32."""
        from PIL import Image

        if len(self.mean) == 1:
            image = image.convert("L")
        resized = image.resize(self.resized(*image.size), Image.Resampling[self.interpolation.upper()])
        pixels = np.asarray(self._cropped(resized), np.float32) / np.float32(255)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return np.ascontiguousarray((pixels - mean) / std)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the resized image, before cropping."""
        goal_h, goal_w = (math.floor(side / self.crop_pct) for side in self.size)
        if self.crop_mode == "squash":
            return goal_w, goal_h
        if self.crop_mode != "border" and goal_h == goal_w:
            short, long = min(width, height), max(width, height)
            scaled = int(goal_h * long / short)
            return (goal_h, scaled) if width <= height else (scaled, goal_h)
        ratios = width / goal_w, height / goal_h
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def crop_offset(self, width: int, height: int) -> tuple[int, int]:
        """(left, top) of the crop in a resized image of (width, height); negative where the crop begins before the image, and is filled."""
        goal_h, goal_w = self.size
        if width >= goal_w and height >= goal_h:
            return round((width - goal_w) / 2.0), round((height - goal_h) / 2.0)
        before = max(0, (goal_w - width) // 2), max(0, (goal_h - height) // 2)
        left, top = self.crop_offset(max(width, goal_w), max(height, goal_h))
        return left - before[0], top - before[1]

    @property
    def fill(self) -> tuple[int, ...]:
        """The pixel outside the resized image, per channel."""
        return tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else (0,) * len(self.mean)

    def _cropped(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        height, width = self.size
        left, top = self.crop_offset(*image.size)
        if image.width >= width and image.height >= height:
            return image.crop((left, top, left + width, top + height))
        canvas = Image.new(image.mode, (width, height), self.fill)
        canvas.paste(image, (-left, -top))
        return canvas
