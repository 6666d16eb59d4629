"""What a model's classes are called, and files that say so."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_tprune.errors import UserError
from edge_tprune.files import read_regular
from edge_tprune.models.images import format_path
from edge_tprune.text import is_text

SYNSET = re.compile(r"n\d{8}")
_SYNSET_LINE = re.compile(r"(n\d{8})\s+(\S.*)")
_IMAGE_LINE = re.compile(r"\S+\.(jpe?g|png|bmp|webp|tiff?|gif|ppm)[\s,]+\S.*", re.IGNORECASE)
_LARGEST_BYTES = 64_000_000
#: What `int` raises for what is no number; a tensor that holds none, RuntimeError.
_NO_NUMBER = (TypeError, ValueError, OverflowError, RuntimeError)
_NAMES_BY_CLASS = ("id2label", "label_names")
_CONFIGURATION_KEYS = (*_NAMES_BY_CLASS, "class_to_idx")


@dataclass(frozen=True)
class ClassNames:
    """The names of a model's classes, by index."""

    names: tuple[str, ...]  #: as directories of images are called; one that two classes have finds neither
    source: str  #: where they are from, in words
    descriptions: tuple[str, ...] = ()  #: for people, where they differ from the names: "tench, Tinca tinca" of n01440764

    def __post_init__(self) -> None:
        """Refuses what no file and no picture can show."""
        if odd := next((text for text in (*self.names, *self.descriptions) if not is_text(text)), None):
            raise UserError(f"{self.source} calls a class {odd!r}, which is no text: say what the classes are with --class-map")
        if len(self.descriptions) not in (0, len(self.names)):
            raise UserError(f"{self.source} has {len(self.descriptions)} descriptions of {len(self.names)} classes")

    def title(self, index: int) -> str:
        """What to call class `index` before people: its description up to the first comma, or its name."""
        if self.descriptions:
            return self.descriptions[index].split(",")[0].strip() or self.names[index]
        return self.names[index]

    @cached_property
    def _table(self) -> NameTable:
        pairs = [(name, i) for i, name in enumerate(self.names)]
        words = [(part, i) for i, text in enumerate(self.descriptions) for part in (text, *text.split(","))]
        return NameTable(pairs, words)

    def find(self, name: str) -> int | None:
        """The class that a directory's or a file's word means: a name, a description, one of its synonyms that no other class has; or by the synset
        that it begins with (n02110185-Siberian_husky)."""
        found = self._table.find(name)
        synset = SYNSET.match(name)
        return found if found is not None or synset is None else self._table.find(synset[0])


class NameTable:
    """Finds a class by its name: as it is written, else without what copying changes, where only one class has it."""

    def __init__(self, *pairs: Iterable[tuple[str, int]]) -> None:
        self._tables: list[dict[str, int]] = []
        self._ambiguous: set[str] = set()
        for some in map(list, pairs):  # names before descriptions
            for key in (composed, normal):
                found: dict[str, set[int]] = {}
                for name, i in some:
                    found.setdefault(key(name), set()).add(i)
                self._tables.append({name: next(iter(classes)) for name, classes in found.items() if len(classes) == 1})
                self._ambiguous |= {name for name, classes in found.items() if len(classes) > 1}

    def find(self, name: str) -> int | None:
        """The class called `name`, None where there is none, or more than one."""
        keys = (composed(name), normal(name))
        return next((table[keys[i % 2]] for i, table in enumerate(self._tables) if keys[i % 2] in table), None)

    def is_ambiguous(self, name: str) -> bool:
        """Whether more than one class is called so."""
        return self.find(name) is None and (composed(name) in self._ambiguous or normal(name) in self._ambiguous)


def composed(name: str) -> str:
    """A name in Unicode's composed form: a Mac decomposes the names of files."""
    return unicodedata.normalize("NFC", name).strip()


def normal(name: str) -> str:
    """A name without case, and with one blank for blanks, hyphens and underscores; the sign of a number is none of these."""
    sign, rest = ("-", name) if re.match(r"\s*-\s*\.?\d", name) else ("", name)
    return sign + re.sub(r"[\s_-]+", " ", composed(rest)).strip().casefold()


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts as timm's `natural_key` does: numbers within names by value, letters without case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)]


