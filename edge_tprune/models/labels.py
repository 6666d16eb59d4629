"""Which class an image is of, by where it lies: one list of rules for every command, and the rule that decided in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_tprune.errors import UserError
from edge_tprune.models.class_names import SYNSET, ClassMap, ClassNames, NameTable, composed, natural_key
from edge_tprune.models.image_map import find_entries, first_class
from edge_tprune.models.images import Listing, format_path

UNKNOWN = -1  #: the label of an image whose class is not known

SPLITS = {"train", "training", "trainval", "val", "valid", "validation", "eval", "dev", "test", "testing"}
"""What the parts of a data set are called: train, val2017, test_set, Training-Images."""
_SPLIT_EXTRAS = {"", "image", "images", "img", "imgs", "set", "data", "dataset", "split", "seg", "pred", "folder"}


@dataclass(frozen=True)
class Labels:
    """The labels of a listing's images."""

    values: tuple[int, ...]  #: of each image: its class, or `UNKNOWN`
    rule: str  #: which rule decided, in words
    dropped: frozenset[int] = frozenset()  #: positions of images that the rule leaves out
    left_out: Mapping[str, int] = field(default_factory=dict)  #: how many, by reason


def label(listing: Listing, classes: int, class_map: ClassMap | None = None, class_names: ClassNames | None = None) -> Labels:
    """The class of every image.

    What decides, in this order: the class map; the names of the model's classes; directory names that all are numbers below the number of
    classes; as many ImageNet synsets as the model has classes, sorted; the natural order of the directory names, as in timm's `ImageFolder`.
    Images that do not lie in directories have no labels, unless a class map names them.

    Args:
        listing: the images.
        classes: number of the model's outputs.
        class_map: what the user said.
        class_names: what the model's classes are called.

    Raises:
        UserError: directories that are the parts of a data set, or do not hold their images themselves, or are not the model's classes.
    """
    if classes == 1:
        return _unlabelled(
            listing, "the model has one output, and the most likely of one class says nothing: labels are not used"
        )
    if class_map is not None:
        return _by_map(listing, classes, class_map, class_names)
    folders = _Folders(listing)
    if not folders.images:
        hint = _maps_nearby(listing.root)
        where = f"no labels: the images lie in {format_path(listing.root)} itself, not in one directory per class"
        return _unlabelled(listing, f"{where}. For labels, give --class-map FILE with lines 'image class'{hint}")
    found = _by_names(folders, class_names)
    if found is None:
        folders.refuse_splits(classes)
        folders.refuse_nesting(classes)
        found = _by_numbers(folders, classes) or _by_order(folders, classes, class_names)
    index, rule = found
    return _assign(listing, index, rule)


class _Folders:
    """The directories directly in a data set's root."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.images = Counter(parts[0] for parts in listing.parts if len(parts) > 1)  #: by directory, those below included
        self.direct = Counter(parts[0] for parts in listing.parts if len(parts) == 2)
        self.names = sorted(self.images)
        self.deeper = {part for parts in listing.parts for part in parts[1:-1]}

    def refuse_splits(self, classes: int) -> None:
        """Refuses directories that are the parts of a data set (train, val), not its classes."""
        splits = [name for name in self.listing.directories if is_split(name)]
        nested = [name for name in splits if name in self.images and not self.direct[name]]
        if not splits or (
            len(splits) == 1 and len(self.names) > 1 and not nested
        ):  # one class of several may be called "train"
            return
        best = min(splits, key=lambda name: (name.lower().startswith("train"), name))
        raise UserError(
            f"{self._root} holds {', '.join(map(format_path, splits))}: the parts of a data set, not its classes. "
            f"Give one of them, such as {format_path(self.listing.root / best)}"
        )

    def refuse_nesting(self, classes: int) -> None:
        """Refuses directories that hold images only in directories of their own: which of the levels is the class?"""
        hollow = [name for name in self.names if not self.direct[name]]
        if not hollow:
            return
        parts = next(parts for parts in self.listing.parts if parts[0] == hollow[0] and len(parts) > 2)
        deeper = self.listing.root.joinpath(*parts[:-2])
        raise UserError(
            f"image folder {self._root}: {format_path(hollow[0])} holds no images itself, they lie deeper, in "
            f"{format_path(Path(*parts[:-1]))}. Give the directory that holds one directory per class (is it {format_path(deeper)}?), "
            "or name the classes with --class-map FILE"
        )

    @property
    def _root(self) -> str:
        return format_path(self.listing.root)


def _by_names(folders: _Folders, class_names: ClassNames | None) -> tuple[Mapping[str, int], str] | None:
    """By the names of the model's classes, where the directories have them."""
    if class_names is None:
        return None
    index = {name: i for name in folders.names if (i := class_names.find(name)) is not None}
    if not index:
        return None
    root = format_path(folders.listing.root)
    strangers = [name for name in folders.names if name not in index]
    if strangers:
        listed = ", ".join(map(format_path, strangers[:4])) + (f" and {len(strangers) - 4} more" if len(strangers) > 4 else "")
        raise UserError(
            f"image folder {root}: {len(index)} of its directories are classes of the model ({class_names.source}), and {listed} "
            f"{'is' if len(strangers) == 1 else 'are'} not. Take {'it' if len(strangers) == 1 else 'them'} out, or give --class-map FILE"
        )
    if any(class_names.find(name) is not None for name in folders.deeper):
        folders.refuse_nesting(len(class_names.names))
    _refuse_twins(index, root)
    return index, f"labels: the directory names are names of the model's classes ({class_names.source})"


