"""Photos to train on: each is decoded once, kept small, and shown as another crop in every epoch.

Crops are drawn from the seed, the epoch and the photo's place alone, so that a run that was interrupted goes on with the same ones, and any
number of processes sees together what one alone would see.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edge_tprune.errors import UserError
from edge_tprune.files import sha256_json
from edge_tprune.models.data import Dataset
from edge_tprune.models.preprocess import Preprocessing

_CACHE_BYTES = 1_000_000_000  # photos beyond it are decoded again for every crop
_AHEAD = 3  # batches that are prepared while one is trained on
_RATIOS = (3 / 4, 4 / 3)  # of a crop's sides, as usual in training on ImageNet
_ATTEMPTS = 10  # to place a crop in a narrow photo


@dataclass(frozen=True)
class Joined:
    """Several datasets as one, without labels."""

    parts: tuple[Dataset, ...]
    labelled: bool = False

    @property
    def name(self) -> str:
        """All names."""
        return " + ".join(part.name for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """Of all fingerprints, in order."""
        return sha256_json([part.fingerprint for part in self.parts])

    @property
    def label_rule(self) -> str:
        """Labels of several datasets need not mean the same."""
        return "no labels are used"

    @property
    def left_out(self) -> Mapping[str, int]:
        """Of all parts."""
        return sum((Counter(part.left_out) for part in self.parts), Counter())

    def unreadable(self, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> Mapping[Path, str]:
        """As `Dataset.unreadable`, part by part."""
        return {file: why for part in self.parts for file, why in part.unreadable(workers, progress).items()}

    def without(self, files: Collection[Path], reason: str) -> Joined:
        """As `Dataset.without`."""
        return Joined(tuple(part.without(files, reason) for part in self.parts))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        for part in self.parts:
            if index < len(part):
                return part[index][0], -1
            index -= len(part)
        raise IndexError(index)


@dataclass(frozen=True)
class Spot:
    """One photo in one epoch."""

    photo: int
    epoch: int


class Photos:
    """Photos of a dataset, ready to be cropped.

    Args:
        dataset: where they are.
        places: which of its images, in the order that `Spot.photo` counts.
        preprocessing: of the network: input size, mean, std, interpolation, crop share.
        seed: of the crops.
        workers: threads that decode and crop.
    """

    def __init__(
        self, dataset: Dataset, places: Sequence[int], preprocessing: Preprocessing, seed: int, workers: int | None = None
    ) -> None:
        self.dataset, self.places, self.seed = dataset, list(places), seed
        self.workers = workers or min(16, os.cpu_count() or 1)
        self.size = preprocessing.size
        self.filter = Image.Resampling[preprocessing.interpolation.upper()]
        self.side = math.floor(min(self.size) / preprocessing.crop_pct)
        self.grey = len(preprocessing.mean) == 1
        self.mean = torch.tensor(preprocessing.mean)[:, None, None] * 255
        self.std = torch.tensor(preprocessing.std)[:, None, None] * 255
        self._small: dict[int, np.ndarray] = {}
        self._bytes = 0
        self.labels = [-1] * len(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def whole(self, transform: Callable[[Image.Image], Tensor]) -> tuple[Tensor, Tensor]:
        """All of them as an evaluation sees them: (N, 3, H, W), and labels (N,)."""

        def load(place: int) -> tuple[Tensor, int]:
            image, label = self.dataset[place]
            return transform(image), label

        with ThreadPoolExecutor(self.workers) as pool:
            loaded = list(pool.map(load, self.places))
        return torch.stack([pixels for pixels, _ in loaded]), torch.tensor([label for _, label in loaded])

    def read(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decodes every photo once, so that one that cannot be read stops the work before it begins, and keeps them small.

        Raises:
            UserError: naming the photos that cannot be read.
        """
        broken: list[str] = []

        def load(number: int) -> tuple[int, np.ndarray, int] | None:
            try:
                return number, *self._reduced(number)
            except UserError as error:
                broken.append(str(error))
                return None

        with ThreadPoolExecutor(self.workers) as pool:
            for done, found in enumerate(pool.map(load, range(len(self))), 1):
                if found is not None:
                    number, pixels, self.labels[number] = found
                    if self._bytes + pixels.nbytes <= _CACHE_BYTES:
                        self._small[number] = pixels
                        self._bytes += pixels.nbytes
                if progress is not None:
                    progress(done, len(self))
        if broken:
            more = f" And {len(broken) - 1} more cannot be read." if len(broken) > 1 else ""
            raise UserError(sorted(broken)[0] + "." + more)

    def _reduced(self, number: int) -> tuple[np.ndarray, int]:
        """A photo (H, W, 3) uint8 whose shorter side is what the evaluation resizes to, unless it is smaller; and its label."""
        image, label = self.dataset[self.places[number]]
        scale = self.side / min(image.size)
        if scale < 1:
            width, height = (max(self.side, round(side * scale)) for side in image.size)
            image = image.resize((width, height), self.filter, reducing_gap=3.0)
        return np.asarray(image), label

    def crop(self, spot: Spot, least_area: float, flip: bool) -> Tensor:
        """(3, H, W) float32, normalised: a random crop of `least_area` to all of the photo's area, mirrored or not."""
        return self._normalise([self._crop(spot, least_area, flip)])[0]

    def _crop(self, spot: Spot, least_area: float, flip: bool) -> np.ndarray:
        """(H, W, C) uint8."""
        draw = np.random.default_rng([self.seed, spot.epoch, spot.photo])
        pixels = self._small.get(spot.photo)
        image = Image.fromarray(pixels if pixels is not None else self._reduced(spot.photo)[0])
        box = _box(image.size, self.size[1] / self.size[0], least_area, draw)
        image = image.resize(self.size[::-1], self.filter, box=box)
        if flip and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image.convert("L"))[..., None] if self.grey else np.asarray(image)

    def _normalise(self, crops: Sequence[np.ndarray]) -> Tensor:
        """(B, 3, H, W) float32. Not in the threads that crop: each would start PyTorch's own threads, which then wait for a core."""
        return ((torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) - self.mean) / self.std).contiguous()

    def batches(self, spots: Iterator[list[Spot]], least_area: float, flip: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """For each list of B spots, crops (B, 3, H, W) and labels (B,); prepared by threads, a few batches ahead."""
        with ThreadPoolExecutor(self.workers) as pool:

            def submit(batch: list[Spot]) -> tuple[list[Any], Tensor]:
                crops = [pool.submit(self._crop, spot, least_area, flip) for spot in batch]
                return crops, torch.tensor([self.labels[spot.photo] for spot in batch])

            waiting: list[tuple[list[Any], Tensor]] = []
            try:
                for batch in spots:
                    waiting.append(submit(batch))
                    if len(waiting) > _AHEAD:
                        crops, labels = waiting.pop(0)
                        yield self._normalise([crop.result() for crop in crops]), labels
                for crops, labels in waiting:
                    yield self._normalise([crop.result() for crop in crops]), labels
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _box(
    size: tuple[int, int], ratio: float, least_area: float, draw: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random crop, as `RandomResizedCrop` places it; with `least_area` 1 the largest of the right shape."""
    width, height = size
    for _ in range(_ATTEMPTS if least_area < 1 else 0):
        area = draw.uniform(least_area, 1) * width * height
        shape = ratio * math.exp(draw.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        if w <= width and h <= height:
            break
    else:
        w = min(width, height * ratio)
        h = min(height, w / ratio)  # of a division that rounds up
    left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
    return left, top, left + w, top + h


def spots(photos: int, batch: int, seed: int, first: int, steps: int, share: tuple[int, int] = (0, 1)) -> Iterator[list[Spot]]:
    """The photos of each step from step `first` on, up to `steps`: every photo once per epoch, in a new random order.

    Args:
        photos: how many there are.
        batch: how many a step sees, over all processes.
        seed: of the orders.
        first: step to begin with, from 0.
        steps: how many there are in all.
        share: (rank, processes): this process gets the photos rank, rank + processes, ... of each step.
    """
    orders: dict[int, np.ndarray] = {}

    def at(position: int) -> Spot:
        epoch = position // photos
        if epoch not in orders:
            orders.clear()
            orders[epoch] = np.random.default_rng([seed, epoch, 1]).permutation(photos)
        return Spot(int(orders[epoch][position % photos]), epoch)

    rank, processes = share
    for step in range(first, steps):
        yield [at(step * batch + place) for place in range(rank, batch, processes)]


def split(count: int, held_out: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places 0 .. count-1 as (training, hold-out): a random part, the same for the same seed."""
    order = np.random.default_rng([seed, count]).permutation(count)
    return tuple(sorted(map(int, order[held_out:]))), tuple(sorted(map(int, order[:held_out])))