@dataclass(frozen=True)
class ClassMap:
    """A file that gives classes to names, of classes or of images; read by `read_class_map`."""

    file: Path
    rows: tuple[tuple[int, str], ...] = ()  #: of text: the lines that are not empty, with their numbers from 0
    index: tuple[tuple[str, int], ...] = ()  #: (name, class), where the file says it of each name
    labels: Mapping[str, str] = field(default_factory=dict)  #: image -> name of its class
    descriptions: Mapping[int, str] = field(default_factory=dict)  #: class -> words for people

    def classes(self, classes: int) -> list[tuple[str, int]]:
        """(name, class) for a model with `classes` of them, where the file names classes. Two classes may have one name.

        Raises:
            UserError: a class that the model does not have, text that names more or fewer classes.
        """
        if not self.index and _numbered([text for _, text in self.rows], first=1):
            raise UserError(
                f"class map {format_path(self.file)} numbers its {len(self.rows)} classes from 1, and a model's first class is 0: "
                "number them from 0, or give the names alone, one a line"
            )
        index = list(self.index) or [(_name(text), number) for number, text in self.rows]
        if not self.index and self.rows and all(_IMAGE_LINE.fullmatch(text) for _, text in self.rows):
            raise UserError(
                f"class map {format_path(self.file)}: its lines are of images ({_name(self.rows[0][1])!r}), and none of these is there. Do the names "
                "differ in case, or in what follows the dot?"
            )
        for name, i in index:
            if not 0 <= i < classes:
                number = str(i) if abs(i) < 10**12 else "a number of more than twelve digits"
                raise UserError(
                    f"class map {format_path(self.file)}: {name!r} would be class {number}, and the model's {classes} classes "
                    f"are 0 to {classes - 1}. Is it the map of this model?"
                )
        numbers = bool(self.rows) and all(re.fullmatch(r"\d+", text, re.ASCII) for _, text in self.rows)
        if not self.index and len(index) != classes:
            raise UserError(
                f"class map {format_path(self.file)} names {len(index)} classes and the model has {classes}: "
                "give one class name a line, line 1 for class 0, or JSON that maps names to classes"
                + (". Its lines are numbers alone: for labels of images, give 'image class'" if numbers else "")
            )
        return index

    def class_names(self, classes: int) -> ClassNames:
        """The names of all of a model's classes.

        Raises:
            UserError: as `classes`; or a class without a name, or with two.
        """
        names: dict[int, str] = {}
        for name, i in self.classes(classes):
            if i in names:
                raise UserError(
                    f"class map {format_path(self.file)} calls class {i} both {names[i]!r} and {name!r}: give one name"
                )
            names[i] = name
        if missing := [i for i in range(classes) if i not in names]:
            raise UserError(
                f"class map {format_path(self.file)} names {len(names)} classes and the model has {classes}: "
                f"class {missing[0]} has no name. Give a name for each"
            )
        words = dict(self.descriptions) or {n: m[2] for n, text in self.rows if (m := _SYNSET_LINE.fullmatch(text))}
        listed = tuple(words.get(i, names[i]) for i in range(classes)) if words else ()
        return ClassNames(tuple(names[i] for i in range(classes)), f"--class-map {format_path(self.file.name)}", listed)


def read_class_map(file: Path) -> ClassMap:
    """Reads a class map.

    Text has one class name a line (timm's format: line 1 is class 0), or one name and its class a line, for classes or images. JSON maps
    names to classes or classes to names, or lists names.

    Raises:
        UserError: no such file, or none of these.
    """
    shown = format_path(file)
    if file.suffix.lower() in (".pkl", ".pickle"):
        raise UserError(f"class map {shown} is a pickle, which is not read. Give text with one class name a line, or JSON")
    try:
        text = read_regular(file, _LARGEST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"class map {shown} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"class map {shown} is not text in UTF-8 (byte {error.start + 1}). Save it as UTF-8") from error
    if file.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        return _read_json(file, text)
    rows = tuple((n, line.strip()) for n, line in enumerate(re.split(r"\r\n|\r|\n", text)) if line.strip())
    if not rows:
        raise UserError(f"class map {shown} is empty")
    index = _numbered([text for _, text in rows], first=0)
    return ClassMap(file, rows, tuple(index.items()))


def _numbered(rows: Sequence[str], first: int) -> Mapping[str, int]:
    """Of lines "cat 0" or "0 cat" that number as many classes from `first` on, in any order; empty where they do not."""
    for pattern in (r"(?P<name>.*[^\s,])[\s,]+(?P<class>\d{1,9})", r"(?P<class>\d{1,9})[\s,:]+(?P<name>\S.*)"):
        matches = [re.fullmatch(pattern, row, re.ASCII) for row in rows]
        index = {match["name"]: int(match["class"]) for match in matches if match}
        if len(index) == len(rows) and sorted(index.values()) == list(range(first, first + len(rows))):
            return index
    return {}


def _read_json(file: Path, text: str) -> ClassMap:
    shown = format_path(file)
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, shown))
    except (ValueError, RecursionError) as error:
        literal = ". A Python dictionary is not JSON: write it with json.dump" if re.match(r"\s*{\s*(\d|')", text) else ""
        raise UserError(f"class map {shown} is not readable JSON ({error}){literal}") from error
    key, document = _of_configuration(document, shown)
    is_by_class = isinstance(document, list) or (
        key in _NAMES_BY_CLASS and not all(type(value) is int for value in document.values())
    )
    if isinstance(document, list):  # a name may be a number: 2019
        document = {str(i): str(name) if type(name) is int else name for i, name in enumerate(document)}
    if not isinstance(document, dict) or not document:
        raise UserError(f"class map {shown} holds no names: give JSON that maps names to classes")
    if is_by_class:
        return _by_class(file, document)
    _check_direction(document, shown)
    if all(
        type(value) is int or (isinstance(value, str) and re.fullmatch(r"\d{1,4000}", value, re.ASCII))
        for value in document.values()
    ):
        return ClassMap(file, index=tuple((name, int(value)) for name, value in document.items()))
    numbers = [key.isascii() and key.isdecimal() for key in document]
    if all(isinstance(value, str) for value in document.values()) and not any(numbers):
        return ClassMap(file, labels=document)
    return _by_class(file, document)


