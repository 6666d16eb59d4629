"""The JSON documents of this package: manifests, runs, schedule files. Each kind is one msgspec Struct, checked whenever it is read or written.

Whatever is wrong with a document is one line that names the entry and its value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from edge_tprune.errors import UserError
from edge_tprune.files import read_regular, write_bytes
from edge_tprune.text import is_text

T = TypeVar("T")

LARGEST_BYTES = 64_000_000  # reading JSON takes many times its size in memory
_DEEPEST = 100  # brackets within each other
_LONGEST_SHOWN = 60  # characters of a value in a message
LARGEST = 2**53  # beyond it a double no longer holds every whole number, and JSON is read as doubles elsewhere

# Types for fields. A bound keeps a number of 400 digits out.
Whole = Annotated[int, Meta(ge=0, le=LARGEST)]
Integer = Annotated[int, Meta(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
Batch = Annotated[int, Meta(ge=1, le=65_536)]  # images per inference
Share = Annotated[float, Meta(gt=0, le=1e6)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Distance = Annotated[float, Meta(ge=0)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]  # usable as a part of one
# Below the directory that the document lies in.
RelativePath = Annotated[str, Meta(pattern=r"^(?!/)(?!(?:.*/)?\.\.(?:/|\Z))[^\\\x00-\x1f]+\Z")]
Name = Annotated[str, Meta(min_length=1)]
OptionValue = bool | int | float | str | None  # of a reduction method
MethodOptions = Mapping[str, OptionValue]  # by name


class InvalidDocument(ValueError):
    """What is wrong with some JSON: the entry, its value, what was expected. One line, safe to print."""


class _Header(msgspec.Struct):
    format: Any = None
    version: Any = None


@dataclass(frozen=True)
class DocumentKind(Generic[T]):
    """One kind of document: its type, how it is recognised, what messages call it.

    In the file, `format` and `version` stand before the fields of `schema`.
    """

    noun: str  #: what people call it: "bundle"
    format: str  #: its `format` key
    version: int  #: the newest `version` that is read, and the one that is written
    make: str  #: what makes one: "Make one with: edge-tprune build"
    remedy: str  #: what to do about a damaged one: "Copy the bundle again, or rebuild it"
    schema: type[T]  #: a msgspec Struct
    file: str | None = None  #: its name in the directory that people name; None where they name the document itself
    convert: Callable[[dict[str, object]], dict[str, object]] | None = None
    """Turns a document of an older version, its `version` included, into today's fields."""
    most_bytes: int = LARGEST_BYTES

    @property
    def begins(self) -> re.Pattern[bytes]:
        """How every document of this kind begins, a damaged one too: what only holds these words somewhere is a person's."""
        return re.compile(rb'\s*\{\s*"format":\s*"' + re.escape(self.format.encode()) + rb'"')

    def read(self, path: Path) -> T:
        """The document at `path` (the directory that holds it, where the kind has a `file`).

        Raises:
            UserError: it is missing, not a regular file, too large, not JSON, of another kind, of a newer version, or an
                entry has a wrong type or is out of range.
        """
        place = f"{self.noun} {path}: {self.file}" if self.file else f"{self.noun} {path}"
        try:
            data = read_regular(path / self.file if self.file else path, self.most_bytes)
        except OSError as error:
            if self.file and isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise UserError(f"{path} is not a {self.noun}: it has no {self.file}. {self.make}") from error
            remedy = self.make if isinstance(error, FileNotFoundError) else self.remedy
            raise UserError(f"{place} cannot be read: {error.strerror}. {remedy}") from error
        try:
            _check_depth(data)
            version = self._version(data, path)
            if version < self.version and self.convert is not None:
                document = _parse(data)
                _refuse_foreign(document)
                return convert(self.convert(document), self.schema)
            return decode(data, self.schema)
        except InvalidDocument as error:
            raise UserError(f"{place}: {error}. {self.remedy}") from error

    def _version(self, data: bytes, path: Path) -> int:
        """The document's version, once it is sure that it is of this kind."""
        try:
            header = msgspec.json.decode(data, type=_Header)
        except (ValueError, RecursionError):
            document = _parse(data)
            _refuse_foreign(document)
            header = _Header(document.get("format"), document.get("version")) if isinstance(document, dict) else _Header()
        if header.format != self.format:
            what = self.file or "JSON"
            raise UserError(f"{path} is not a {self.noun}: its {what} does not say format {self.format!r}. {self.make}")
        if type(header.version) is not int or header.version < 1:
            raise InvalidDocument(f"version is {show(header.version)}: expected a whole number from 1 to {self.version}")
        if header.version > self.version:
            raise UserError(
                f"{self.noun} {path} has format version {show(header.version)}, newer than the {self.version} this "
                "edge-tprune reads. Run: pip install -U edge-tprune"
            )
        return header.version

    def document(self, value: T) -> dict[str, object]:
        """The document as plain values: what other programs find in the file."""
        fields = escape_undecodable(msgspec.to_builtins(value, str_keys=True))
        return {"format": self.format, "version": self.version, **fields}

    def encode(self, value: T) -> bytes:
        """The document as it is written: indented JSON.

        Raises:
            ValueError: `value` does not fit its own type, or holds NaN or infinity (what is missing is null).
        """
        document = self.document(value)
        _refuse_foreign(document)
        data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
        decode(data, self.schema)
        return data

    def write(self, path: Path, value: T) -> None:
        """Writes the document to `path` (the directory, where the kind has a `file`), atomically. Errors as `encode`."""
        write_bytes(path / self.file if self.file else path, self.encode(value))


