"""A document is what its type says, or one line says what is wrong with it."""

from __future__ import annotations

import itertools
import json
import os
import struct
import threading
import time
import zipfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from edge_tprune.documents import Count, DocumentKind, InvalidDocument, Name, Percent, _check_depth, decode
from edge_tprune.errors import UserError


class Lid(msgspec.Struct, frozen=True, kw_only=True):
    colour: Name
    weight_g: Annotated[float, Meta(gt=0)] | None = None


class Box(msgspec.Struct, frozen=True, kw_only=True):
    sides: tuple[Count, Count]
    lids: tuple[Lid, ...]
    by_name: dict[Annotated[str, Meta(pattern="^[a-z]+$")], Lid] = {}
    full: Percent | None = None
    extra: dict[str, Any] = {}


def _from_version_1(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "sides": [document["side"]] * 2, "lids": document.get("lids", [])}


BOX = DocumentKind(
    noun="box",
    format="test-box",
    version=2,
    make="Make one with: make box",
    remedy="Copy the box again",
    schema=Box,
    file="box.json",
    convert=_from_version_1,
    most_bytes=1_000_000,
)
NOTE = DocumentKind("note", "test-note", 1, "Make one", "Write it again", Box)
GOOD = {
    "format": "test-box",
    "version": 2,
    "sides": [1, 2],
    "lids": [{"colour": "red", "weight_g": 1}, {"colour": "blue"}],
    "by_name": {"a": {"colour": "grey"}, "b": {"colour": "green", "weight_g": 2.5}},
    "full": 10.5,
}


