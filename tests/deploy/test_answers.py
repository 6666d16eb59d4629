"""What a board answers is checked before any of it is used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from edge_tprune.agent.doctor.finding import Diagnosis
from edge_tprune.deploy import remote
from edge_tprune.deploy.answers import Facts, Listing, Ran, Wanted, read_answer, read_doctor
from edge_tprune.deploy.ssh import _read_answer
from edge_tprune.errors import UserError
from edge_tprune.telemetry.boards import identify

from .test_journey import FACTS

FINDING = {"topic": "board", "level": "ok", "text": "Orin", "fix": None}
DIAGNOSIS = to_builtins(
    Diagnosis(
        format="edge-tprune-doctor",
        version=2,
        tool_version="1",
        root="/",
        board=identify(Path("/nowhere")),
        ready=True,
        findings=(),
    )
)


@pytest.mark.parametrize("text", [b"5", b"[1]", b"null", b'"stderr"', b"\xff\xfe", b"{}", b"[" * 100_000, b'{"offsets": [1]}'])
@pytest.mark.parametrize("kind", [Facts, Wanted, Ran, Listing])
def test_an_answer_that_is_none_is_one_line(kind: type[Any], text: bytes) -> None:
    with pytest.raises(UserError, match=r"^orin gave an answer that is not understood: ") as raised:
        read_answer(text, kind, "orin")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (Wanted, {"offsets": {"f" * 64: -1}}),
        (Wanted, {"offsets": {"../x": 1}}),
        (Ran, {"code": 0, "stdout": 5}),
        (Listing, {"files": {"a/b": 1.5}}),
    ],
)
def test_values_out_of_range_are_refused(kind: type[Any], answer: Any) -> None:
    with pytest.raises(UserError, match="not understood"):
        read_answer(json.dumps(answer).encode(), kind, "orin")


@pytest.mark.parametrize("entry", ["system", "machine", "glibc", "home", "cuda"])
def test_text_without_end_is_refused(entry: str) -> None:
    long = "2" + ".1" * 5000 if entry == "glibc" else "1" * 5000
    with pytest.raises(UserError, match=f"not understood: {entry} is ") as raised:
        read_answer(json.dumps({**FACTS, entry: long}).encode(), Facts, "orin")
    assert len(str(raised.value)) < 500
    read_answer(json.dumps(FACTS).encode(), Facts, "orin")


@pytest.mark.parametrize(
    "findings",
    [[], "abc", [1], [{**FINDING, "level": "fatal"}], [{**FINDING, "text": 6}], [{**FINDING, "fix": float("nan")}], None],
)
def test_a_doctor_that_says_something_else_is_refused(findings: object) -> None:
    with pytest.raises(UserError, match="not understood"):
        read_doctor(json.dumps({**DIAGNOSIS, "findings": findings}), "orin")


def test_the_doctors_document_is_kept_whole() -> None:
    document = {**DIAGNOSIS, "findings": [FINDING]}
    assert json.dumps(to_builtins(read_doctor(json.dumps(document), "orin"))) == json.dumps(document)


def test_what_is_printed_around_the_doctors_document_is_passed_over() -> None:
    document = json.dumps({**DIAGNOSIS, "findings": [FINDING]}, indent=2)
    around = f"hello {{}}\n{document}\n{{bye\n"
    assert to_builtins(read_doctor(around, "orin")) == to_builtins(read_doctor(document, "orin"))


def read(data: bytes) -> remote.Json | None:
    stream = io.BytesIO(data)
    return _read_answer(iter(stream), stream, None, None, "orin")


@pytest.mark.parametrize("line", [b"5\n", b"null\n", b'"stderr"\n', b"[" * 100_000 + b"\n"])
def test_lines_that_are_no_objects_are_refused(line: bytes) -> None:
    with pytest.raises(UserError, match="not understood"):
        read(line)


def test_a_line_that_was_cut_off_is_no_answer() -> None:
    assert read(b'{"a": 1') is None
    assert read(b'{"a": 1}\n') == {"a": 1}
