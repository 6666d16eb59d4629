"""What a board's answers must look like. A board is not trusted: of an answer that is anything else, nothing is used."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from edge_tprune.agent.doctor.finding import Diagnosis
from edge_tprune.documents import Integer, InvalidDocument, Sha256, Whole, decode
from edge_tprune.errors import UserError

_FINDINGS, _LONGEST = 200, 5000  #: of a doctor: how many, and characters of each
LINE_BYTES = 64_000_000  #: of the longest line that is read

T = TypeVar("T")


Text = Annotated[str, Meta(max_length=200)]
#: Of a program. It becomes a part of commands.
ProgramPath = Annotated[str, Meta(pattern=r"^/[^\x00-\x1f\x7f]{1,1000}\Z")]


class Done(msgspec.Struct, frozen=True):
    """An answer of which only counts that it came."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What `remote.check` says of a board."""

    system: Text  #: "linux"
    machine: Annotated[str, Meta(pattern=r"^\w{1,50}\Z")]  #: "aarch64"
    glibc: Annotated[str, Meta(pattern=r"^\d{1,2}(\.\d{1,3}){0,3}\Z")] | None  #: "2.35"
    python: tuple[Whole, Whole, Whole]
    executable: ProgramPath  #: of Python
    venv: bool  #: Python has its module venv
    root: bool  #: logged in as root
    home: Annotated[str, Meta(max_length=4096)]  #: where the agent is installed
    writable: bool
    packages: dict[Text, Annotated[str, Meta(max_length=100)]]  #: Python packages of the system: name -> version
    tensorrt: bool
    cuda: Text | None
    stamp: Any  #: of the agent that is installed


class Wanted(msgspec.Struct, frozen=True):
    """What `remote.wanted` asks for."""

    offsets: dict[Sha256, Whole]  #: SHA-256 of a file -> the byte from which it is to be sent


class Ran(msgspec.Struct, frozen=True):
    """What became of a program that `remote.run` ran."""

    code: Integer  #: negative: of the signal that ended it
    stdout: str


class Listing(msgspec.Struct, frozen=True):
    """What `remote.listing` found."""

    files: dict[str, Whole]  #: path -> bytes


def read_answer(data: bytes, kind: type[T], who: str) -> T:
    """A board's answer.

    Raises:
        UserError: it is none of this kind.
    """
    try:
        return decode(data, kind)
    except InvalidDocument as error:
        raise not_understood(who, str(error)) from error


def read_doctor(text: str, who: str) -> Diagnosis:
    """What the doctor on a board says.

    Raises:
        UserError: it is no such document.
    """
    # Modules that a Python there always loads may print something before and after.
    document = re.search(r"^\{.*^\}", text, re.DOTALL | re.MULTILINE)
    found = read_answer((document[0] if document else text).encode(errors="replace"), Diagnosis, who)
    if len(found.findings) > _FINDINGS or any(len(each.text) + len(each.fix or "") > _LONGEST for each in found.findings):
        raise not_understood(who, "its doctor says more than any doctor of ours")
    if not found.findings:
        raise not_understood(who, "its doctor has no findings")
    return found


def not_understood(who: str, why: str) -> UserError:
    """The error for an answer that is none."""
    return UserError(
        f"{who} gave an answer that is not understood: {why}. Run the command again; if that does not help, remove "
        "~/.edge-tprune/venv there, so that the agent is installed again"
    )
