"""Directories of images, and which class each image gets."""

from __future__ import annotations

from pathlib import Path

from edge_tprune.models.class_names import ClassNames, read_class_map
from edge_tprune.models.images import list_images
from edge_tprune.models.labels import label


def labelled(root: Path, classes: int, class_map: Path | None = None, class_names: ClassNames | None = None) -> dict[str, int]:
    """Path -> class, of images that are not left out."""
    listing = list_images(root)
    found = label(listing, classes, None if class_map is None else read_class_map(class_map), class_names)
    assert found.rule
    return {
        "/".join(parts): value for i, (parts, value) in enumerate(zip(listing.parts, found.values)) if i not in found.dropped
    }


def by_folder(root: Path, classes: int, class_map: Path | None = None, class_names: ClassNames | None = None) -> dict[str, int]:
    """Directory -> class."""
    return {path.split("/")[0]: value for path, value in labelled(root, classes, class_map, class_names).items()}


def rule(root: Path, classes: int, class_names: ClassNames | None = None) -> str:
    return label(list_images(root), classes, None, class_names).rule


def touch_classes(root: Path, names: list[str], image: str = "1.png") -> None:
    """Directories with an empty file of an image's name each: labels do not depend on what is in it."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / image).touch()


NAMED = ClassNames(("bird", "cat", "dog"), "--class-map names.txt")
