"""Text from files, boards and other programs, made safe to show. Everything that is printed or drawn goes through here."""

from __future__ import annotations

import os
import shlex
from typing import Any

LONGEST = 2000  #: characters of a message: what other programs and files say has no end
PLUGIN_MODULE = "edge_tprune_plugin_"  #: what names of modules begin with that come from --plugin FILE.py
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: Our own symbols in ASCII, for files, pipes and terminals that know nothing else.
_ASCII = str.maketrans(
    {
        "×": "x",
        "±": "+-",
        "→": ">",
        "Δ": "d",
        "–": "-",
        "−": "-",
        "·": "-",
        "—": "-",
        "…": "...",
        "≥": ">=",
        "≤": "<=",
        REPLACEMENT: "?",
    }
)


_SPELLING = "\u200c\u200d\u00ad"  # zero-width non-joiner and joiner, soft hyphen


def printable(value: Any) -> str:
    """`value` as one line of text: what could steer a terminal or a layout (escape sequences, line ends, marks that turn the
    direction of writing, halves of characters) becomes a replacement character. What joins and parts letters stays: it is spelling."""
    return "".join(letter if letter.isprintable() or letter in _SPELLING else REPLACEMENT for letter in str(value))


def shorten(text: str, most: int = LONGEST) -> str:
    """`text` with at most so many characters: of a longer one the beginning, and the end, which says what to do."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 5]} ... {text[-end:]}"


def is_text(value: object) -> bool:
    """Whether `value` can be written in UTF-8: a path may hold bytes that are none."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(error: BaseException) -> str:
    """What an error of another library says, as one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says, shortened: what follows in those of ONNX Runtime is of no use to its users."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 300)


def to_ascii(text: str) -> str:
    """`text` with our own symbols in ASCII. Letters of other languages in names stay what they are."""
    return text.translate(_ASCII)


def count_of(count: int, noun: str) -> str:
    """'1 image', '2 images'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def describe_seconds(seconds: float) -> str:
    """'40 s', '12 min', '3 h 5 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def command_line(*words: object) -> str:
    """A command of these words as a person can copy it into a shell, on one line and safe to print: `edge-tprune select 'my runs'`.

    A word that a message could not show as it is (bytes that are not text, control characters, two spaces in a row) is written as `$'...'`,
    which bash, zsh and ksh read back as the same bytes.
    """
    return " ".join(_quote(os.fspath(word) if isinstance(word, os.PathLike) else str(word)) for word in words)


def _quote(word: str) -> str:
    if printable(word) == word and "  " not in word:
        return shlex.quote(word)
    return f"$'{''.join(map(_escape, word))}'"


def _escape(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isprintable() and letter != " ":
        return letter
    return "".join(f"\\{byte:03o}" for byte in letter.encode(errors="surrogateescape"))
