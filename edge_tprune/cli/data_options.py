"""The options that say which images, and opening them: of every command that judges or tunes on some."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_tprune.cli.progress import show_progress
from edge_tprune.cli.terminal import print_note
from edge_tprune.errors import UserError
from edge_tprune.text import count_of

if TYPE_CHECKING:
    from edge_tprune.bundle.bundle import Bundle
    from edge_tprune.models.class_names import ClassNames
    from edge_tprune.models.data import Dataset
    from edge_tprune.models.loading import LoadedModel

_CANVASES = 112  # of the reference task, to calibrate on

ClassMapFile = Annotated[
    Path | None,
    typer.Option(
        "--class-map",
        metavar="FILE",
        help="Labels: one class name per line (line 1 is class 0), JSON that maps names to classes, or one 'image class' pair per line.",
        show_default=False,
    ),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Continue without images that cannot be read, and count them.")
]


def open_data(
    source: str | Path,
    classes: int,
    *,
    limit: int | None = None,
    training: bool = False,
    labels: bool = True,
    by_directory: bool = False,
    class_map: Path | None = None,
    class_names: ClassNames | None = None,
    skip_unreadable: bool = False,
    quiet: bool = False,
) -> Dataset:
    """The images at `source`, once every one of them was read to its end; says where their labels are from and what was left out.

    Args:
        source: as for `open_dataset`.
        classes: of the model.
        limit: as for `open_dataset`.
        training: as for `open_dataset`.
        labels: whether classes of the model are needed. Otherwise images are taken wherever they lie.
        by_directory: without classes of the model, as for `open_images`.
        class_map: as for `open_dataset`.
        class_names: as for `open_dataset`.
        skip_unreadable: go on without images that cannot be read.
        quiet: show no progress.

    Raises:
        UserError: as `open_dataset`; a class map that would not be used; or some images cannot be read: naming all of them.
    """
    from edge_tprune.models.data import REFERENCE, check_readable, open_dataset, open_images
    from edge_tprune.models.images import describe_left_out, format_path

    if limit is not None and limit < 1:
        raise UserError(f"cannot take {limit} images: give 1 or more")
    if class_map is not None and (not labels or str(source) == REFERENCE):
        why = "the reference task has labels of its own" if labels else "this output has no classes"
        raise UserError(f"--class-map {format_path(class_map)} is not used: {why}. Leave it out")
    dataset: Dataset
    if labels or str(source) == REFERENCE:
        dataset = open_dataset(source, classes, limit, training=training, class_map=class_map, class_names=class_names)
    else:
        folder = open_images(Path(source), by_directory=by_directory)
        dataset = folder if limit is None else folder.first(limit)
    with show_progress("checking images", quiet) as advance:
        workers = min(8, os.cpu_count() or 1)
        dataset = check_readable(
            dataset, skip=skip_unreadable, workers=workers, progress=lambda done, of: advance("checking images", done, of)
        )
    print_note(f"{dataset.name}: {count_of(len(dataset), 'image')}; {dataset.label_rule}")
    if dataset.left_out:
        print_note(f"{dataset.name}: left out {describe_left_out(dataset.left_out)}")
    return dataset


def open_photos(loaded: LoadedModel, source: str | None, precisions: list[str], quiet: bool) -> Dataset | None:
    """The photos that int8 is calibrated on, all of them readable; None where nothing is to be calibrated. Labels play no part.

    Args:
        loaded: the model.
        source: a directory, or "reference"; by default the reference model's own training canvases.
        precisions: that are asked for.
        quiet: show no progress.

    Raises:
        UserError: no such directory, no photos in it, some that cannot be read.
    """
    from edge_tprune.models.data import REFERENCE
    from edge_tprune.reduction.precision import INTEGERS

    if source is None and INTEGERS in precisions and loaded.name == REFERENCE:
        source = REFERENCE
    if source is None:
        return None
    classes = int(getattr(loaded.model, "num_classes", 0))
    return open_data(
        source, classes, limit=_CANVASES if source == REFERENCE else None, training=True, labels=False, quiet=quiet
    )


def known_class_names(bundle: Bundle) -> ClassNames | None:
    """What a bundle's classes are called; of bundles that do not say it and have ImageNet's number of classes, ImageNet's names where timm is installed."""
    known = bundle.manifest.class_names
    if known is not None or importlib.util.find_spec("timm") is None:
        return known
    from edge_tprune.models.records import imagenet_names

    return imagenet_names({"num_classes": bundle.manifest.model.classes})
