"""Images to evaluate on: folders of them, or the reference task."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from edge_tprune.errors import UserError
from edge_tprune.files import sha256_file
from edge_tprune.models import labels
from edge_tprune.models.class_names import ClassNames, read_class_map
from edge_tprune.models.images import find_unreadable, format_path, list_images, read_image

if TYPE_CHECKING:
    from PIL import Image

REFERENCE = "reference"  #: the built-in task, where a directory could be named

D = TypeVar("D", bound="Dataset")

_HASHING = 4  # threads that hash files


class Dataset(Protocol):
    """Images with class indices, or without: label -1."""

    @property
    def name(self) -> str:
        """How tables call it."""

    @property
    def labelled(self) -> bool:
        """Whether labels are known."""

    @property
    def label_rule(self) -> str:
        """Which rule gave the labels, or why there are none, in words."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many files beside the images were not taken, by extension or reason."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what identifies the images, their order and their labels."""

    def unreadable(self, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> Mapping[Path, str]:
        """All images that cannot be read, and why; each is read to its end. `progress` is called as (images done, of)."""

    def without(self: D, files: Collection[Path], reason: str) -> D:
        """The same without these images, which `left_out` then counts under `reason`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """RGB image and class index (-1 where unknown)."""


@dataclass(frozen=True)
class ReferenceTask:
    """Canvases of the reference task."""

    count: int = 1000
    split: str = "test"
    labelled: bool = True
    label_rule: str = "labels: of the digits that the canvases were drawn from"
    left_out: Mapping[str, int] = field(default_factory=dict)

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

    def unreadable(self, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> Mapping[Path, str]:
        """None: canvases are drawn."""
        return {}

    def without(self, files: Collection[Path], reason: str) -> ReferenceTask:
        """The task itself."""
        return self


@dataclass(frozen=True)
class ImageFolder:
    """Images under a directory, with labels (`edge_tprune.models.labels`) or without.

    What is read and what is hashed are the same files: one that changed in between is an error, so that no result is kept under the name of
    other images.
    """

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    label_rule: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    #: What each file was when it was first read or hashed, for this folder and those that are picked from it.
    _seen: dict[Path, tuple[int, int, int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The directory's name."""
        return format_path(self.root.resolve().name)

    @property
    def labelled(self) -> bool:
        """Whether the images' classes are known."""
        return bool(self.labels) and self.labels[0] >= 0

    @cached_property
    def fingerprint(self) -> str:
        """Of the relative file names, their contents and labels, in order.

        Raises:
            UserError: a file is not there any more, or cannot be read.
        """
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_HASHING) as pool:
            for file, label, content in zip(self.files, self.labels, pool.map(self._content, self.files)):
                name = os.fsencode(file.relative_to(self.root).as_posix())
                digest.update(name + f" {content}{f' {label}' if self.labelled else ''}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file = self.files[index]
        with self._unchanged(file):
            return read_image(file), self.labels[index]

    def _content(self, file: Path) -> str:
        """SHA-256 of an image file."""
        with self._unchanged(file):
            return sha256_file(file)

    @contextmanager
    def _unchanged(self, file: Path) -> Iterator[None]:
        """Around a look at a file, which is the same file before, after and at every other look."""
        try:
            self._note(file)
            yield
            self._note(file)
        except OSError as error:
            raise UserError(f"{format_path(file)} cannot be read any more: {error.strerror}. Run the command again") from error

    def _note(self, file: Path) -> None:
        """Remembers what a file is; refuses one that is another than before."""
        status = file.stat()
        # Its inode would say more, but some file systems in user space give a file another one at every look.
        now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._seen.setdefault(file, now) != now:
            raise UserError(f"image {format_path(file)} was changed while it was in use. Run the command again")

    def first(self, count: int) -> ImageFolder:
        """At most `count` images, spread evenly over the folder so that every class keeps its share."""
        if count >= len(self):
            return self
        return self._picked([int(i) for i in np.linspace(0, len(self) - 1, count).round()])

    def unreadable(self, workers: int = 4, progress: Callable[[int, int], None] | None = None) -> Mapping[Path, str]:
        """As `Dataset.unreadable`."""
        return find_unreadable(self.files, workers, progress)

    def without(self, files: Collection[Path], reason: str) -> ImageFolder:
        """As `Dataset.without`."""
        rest = self._picked([i for i, file in enumerate(self.files) if file not in files])
        counts = Counter(self.left_out) + Counter({reason: len(self) - len(rest)})
        return replace(rest, left_out=dict(counts))

    def _picked(self, indices: list[int]) -> ImageFolder:
        return replace(self, files=tuple(self.files[i] for i in indices), labels=tuple(self.labels[i] for i in indices))


def open_dataset(
    source: str | Path,
    classes: int,
    limit: int | None = None,
    *,
    training: bool = False,
    class_map: Path | None = None,
    class_names: ClassNames | None = None,
) -> Dataset:
    """The dataset at `source` for a model with `classes` outputs; its `label_rule` says where the labels are from.

    Args:
        source: "reference", a directory with one sub-directory of images per class, or a directory of images.
        classes: number of the model's outputs.
        limit: use at most this many images.
        training: of the reference task, canvases of the training split: what is tuned on them is not judged on them.
        class_map: a file that gives classes to directories or images (`read_class_map`).
        class_names: what the model's classes are called, where that is known.

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
    listing = list_images(Path(source))
    found = labels.label(listing, classes, None if class_map is None else read_class_map(class_map), class_names)
    kept = [i for i in range(len(listing.files)) if i not in found.dropped]
    folder = ImageFolder(
        listing.root,
        tuple(listing.files[i] for i in kept),
        tuple(found.values[i] for i in kept),
        found.rule,
        {**listing.left_out, **found.left_out},
    )
    return folder if limit is None else folder.first(limit)


def open_images(source: Path, *, by_directory: bool = False) -> ImageFolder:
    """All images under a directory, without labels.

    Args:
        source: the directory.
        by_directory: label the images by the sub-directory of `source` that each lies in, if all of them lie in two or more: what is alike matters
            then, not what it is called.

    Raises:
        UserError: no such directory, or no images.
    """
    listing = list_images(source)
    first = [parts[0] if len(parts) > 1 else None for parts in listing.parts]
    names = sorted({name for name in first if name is not None})
    if by_directory and len(names) > 1 and None not in first and not any(map(labels.is_split, names)):
        known = tuple(map(names.index, filter(None, first)))
        return ImageFolder(source, listing.files, known, f"labels: the {len(names)} sub-directories", listing.left_out)
    return ImageFolder(source, listing.files, (labels.UNKNOWN,) * len(listing.files), "no labels are used", listing.left_out)


def check_readable(
    dataset: D, *, skip: bool = False, workers: int = 4, progress: Callable[[int, int], None] | None = None
) -> D:
    """The dataset, once it is sure that every image of it can be read.

    Args:
        dataset: images.
        skip: go on without those that cannot be read, and count them in `left_out`.
        workers: threads that decode.
        progress: called as (images done, of).

    Raises:
        UserError: naming all that cannot be read; or none can.
    """
    found = dataset.unreadable(workers, progress)
    if not found:
        return dataset
    if skip and len(found) < len(dataset):
        return dataset.without(found.keys(), "unreadable")
    listed = "; ".join(f"{format_path(file)}: {cause}" for file, cause in found.items())
    way = "Remove or replace them" + ("" if skip else ", or give --skip-unreadable to continue without them")
    raise UserError(f"{len(found)} of {len(dataset)} images in {dataset.name} cannot be read. {way}: {listed}")


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