def decode(data: bytes, schema: type[T]) -> T:
    """JSON as a value of `schema`: a whole document, or one line of a log.

    Raises:
        InvalidDocument: naming the first entry that does not fit, and its value.
    """
    try:
        return msgspec.json.decode(data, type=schema)
    except (ValueError, RecursionError) as error:
        document = _parse(data)
        _refuse_foreign(document)
        convert(document, schema)
        raise InvalidDocument(f"not readable JSON ({_one_line(error)})") from error


_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""Strings, one that is cut off up to the end (or every quote in it would be tried as a beginning), and the brackets between them."""


def _check_depth(data: bytes) -> None:
    """Refuses what recursion in Python cannot follow, long before it fails: nothing of ours is nested as deep."""
    depth = 0
    if data.count(b"[") + data.count(b"{") > _DEEPEST:
        for found in _BRACKETS.finditer(data):
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
            if depth > _DEEPEST:
                raise InvalidDocument("not readable JSON (too many nested brackets)")


def _parse(data: bytes) -> Any:
    """Any JSON; NaN and infinity too, so that the entry that holds one can be named."""
    try:
        return json.loads(data.decode())
    except RecursionError as error:
        raise InvalidDocument("not readable JSON (too many nested brackets)") from error
    except ValueError as error:
        raise InvalidDocument(f"not readable JSON ({_one_line(error)})") from error


def convert(document: Any, schema: type[T]) -> T:
    """Plain values as what they must be.

    Raises:
        InvalidDocument: an entry has a wrong type or is out of range.
    """
    try:
        return msgspec.convert(document, schema)
    except msgspec.ValidationError as error:
        raise InvalidDocument(_describe(error, document, schema)) from error
    except RecursionError as error:
        raise InvalidDocument("too many nested brackets") from error


_PATH = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")
_MISSING = re.compile(r"^Object missing required field `(?P<field>.+)`$")


def _describe(error: msgspec.ValidationError, document: Any, schema: type[Any]) -> str:
    """One line: entry, value, what was expected. msgspec says `[...]` for any entry of a mapping: which one is found out."""
    match = _PATH.search(str(error))
    expectation = _one_line(error)[: match.start() if match else None]
    steps = [step["field"] or step["index"] for step in _STEP.finditer(match["path"])] if match else []
    entry, value = "", document
    for number, step in enumerate(steps):
        if step == "..." and isinstance(value, dict):
            step = _offending_key(document, steps[:number], str(error), schema)
        try:
            value = value[int(step)] if isinstance(value, (list, tuple)) else value[step]
        except (LookupError, TypeError, ValueError):
            break
        steps[number] = step
        entry = _inside(entry, step)
    if missing := _MISSING.match(expectation):
        return f"{entry or 'it'} has no entry {missing['field']!r}"
    expectation = expectation.replace("`", "").replace("Expected", "expected").replace("Invalid", "invalid")
    if match and match["key"]:
        return f"a name in {entry or 'it'} is wrong: {expectation}"
    return f"{entry or 'it'} is {show(value)}: {expectation}"


def _offending_key(document: Any, steps: list[str], message: str, schema: type[Any]) -> str:
    """Which entry of the mapping at `steps` msgspec means: the first one that fails as all of them do, by bisection."""

    def fails(keys: list[str]) -> bool:
        try:
            msgspec.convert(_with_only(document, steps, keys), schema)
        except msgspec.ValidationError as error:
            return str(error) == message
        return False

    keys = list(_at(document, steps))
    right, wrong = 0, len(keys)  # the first so many are
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if fails(keys[:middle]):
            wrong = middle
        else:
            right = middle
    return str(keys[right]) if keys and fails([keys[right]]) else "..."


def _at(document: Any, steps: list[str]) -> Any:
    for step in steps:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def _with_only(document: Any, steps: list[str], keys: list[str]) -> Any:
    """A copy along `steps` in which the mapping there has these entries only."""
    if not steps:
        return {key: document[key] for key in keys}
    if isinstance(document, list):
        place = int(steps[0])
        return [*document[:place], _with_only(document[place], steps[1:], keys), *document[place + 1 :]]
    return {**document, steps[0]: _with_only(document[steps[0]], steps[1:], keys)}


def _refuse_foreign(document: Any) -> None:
    """Refuses what Python takes for JSON and others do not: NaN, infinity, half a surrogate pair."""
    for entry, value in _leaves(document, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidDocument(f"{entry or 'it'} is {value}: expected a finite number")
        if isinstance(value, str) and not is_text(value):
            raise InvalidDocument(f"{entry or 'it'} is {show(value)}: expected text, and this holds half a character")


def _leaves(value: Any, entry: str) -> Iterator[tuple[str, Any]]:
    """(name of the entry, value) of everything in a document that is no list or mapping; names of mappings are values, too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield entry, key
            yield from _leaves(item, _inside(entry, key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _leaves(item, _inside(entry, str(number)))
    else:
        yield entry, value


def _inside(entry: str, step: str) -> str:
    """What messages call the entry `step` of an entry: `budgets[0].macs`, `parity["a b"]`."""
    if step.isdigit() and step.isascii():
        return f"{entry}[{step}]"
    if step.isidentifier() and step.isascii():
        return f"{entry}.{step}".lstrip(".")
    return f"{entry}[{show(step)}]"


def escape_undecodable(value: Any) -> Any:
    """Names of files need not be text: bytes that are not UTF-8 are written as escapes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {escape_undecodable(key): escape_undecodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape_undecodable(item) for item in value]
    return value


def show(value: Any) -> str:
    """A value for a message: JSON in ASCII, cut where it is long."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_SHOWN:
        return "a number of more than 60 digits"
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)[:200] or type(error).__name__
