"""The lines of a class map that name images: which column is the image, and which its class."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from edge_tprune.errors import UserError
from edge_tprune.models.class_names import ClassMap, composed, normal
from edge_tprune.models.images import format_path

_CLASS_COLUMNS = frozenset(
    f"{noun}{part}"
    for noun in ("class", "label", "target", "category", "ground truth")
    for part in ("", " id", " idx", " index", " name", " no")
) | {"classes", "labels", "targets", "categories", "y", "gt", "wnid", "synset", "predictionstring", "imagenet class"}
"""What files with more than two columns call that of the class."""

_IMAGE_COLUMNS = frozenset(
    [
        f"{noun}{part}"
        for noun in ("image", "img", "file", "photo", "picture")
        for part in ("", " id", " name", " path", " file")
    ]
    + ["filename", "filepath", "imagename", "imagepath", "imageid", "path"]
)
"""What files call the column of the image."""

_LONGEST = 4096  # characters of a path: no file system opens a longer one
_NUMBER = r"-?\d+(?:\.\d*)?"
_BOXES = re.compile(rf"(\S+)(?:\s+{_NUMBER}){{4}}(?:\s+\S+(?:\s+{_NUMBER}){{4}})*", re.ASCII)
"""A class with the corners of a box, and more of them: as ImageNet's own files write it."""


class _Entry(NamedTuple):
    name: str  # of the image, as the map has it
    image: str  # which of the images it is
    text: str  # the class
    line: int  # counted from 1

    @property
    def is_elsewhere(self) -> bool:
        """Whether the map says of a directory that it is in, and only its file name is known here."""
        return "/" not in self.image and len(_parts(self.name)) > 1


def find_entries(class_map: ClassMap, images: Collection[str], top: Collection[str]) -> list[tuple[str, str, int]]:
    """(image, class, line counted from 1) of every entry of a class map that names one of `images`, by its path from there or from further up.

    Args:
        class_map: whose entries.
        images: what they may be called.
        top: those of them that are in no directory.

    Raises:
        UserError: it is not clear which column is the class.
    """
    if not class_map.rows:
        pairs = [(name, str(text)) for name, text in (*class_map.labels.items(), *class_map.index)]
        matched = [(name, _match(name, images), text, n) for n, (name, text) in enumerate(pairs, 1)]
        return _of_these([_Entry(name, image, text, n) for name, image, text, n in matched if image is not None], top)
    header = class_map.rows[0][1]
    entries, one_hot, box_first = list[_Entry](), True, True
    for number, row in class_map.rows:
        for cells in _split(row):
            place = _image_place(cells, header, images)
            if place is not None:
                others = [*cells[:place], *cells[place + 1 :]]
                one_hot = one_hot and len(others) > 1 and sorted(others) == ["0"] * (len(others) - 1) + ["1"]
                box_first = box_first and len(others) == 5 and _is_box(others[:4])
                text = _class_cell(others, _header_cells(header, len(cells), place, images), class_map, number + 1)
                entries.append(_Entry(cells[place], _match(cells[place], images) or "", text, number + 1))
                break
    if entries and one_hot:
        raise UserError(
            f"class map {format_path(class_map.file)} has one column per class: give two columns, the image and its class"
        )
    if entries and box_first and _header_cells(header, 6, 0, images) is None:
        raise UserError(
            f"class map {format_path(class_map.file)} has five numbers beside each image, and it is not clear whether the class stands before the "
            "corners of the box or behind them. Give two columns, the image and its class"
        )
    return _of_these(entries, top)


def _image_place(cells: Sequence[str], header: str, images: Collection[str]) -> int | None:
    """Which column of a line is the image: that which the first line calls so, or the first that is one by its whole name, or the very first."""
    for names in _split(header):
        called = [i for i, name in enumerate(names) if normal(name) in _IMAGE_COLUMNS]
        if len(names) == len(cells) and len(called) == 1 and not any(_is_value(name, images) for name in names):
            return called[0] if _match(cells[called[0]], images) is not None else None
    # By a name without extension in the first column only: "dog,0" is not about 0.png.
    whole = (i for i, cell in enumerate(cells) if "." in cell and _match(cell, images) is not None)
    return next(whole, 0 if _match(cells[0], images) is not None else None)


