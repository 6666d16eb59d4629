"""The lines of a class map that name images: which column is the image, and which its class."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence

from edge_tprune.errors import UserError
from edge_tprune.models.class_names import ClassMap, composed, normal
from edge_tprune.models.images import format_path

_CLASS_COLUMNS = frozenset(
    f"{noun}{part}"
    for noun in ("class", "label", "target", "category", "ground truth")
    for part in ("", " id", " idx", " index", " name", " no")
) | {"classes", "labels", "targets", "categories", "y", "gt", "wnid", "synset", "predictionstring", "imagenet class"}
"""What files with more than two columns call that of the class."""

_LONGEST = 4096  # characters of a path: no file system opens a longer one
_NUMBER = r"-?\d+(?:\.\d*)?"
_BOXES = re.compile(rf"(\S+)(?:\s+{_NUMBER}){{4}}(?:\s+\S+(?:\s+{_NUMBER}){{4}})*", re.ASCII)
"""A class with the corners of a box, and more of them: as ImageNet's own files write it."""


def find_entries(class_map: ClassMap, images: Collection[str]) -> list[tuple[str, str, int]]:
    """(image, class, line counted from 1) of every entry of a class map that names one of `images`, by its path from there or from further up.

    Raises:
        UserError: it is not clear which column is the class.
    """
    if not class_map.rows:
        pairs = [(name, str(text)) for name, text in (*class_map.labels.items(), *class_map.index)]
        return [(image, text, n) for n, (name, text) in enumerate(pairs, 1) if (image := _match(name, images)) is not None]
    header = class_map.rows[0][1]
    entries, one_hot = [], True
    for number, row in class_map.rows:
        for cells in _split(row):
            # a later column is an image by its whole name only: "dog,0" is not about 0.png
            places = (i for i, cell in enumerate(cells) if (i == 0 or "." in cell) and _match(cell, images) is not None)
            place = next(places, None)
            if place is not None:
                others = [*cells[:place], *cells[place + 1 :]]
                one_hot = one_hot and len(others) > 1 and sorted(others) == ["0"] * (len(others) - 1) + ["1"]
                text = _class_cell(others, _header_cells(header, len(cells), place, images), class_map, number + 1)
                entries.append((_match(cells[place], images) or "", text, number + 1))
                break
    if entries and one_hot:
        raise UserError(
            f"class map {format_path(class_map.file)} has one column per class: give two columns, the image and its class"
        )
    return entries


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
        if len(cells) == count > 2 and not any(re.fullmatch(_NUMBER, cell) or _match(cell, images) for cell in cells):
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
    elif len(others) % 5 == 0 and all(re.fullmatch(_NUMBER, cell, re.ASCII) for cell in others[1:5]):
        return others[0]
    elif sorted(others) == ["0"] * (len(others) - 1) + ["1"]:
        return others[0]  # one column per class: refused once the other lines are seen
    columns = "" if header is None else f" ({', '.join(map(format_path, header[:6]))})"
    raise UserError(
        f"class map {format_path(class_map.file)}, line {line}: {len(others)} columns beside the image{columns}, and it is not clear which "
        "is the class. Give two columns, the image and its class"
    )


def _match(name: str, images: Collection[str]) -> str | None:
    if len(name) > _LONGEST:
        return None
    parts = [part for part in composed(name).replace("\\", "/").split("/") if part not in ("", ".")]
    return next((path for i in range(len(parts)) if (path := "/".join(parts[i:])) in images), None)