def _by_numbers(folders: _Folders, classes: int) -> tuple[Mapping[str, int], str] | None:
    """By number, where every directory's name is one below the number of classes."""
    if not _all_numbers(folders.names) or any(int(name) >= classes for name in folders.names):
        return None
    index = {name: int(name) for name in folders.names}
    _refuse_twins(index, format_path(folders.listing.root))
    some = folders.names[-1]
    return (
        index,
        f"labels: the directory names are numbers below {classes}, and the number is the class ({some} is class {index[some]})",
    )


def _by_order(folders: _Folders, classes: int, class_names: ClassNames | None) -> tuple[Mapping[str, int], str]:
    """By place in sorted order, where there are as many directories as classes."""
    every = folders.listing.directories
    names = every if len(every) == classes else folders.names  # one class may have no image
    synsets = all(SYNSET.fullmatch(name) for name in names)
    if len(names) != classes:
        raise UserError(_misfit(folders, classes, synsets))
    ordered = sorted(names) if synsets else sorted(names, key=lambda name: (natural_key(name), name))
    index = {name: i for i, name in enumerate(ordered)}
    if synsets:
        return index, f"labels: {classes} ImageNet synsets, in sorted order"
    known = "" if class_names is None else f"; none of them is a name of the model's classes ({class_names.source})"
    first, last = format_path(ordered[0]), format_path(ordered[-1])
    order = f"natural order of the {classes} directory names, as in timm's ImageFolder ({first} is class 0, {last} is class {classes - 1})"
    return index, f"labels: {order}{known}"


def _misfit(folders: _Folders, classes: int, synsets: bool) -> str:
    root, count = format_path(folders.listing.root), len(folders.names)
    directories = "directory" if count == 1 else "directories"
    said = f"image folder {root} has {count} class {directories} but the model has {classes} classes"
    if synsets:
        return (
            f"{said}, and the bundle does not say which ImageNet synset is which: give --class-map FILE "
            "(one class name a line), or build the bundle again"
        )
    if _all_numbers(folders.names):
        said += f", which are 0 to {classes - 1}: {max(folders.names, key=int)} is none of them"
    return (
        f"{said}. Give one directory per class, or --class-map FILE (one class name a line, or JSON that maps names to classes)"
        + _maps_nearby(folders.listing.root)
    )


def _by_map(listing: Listing, classes: int, class_map: ClassMap, class_names: ClassNames | None) -> Labels:
    """By a class map: of images where it names images of the listing, else of directories, the innermost that it names."""
    file = format_path(class_map.file)
    labels = None if _names_folders(listing, class_map) else _image_labels(listing, classes, class_map, class_names)
    what, other = "images", ""
    if labels is None:
        what = "directories"
        table = NameTable(class_map.classes(classes))
        for name in sorted({name for parts in listing.parts for name in parts[:-1]}):
            if table.is_ambiguous(name):
                raise UserError(
                    f"class map {file}: {format_path(name)} is the name of several classes: rename the directory, or the classes"
                )
            mine, own = table.find(name), None if class_names is None else class_names.find(name)
            if class_names is not None and own not in (None, mine) and mine is not None and not other:
                other = (
                    f"; {format_path(name)} is class {mine}, and class {own} by the model's own names ({class_names.source})"
                )
        found = ([table.find(name) for name in _folder_names(parts)] for parts in listing.parts)
        labels = [next((i for i in classes_ if i is not None), None) for classes_ in found]
    if all(found is None for found in labels):
        shown = ", ".join(map(format_path, listing.directories[:3])) or format_path(listing.files[0].name)
        raise UserError(
            f"class map {file} names none of the images in {format_path(listing.root)}, and none of their directories ({shown}, ...). "
            "Is it the map of these images?"
        )
    dropped = frozenset(i for i, found in enumerate(labels) if found is None)
    left_out = {f"image{'s'[: len(dropped) != 1]} that {file} does not name": len(dropped)} if dropped else {}
    values = tuple(UNKNOWN if found is None else found for found in labels)
    return Labels(values, f"labels: {what} by class map {file}{other}", dropped, left_out)


