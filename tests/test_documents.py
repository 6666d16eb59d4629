from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_tprune.documents import DocumentKind
from edge_tprune.errors import UserError


@pytest.fixture
def kind(tmp_path: Path) -> DocumentKind:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"count": {"type": "integer"}}}))
    return DocumentKind("box", "test-box", 2, "Make one with: make box", "Copy the box again", "box.json", schema)


@pytest.mark.parametrize("version", [1, 2])
def test_this_and_older_versions_are_read(kind: DocumentKind, tmp_path: Path, version: int) -> None:
    document = {"format": "test-box", "version": version, "count": 3, "unknown": "kept"}
    (tmp_path / "box.json").write_text(json.dumps(document))
    assert kind.read(tmp_path) == document


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is not a box: it has no box.json. Make one with: make box"),
        ("{", "box.json is not readable JSON .*Copy the box again"),
        ("[" * 100_000, "box.json is not readable JSON"),
        ("[]", "does not say format 'test-box'"),
        ('{"format": "other"}', "does not say format 'test-box'"),
        ('{"format": "test-box", "version": 3}', "format version 3, newer than the 2 this edge-tprune reads"),
        ('{"format": "test-box", "version": 2, "count": "x"}', "box.json is not valid: box.count must be integer"),
    ],
)
def test_what_is_wrong_is_one_line(kind: DocumentKind, tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "box.json").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        kind.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_document_that_people_name_themselves(tmp_path: Path) -> None:
    alone = DocumentKind("note", "test-note", 1, "Make one", "Make it again")
    with pytest.raises(UserError, match=r"note .*absent\.json cannot be read: No such file"):
        alone.read(tmp_path / "absent.json")
    (tmp_path / "note.json").write_text('{"format": "test-note", "version": 1}')
    assert alone.read(tmp_path / "note.json")["version"] == 1