def _write(folder: Path, document: Any) -> Path:
    (folder / "box.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return folder


def test_a_document_is_read_as_its_type_and_written_back(tmp_path: Path) -> None:
    box = BOX.read(_write(tmp_path, GOOD))
    assert box.sides == (1, 2)
    assert box.lids == (Lid(colour="red", weight_g=1.0), Lid(colour="blue"))
    (tmp_path / "copy").mkdir()
    BOX.write(tmp_path / "copy", box)
    assert BOX.read(tmp_path / "copy") == box
    text = (tmp_path / "copy" / "box.json").read_text()
    assert text.startswith('{\n "format": "test-box",\n "version": 2,\n')
    assert text.endswith("}\n")


def test_an_older_version_is_converted(tmp_path: Path) -> None:
    assert BOX.read(_write(tmp_path, {"format": "test-box", "version": 1, "side": 3})) == Box(sides=(3, 3), lids=())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is not a box: it has no box.json. Make one with: make box"),
        ("", "box.json: not readable JSON (Expecting value: line 1 column 1 (char 0)). Copy the box again"),
        ("{", "box.json: not readable JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("[" * 200_000, "box.json: not readable JSON (too many nested brackets). Copy the box again"),
        ("[]", "does not say format 'test-box'"),
        ('{"format": "other"}', "does not say format 'test-box'"),
        ('{"format": "test-box"}', "box.json: version is null: expected a whole number from 1 to 2. Copy the box again"),
        ('{"format": "test-box", "version": "1"}', 'version is "1": expected a whole number from 1 to 2'),
        ('{"format": "test-box", "version": true}', "version is true: expected a whole number from 1 to 2"),
        ('{"format": "test-box", "version": 1, "side": 1e999}', "side is inf: expected a finite number"),
        ('{"format": "test-box", "version": 0}', "version is 0: expected a whole number from 1 to 2"),
        ('{"format": "test-box", "version": 3}', "format version 3, newer than the 2 this edge-tprune reads. Run: pip install"),
        ('{"format": "test-box", "version": 2}', "box.json: it has no entry 'sides'. Copy the box again"),
    ],
)
def test_what_is_no_document_of_this_kind_is_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        _write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        BOX.read(tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        (("sides",), [1, 0], "sides[1] is 0: expected int >= 1"),
        (("sides",), [1, 2, 3], "sides is a list of 3: expected array of length 2"),
        (("sides",), [1, 2.5], "sides[1] is 2.5: expected int, got float"),
        (("sides",), [1, True], "sides[1] is true: expected int, got bool"),
        (("sides",), [1, 10**399], "sides[1] is a number of more than 60 digits: expected int <= 9007199254740992"),
        (("lids", 1, "colour"), "", 'lids[1].colour is "": expected str of length >= 1'),
        (("lids", 1, "colour"), None, "lids[1].colour is null: expected str, got null"),
        (("lids", 1), "red", 'lids[1] is "red": expected object, got str'),
        (("lids", 0, "weight_g"), "x" * 99, 'lids[0].weight_g is "xxxx'),
        (("lids", 1), {"weight_g": 1}, "lids[1] has no entry 'colour'"),
        (("by_name", "b", "weight_g"), -1, "by_name.b.weight_g is -1: expected float > 0.0"),
        (("by_name", "b"), {}, "by_name.b has no entry 'colour'"),
        (("by_name", "B C"), {"colour": "x"}, "a name in by_name is wrong: expected str matching regex"),
        (("full",), 100.5, "full is 100.5: expected float <= 100.0"),
        (("full",), float("nan"), "full is nan: expected a finite number"),
        (("lids", 0, "weight_g"), float("inf"), "lids[0].weight_g is inf: expected a finite number"),
        (("extra",), {"list": [1, float("-inf")]}, "extra.list[1] is -inf: expected a finite number"),
        (("lids", 0, "colour"), "\ud800", 'lids[0].colour is "\\ud800": expected text'),
        (("extra",), {"\udc80": 1}, 'extra is "\\udc80": expected text'),
        (("lids", 0, "colour"), 7, "lids[0].colour is 7: expected str, got int"),
    ],
)
def test_a_wrong_entry_is_named_with_its_value(tmp_path: Path, entry: tuple[Any, ...], value: Any, says: str) -> None:
    document = json.loads(json.dumps(GOOD))
    place: Any = document
    for step in entry[:-1]:
        place = place[step]
    place[entry[-1]] = value
    _write(tmp_path, document)
    with pytest.raises(UserError) as caught:
        BOX.read(tmp_path)
    assert f"box.json: {says}" in str(caught.value)
    assert str(caught.value).endswith(". Copy the box again")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 400, "9" * 5000])
def test_numbers_that_no_word_holds(tmp_path: Path, number: str) -> None:
    text = json.dumps({**GOOD, "full": "HERE"}).replace('"HERE"', number)
    with pytest.raises(UserError, match=r"full is|not readable JSON"):
        BOX.read(_write(tmp_path, text))


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b"\x80", b'{"format": "\xff"}', b"\0" * 100])
def test_bytes_that_are_not_utf_8(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "box.json").write_bytes(data)
    with pytest.raises(UserError, match="not readable JSON") as caught:
        BOX.read(tmp_path)
    assert str(caught.value).isprintable()


def test_an_archive_in_place_of_a_document(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "box.json", "w") as archive:
        archive.writestr("box.json", json.dumps(GOOD))
    with pytest.raises(UserError, match="not readable JSON"):
        BOX.read(tmp_path)


def test_a_pipe_a_device_a_directory_and_a_huge_file_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "box.json"
    os.mkfifo(file)
    caught: list[BaseException] = []

    def read() -> None:
        try:
            BOX.read(tmp_path)
        except UserError as error:
            caught.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive()
    assert "it is a named pipe, not a file" in str(caught[0])
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is a device, not a file"):
        BOX.read(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="it is a directory, not a file"):
        BOX.read(tmp_path)
    file.rmdir()
    with file.open("wb") as stream:
        stream.truncate(10**10)
    with pytest.raises(UserError, match="it has more than 1 MB"):
        BOX.read(tmp_path)