def _names_folders(listing: Listing, class_map: ClassMap) -> bool:
    """Whether a map that gives classes to names has every directory among them: then it is of these, whatever the images are called."""
    folders = {parts[0] for parts in listing.parts if len(parts) > 1}
    names = {name for name, _ in class_map.index} or {text for _, text in class_map.rows}
    return bool(folders) and folders <= names and all(len(parts) > 1 for parts in listing.parts)


def _image_labels(
    listing: Listing, classes: int, class_map: ClassMap, class_names: ClassNames | None
) -> list[int | None] | None:
    """Of each image its class, None where the map does not name it; None where the map names no images."""
    file = format_path(class_map.file)
    images = {name for parts in listing.parts for name in _image_names(parts)}
    said: dict[str, tuple[str, int]] = {}
    top = {name for parts in listing.parts if len(parts) == 1 for name in _image_names(parts)}
    for name, text, number in find_entries(class_map, images, top):
        if name in said and said[name][0] != text:
            raise UserError(f"class map {file} gives {format_path(name)} class {said[name][0]} and class {text}: give it one")
        said[name] = (text, number)
    if not said:
        return None
    found: list[int | None] = []
    meant: dict[str, str] = {}  # name in the map -> path of the image that has it
    for parts in listing.parts:
        key = next((name for name in _image_names(parts) if name in said), None)
        if key is None:
            found.append(None)
            continue
        path = "/".join(parts)
        if meant.setdefault(key, path) != path:
            raise UserError(
                f"class map {file}: {format_path(key)} can be {format_path(meant[key])} or {format_path(path)}. "
                "Give the images' paths in the map"
            )
        found.append(_class(*said[key], classes, class_map, class_names))
    return found


def _class(text: str, line: int, classes: int, class_map: ClassMap, class_names: ClassNames | None) -> int:
    """The class that a map's second column means: a number or a name."""
    if re.fullmatch(r"-?\d+", text, re.ASCII):
        if len(text) < 13 and 0 <= int(text) < classes:
            return int(text)
        number = text if len(text) < 13 else f"{text[:9]}... ({len(text)} digits)"
        problem = f"class {number} is out of range: the model's {classes} classes are 0 to {classes - 1}"
    else:
        for word in (text, first_class(text)):
            if class_names is not None and (found := class_names.find(word)) is not None:
                return found
        known = "the model's classes have no names" if class_names is None else f"not among {class_names.source}"
        problem = f"no class is called {text!r}: {known}. Give numbers, or the names of the model's classes"
    where = f", line {line}" if class_map.rows else ""
    raise UserError(f"class map {format_path(class_map.file)}{where}: {problem}")


def _image_names(parts: tuple[str, ...]) -> list[str]:
    """What a class map may call an image: by its path or its name, with or without extension."""
    path, name = composed("/".join(parts)), composed(parts[-1])
    return list(dict.fromkeys((path, path.rpartition(".")[0], name, name.rpartition(".")[0])))


def _folder_names(parts: tuple[str, ...]) -> list[str]:
    """The directories that an image lies in, innermost first: each by its path below the root, then by its name."""
    found = []
    for depth in range(len(parts) - 1, 0, -1):
        found += ["/".join(parts[:depth]), parts[depth - 1]]
    return found


def is_split(name: str) -> bool:
    """Whether a directory is called as the parts of a data set are."""
    words = re.split(r"[^a-z]+", name.lower())
    return any(word in SPLITS for word in words) and all(word in SPLITS | _SPLIT_EXTRAS for word in words)


def _assign(listing: Listing, index: Mapping[str, int], rule: str) -> Labels:
    """By the directory directly in the root that an image lies in; images that lie in the root itself are left out."""
    dropped = frozenset(i for i, parts in enumerate(listing.parts) if len(parts) == 1)
    left_out = {f"image{'s'[: len(dropped) != 1]} outside the class directories": len(dropped)} if dropped else {}
    values = tuple(UNKNOWN if len(parts) == 1 else index[parts[0]] for parts in listing.parts)
    return Labels(values, rule, dropped, left_out)


def _unlabelled(listing: Listing, rule: str) -> Labels:
    return Labels((UNKNOWN,) * len(listing.files), rule)


def _all_numbers(names: list[str]) -> bool:
    return all(re.fullmatch(r"\d{1,9}", name, re.ASCII) for name in names)


def _refuse_twins(index: Mapping[str, int], root: str) -> None:
    """Refuses two directories for one class."""
    seen: dict[int, str] = {}
    for name, i in index.items():
        if i in seen:
            raise UserError(
                f"image folder {root}: the directories {format_path(seen[i])} and {format_path(name)} are both class {i}. "
                "Put them together, or give --class-map FILE"
            )
        seen[i] = name


def _maps_nearby(root: Path) -> str:
    """Of a flat directory: a file in it that may be its class map."""
    for file in sorted(root.iterdir()):
        if file.suffix.lower() in (".txt", ".csv", ".tsv", ".json") and file.is_file():
            return f" (is it {format_path(file)}?)"
    return ""
