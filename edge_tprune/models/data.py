"""Images to evaluate on: folders of them, or the reference task."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike

from edge_tprune.errors import UserError, missing_package

if TYPE_CHECKING:
    from PIL import Image

REFERENCE = "reference"  #: the built-in task, where a directory could be named
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}


class Dataset(Protocol):
    """Images with class indices, or without: label -1."""

    @property
    def name(self) -> str:
        """How tables call it."""

    @property
    def labelled(self) -> bool:
        """Whether labels are known."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what identifies the images and their order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """RGB image and class index (-1 where unknown)."""


@dataclass(frozen=True)
class ReferenceTask:
    """Canvases of the reference task."""

    count: int = 1000
    split: str = "test"
    labelled: bool = True

    @property
    def name(self) -> str:
        """Task and split."""
        return f"digits-in-clutter {self.split}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        from edge_tprune.models import reference

        return reference.DigitsInClutter(self.split, self.count)[index]

    @property
    def fingerprint(self) -> str:
        """Of the task's seeds."""
        return hashlib.sha256(f"{self.name} {self.count}".encode()).hexdigest()


@dataclass(frozen=True)
class ImageFolder:
    """Images under a directory: one sub-directory per class, or a flat directory of unlabelled images."""

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.root.resolve().name

    @property
    def labelled(self) -> bool:
        """Whether the images lay in class directories."""
        return bool(self.labels) and self.labels[0] >= 0

    @property
    def fingerprint(self) -> str:
        """Of the relative file names and sizes, in order."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        from PIL import Image

        file = self.files[index]
        try:
            with Image.open(file) as image:
                return eight_bit_rgb(image), self.labels[index]
        except Exception as error:  # a damaged file can make a decoder raise almost anything
            raise UserError(f"image {file} cannot be read ({error}). Remove or replace it") from error

    def first(self, count: int) -> ImageFolder:
        """At most `count` images, spread evenly over the folder so that every class keeps its share."""
        if count >= len(self):
            return self
        pick = np.linspace(0, len(self) - 1, count).round().astype(int)
        return ImageFolder(self.root, tuple(self.files[i] for i in pick), tuple(self.labels[i] for i in pick))


def open_dataset(source: str | Path, classes: int, limit: int | None = None, *, training: bool = False) -> Dataset:
    """The dataset at `source` for a model with `classes` outputs.

    Args:
        source: "reference", a directory with one sub-directory of images per class (class index = position in sorted order, or, for 1000
            outputs and ImageNet synset names, ImageNet's own index), or a directory of unlabelled images.
        classes: number of the model's outputs.
        limit: use at most this many images.
        training: of the reference task, canvases of the training split: what is tuned on them is not judged on them.

    Raises:
        UserError: no such directory, no images, or class directories that do not match the model.
    """
    if limit is not None and limit < 1:
        raise UserError(f"cannot evaluate on {limit} images: give 1 or more")
    if str(source) == REFERENCE:
        from edge_tprune.models import reference

        if classes != reference.CLASSES:
            raise UserError(
                f"the reference task has {reference.CLASSES} classes and the model {classes}: give --data DIRECTORY"
            )
        return ReferenceTask(limit or ReferenceTask.count, "train" if training else "test")
    root = _readable(Path(source))
    directories = sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))
    if directories:
        index = _class_indices([d.name for d in directories], classes, root)
        pairs = [(file, index[d.name]) for d in directories for file in sorted(d.rglob("*")) if _is_image(file)]
    else:
        pairs = [(file, -1) for file in sorted(root.iterdir()) if _is_image(file)]
    if not pairs:
        raise UserError(f"image folder {root} holds no images ({', '.join(sorted(EXTENSIONS))})")
    folder = ImageFolder(root, tuple(f for f, _ in pairs), tuple(label for _, label in pairs))
    return folder if limit is None else folder.first(limit)


def open_images(source: Path) -> ImageFolder:
    """All images under a directory, labels or not.

    Raises:
        UserError: no such directory, or no images.
    """
    files = tuple(file for file in sorted(_readable(source).rglob("*")) if _is_image(file))
    if not files:
        raise UserError(f"image folder {source} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return ImageFolder(source, files, (-1,) * len(files))


def eight_bit_rgb(image: Image.Image) -> Image.Image:
    """`image.convert("RGB")`, but sixteen bits of grey are scaled: Pillow clips all but the darkest of them to white.

    Raises:
        ValueError: floating-point pixels, of which nobody knows which is white.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB")


def _readable(root: Path) -> Path:
    if importlib.util.find_spec("PIL") is None:
        raise missing_package("pillow", "host")
    if not root.is_dir():
        raise UserError(f"image folder {root} does not exist or is not a directory")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"image folder {root} cannot be read: check its permissions")
    return root


def _class_indices(names: list[str], classes: int, root: Path) -> dict[str, int]:
    if classes == 1000 and len(names) != classes:  # of all 1000, the sorted order is ImageNet's
        synsets = _imagenet_synsets()
        if all(name in synsets for name in names):
            return {name: synsets[name] for name in names}
    if len(names) != classes:
        raise UserError(
            f"image folder {root} has {len(names)} class directories but the model has {classes} classes. "
            f"Give one directory per class{', or ImageNet synset names (n01440764, ...)' if classes == 1000 else ''}"
        )
    return {name: i for i, name in enumerate(names)}


@lru_cache(maxsize=1)
def _imagenet_synsets() -> dict[str, int]:
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise missing_package("timm", "host") from error

    return {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS and file.is_file()


def batches(
    dataset: Dataset, transform: Callable[[Image.Image], ArrayLike], size: int, workers: int = 2
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The dataset in order as (images (size, 3, H, W) float32, labels (size,)); the last batch may be smaller.

    Decoding runs `workers` threads ahead of the consumer by at most two batches.
    """

    def load(index: int) -> tuple[np.ndarray, int]:
        image, label = dataset[index]
        return np.asarray(transform(image)), label

    starts = range(0, len(dataset), size)
    with ThreadPoolExecutor(workers) as pool:
        ahead = [[pool.submit(load, i) for i in range(s, min(s + size, len(dataset)))] for s in starts[:2]]
        for number in range(len(starts)):
            current = [future.result() for future in ahead.pop(0)]
            if number + 2 < len(starts):
                s = starts[number + 2]
                ahead.append([pool.submit(load, i) for i in range(s, min(s + size, len(dataset)))])
            yield np.stack([pixels for pixels, _ in current]), np.array([label for _, label in current], dtype=np.int64)


def sample_images(name: str, count: int) -> list[Image.Image]:
    """`count` real images for parity checks, with no download: canvases for the reference model, else crops of two photographs.

    The photographs are those bundled with scikit-learn (CC-BY).
    """
    if name == REFERENCE:
        return [ReferenceTask(count)[i][0] for i in range(count)]
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    crops = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        width, height = photograph.size
        side = int(height * (1.0 - 0.12 * (i // len(photographs) % 5)))
        left = (width - side) * (i * 7 % 11) // 11
        crop = photograph.crop((left, (height - side) // 2, left + side, (height - side) // 2 + side))
        crops.append(crop if i % 4 < 2 else crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return crops