def test_a_document_that_people_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"note .*absent\.json cannot be read: No such file"):
        NOTE.read(tmp_path / "absent.json")
    NOTE.write(tmp_path / "note.json", Box(sides=(1, 1), lids=()))
    assert NOTE.read(tmp_path / "note.json").sides == (1, 1)


def test_only_what_can_be_read_is_written(tmp_path: Path) -> None:
    for wrong in (
        Box(sides=(1, 0), lids=()),
        Box(sides=(1, 1), lids=(Lid(colour="x", weight_g=float("nan")),)),
        Box(sides=(1, 1), lids=(), extra={"x": float("inf")}),
    ):
        with pytest.raises(ValueError, match="expected"):
            BOX.write(tmp_path, wrong)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_utf_8_is_written_with_escapes(tmp_path: Path) -> None:
    BOX.write(tmp_path, Box(sides=(1, 1), lids=(Lid(colour=os.fsdecode(b"gr\xfcn")),)))
    assert BOX.read(tmp_path).lids[0].colour == "gr\\udcfcn"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _refusal(data: bytes) -> str | None:
    """Why `data` is no Box; None where it is one, which then survives being written and read."""
    try:
        box = decode(data, Box)
    except InvalidDocument as error:
        return str(error)
    assert decode(msgspec.json.encode(box), Box) == box
    return None


@settings(deadline=None, max_examples=300)
@given(entry=st.sampled_from(sorted(GOOD)), value=JSON)
def test_any_value_in_place_of_any_entry_is_read_or_refused_in_one_line(entry: str, value: Any) -> None:
    why = _refusal(json.dumps({**GOOD, entry: value}).encode())
    assert why is None or (why.isprintable() and len(why) < 400)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_damage_to_the_bytes_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    damaged = bytearray(json.dumps(GOOD).encode())
    begin = data.draw(st.integers(0, len(damaged)))
    end = data.draw(st.integers(begin, min(len(damaged), begin + 8)))
    damaged[begin:end] = data.draw(st.binary(max_size=8) | st.floats().map(lambda value: struct.pack("d", value)))
    why = _refusal(bytes(damaged))
    assert why is None or (why.isprintable() and len(why) < 400)


def test_brackets_are_counted_outside_of_texts_alone(tmp_path: Path) -> None:
    from edge_tprune.documents import _check_depth

    for deep in (99, 100, 101, 800, 200_000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            data = opening * deep + b"1" + closing * deep
            if deep <= 100:
                _check_depth(data)
            else:
                with pytest.raises(InvalidDocument, match="too many nested brackets"):
                    _check_depth(data)
    _check_depth(json.dumps(["[" * 500, '\\"' + "{" * 500, [["\\"]] * 300]).encode())


@pytest.mark.parametrize("end", ["", "\\", '"]'])
def test_strings_full_of_quotes_and_brackets_are_read_in_one_pass(end: str) -> None:
    """A second for each megabyte would be no answer; before, every quote of a string that is cut off was tried as the beginning of one."""
    data = ('["' + "[" * 101 + '","' + '\\"' * 2_000_000 + end).encode()
    begin = time.process_time()
    _check_depth(data)
    assert time.process_time() - begin < 20
    with pytest.raises(InvalidDocument, match="too many nested brackets"):
        _check_depth(b'["\\"]]]]", ' + b"[" * 101)


def test_one_wrong_entry_among_many_is_named_in_no_time() -> None:
    good = {"colour": "red"}
    names = ["".join(letters) for letters in itertools.product("abcdefghij", repeat=5)]
    document = {"sides": [1, 2], "lids": [good] * 100_000, "by_name": dict.fromkeys(names, good)}
    document["by_name"][names[77_777]] = {"colour": 5}
    begin = time.process_time()
    with pytest.raises(InvalidDocument, match=rf"by_name\.{names[77_777]}\.colour is 5"):
        decode(json.dumps(document).encode(), Box)
    assert time.process_time() - begin < 60