def _of_these(entries: Sequence[_Entry], top: Collection[str]) -> list[tuple[str, str, int]]:
    """Entries without those of other directories, which share no more than the file name with an image here.

    A file name alone says which image is meant where nothing in the map contradicts it: no entry has its directory here, and no name is there
    twice. Images in `top` have no directory.
    """
    paths: dict[str, set[str]] = {}
    for entry in entries:
        if entry.is_elsewhere and entry.image not in top:
            paths.setdefault(entry.image, set()).add(entry.name)
    if any("/" in entry.image for entry in entries) or any(len(names) > 1 for names in paths.values()):
        entries = [entry for entry in entries if entry.image not in paths or not entry.is_elsewhere]
    return [(entry.image, entry.text, entry.line) for entry in entries]


def first_class(text: str) -> str:
    """The class of "n03995372 85 1 499 272", where a box follows it; else the text itself."""
    match = _BOXES.fullmatch(text)
    return match[1] if match else text


def _split(row: str) -> Iterator[list[str]]:
    """The ways to read a line as columns, one of which is an image."""
    for mark in "\t;,":
        if mark in row:
            try:
                yield [cell.strip() for cell in next(csv.reader([row], delimiter=mark))]
            except csv.Error:  # a cell of more than 131,072 characters
                continue
    first, last = row.split(None, 1), row.rsplit(None, 1)
    if len(first) > 1:
        yield [first[0], first[1].strip()]
        yield [last[0].strip(), last[1]]


def _header_cells(header: str, count: int, place: int, images: Collection[str]) -> list[str] | None:
    """The names of the columns beside the image's, where the first line gives `count` of them."""
    for cells in _split(header):
        if len(cells) == count > 2 and not any(_is_value(cell, images) for cell in cells):
            return [*cells[:place], *cells[place + 1 :]]
    return None


def _class_cell(others: Sequence[str], header: Sequence[str] | None, class_map: ClassMap, line: int) -> str:
    """The class among a line's columns beside the image."""
    if len(others) == 1:
        return others[0]
    if header is not None:
        named = [i for i, name in enumerate(header) if normal(name) in _CLASS_COLUMNS]
        if len(named) == 1:
            return others[named[0]]
    elif len(others) % 5 == 0 and _is_box(others[1:5]):
        return others[0]
    elif sorted(others) == ["0"] * (len(others) - 1) + ["1"]:
        return others[0]  # one column per class: refused once the other lines are seen
    columns = "" if header is None else f" ({', '.join(map(format_path, header[:6]))})"
    raise UserError(
        f"class map {format_path(class_map.file)}, line {line}: {len(others)} columns beside the image{columns}, and it is not clear which "
        "is the class. Give two columns, the image and its class"
    )


def _is_box(cells: Sequence[str]) -> bool:
    """Whether four columns are the corners of a box: left, top, right, bottom."""
    if not all(re.fullmatch(_NUMBER, cell, re.ASCII) for cell in cells):
        return False
    left, top, right, bottom = map(float, cells)
    return left <= right and top <= bottom


def _is_value(cell: str, images: Collection[str]) -> bool:
    """Whether a cell is no name of a column."""
    return re.fullmatch(_NUMBER, cell) is not None or _match(cell, images) is not None


def _parts(name: str) -> list[str]:
    return [part for part in composed(name).replace("\\", "/").split("/") if part not in ("", ".")]


def _match(name: str, images: Collection[str]) -> str | None:
    if len(name) > _LONGEST:
        return None
    parts = _parts(name)
    return next((path for i in range(len(parts)) if (path := "/".join(parts[i:])) in images), None)