def _check_direction(document: Mapping[str, object], shown: str) -> None:
    """Refuses numbers for numbers, written as text: {"0": "2019", "1": "2020"} may give names to classes, or classes to names."""
    names_of_classes = set(document) == {str(i) for i in range(len(document))}
    if (
        names_of_classes
        and all(isinstance(value, str) and re.fullmatch(r"\d{1,4000}", value, re.ASCII) for value in document.values())
        and any(value != key for key, value in document.items())
    ):
        raise UserError(
            f"class map {shown} holds numbers for numbers: which are the classes? Give a list of names in the order of the classes, "
            'or write classes without quotes: {"2019": 0, "2020": 1}'
        )


def _of_configuration(document: Any, shown: str) -> tuple[str | None, Any]:
    """What a model's configuration says of its classes, and in which key, where `document` is one; else (None, `document`)."""
    if not isinstance(document, dict):
        return None, document
    found = {key: document[key] for key in _CONFIGURATION_KEYS if isinstance(document.get(key), (dict, list))}
    if not found:
        return None, document
    tables = [(key, to_index(record)) for key, record in found.items()]
    for i, (key, table) in enumerate(tables):
        for other, second in tables[:i]:
            if name := contradicted(table, second):
                raise UserError(
                    f"class map {shown} contradicts itself: {name!r} is class {second[name]} in its {other}, "
                    f"and class {table[name]} in its {key}. Leave one out"
                )
    return next(iter(found.items()))


def _unique(pairs: list[tuple[str, object]], shown: str) -> dict[str, object]:
    """A JSON object; two different values of one key are refused, of which `json` takes the last without a word."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise UserError(f"class map {shown} gives {key!r} twice: {found[key]!r} and {value!r}. Leave one out")
        found[key] = value
    return found


def _by_class(file: Path, document: Mapping[str, object]) -> ClassMap:
    """Of {"0": "cat"}, or of {"0": ["n01440764", "tench"]}."""
    index: list[tuple[str, int]] = []
    descriptions: dict[int, str] = {}
    for key, value in document.items():
        name = value[0] if isinstance(value, list) and value else value
        if not (re.fullmatch(r"\d{1,12}", key, re.ASCII) and isinstance(name, str)):
            raise UserError(
                f"class map {format_path(file)}: {json.dumps({key: value})[1:60]} is not a name and its class. "
                'Give {"cat": 0, "dog": 1}, or {"0": "cat", "1": "dog"}'
            )
        index.append((name, int(key)))
        if isinstance(value, list) and len(value) > 1:
            descriptions[int(key)] = str(value[1]).replace("_", " ")
    return ClassMap(file, index=tuple(index), descriptions=descriptions)


def _name(text: str) -> str:
    """A line's class name. Of "n01440764 tench, Tinca tinca" the synset."""
    match = _SYNSET_LINE.fullmatch(text)
    return match[1] if match else text


def to_index(record: object) -> dict[str, int]:
    """Name -> class of a list of names, {name: index} or {index: name}; empty where it is none of them."""
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(record, (list, tuple)):
        pairs = ((name, i) for i, name in enumerate(record))
    elif isinstance(record, Mapping):
        pairs = ((name, i) if isinstance(i, int) else (i, name) for name, i in record.items())
    found: dict[str, int] = {}
    for name, number in pairs:
        try:
            index = int(number)  # type: ignore[call-overload]
        except _NO_NUMBER:
            return {}
        if not isinstance(name, str):
            return {}
        found[name] = index
    return found


def contradicted(first: Mapping[str, int], second: Mapping[str, int]) -> str | None:
    """A name to which two records give different classes, None where there is none."""
    return next((name for name in first if name in second and first[name] != second[name]), None)


def to_class_names(record: object, classes: int, source: str) -> ClassNames | None:
    """Class names from what a checkpoint or its configuration may say: a list, {name: index} or {index: name}; None where they are not `classes` names."""
    names: Sequence[object]
    if isinstance(record, Mapping):
        pairs = [(v, k) if isinstance(v, int) else (k, v) for k, v in record.items()]
        try:
            numbered = sorted(((int(i), name) for i, name in pairs), key=lambda pair: pair[0])
        except _NO_NUMBER:
            return None
        if [i for i, _ in numbered] != list(range(classes)):
            return None
        names = [name for _, name in numbered]
    elif isinstance(record, (list, tuple)):
        names = record
    else:
        return None
    if len(names) != classes or not all(isinstance(name, str) and name.strip() for name in names):
        return None
    texts = tuple(str(name).strip() for name in names)
    if all(re.fullmatch(r"LABEL_\d+", name) for name in texts):
        return None
    return ClassNames(texts, source)
