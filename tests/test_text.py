from __future__ import annotations

import subprocess
import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.text import REPLACEMENT, command_line, printable, shorten, to_ascii


@given(st.text(st.characters(codec=None), max_size=40))
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown):
        assert after in (before, REPLACEMENT)
        assert unicodedata.category(after) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or after in "\u200c\u200d\u00ad"
    shown.encode()  # half a character would not


def test_names_stay_what_they_are() -> None:
    assert printable("Jetson Orin · 模型 é [/nope]") == "Jetson Orin · 模型 é [/nope]"
    assert printable("کتاب\u200cخانه 👨\u200d👩") == "کتاب\u200cخانه 👨\u200d👩", "the joiners are spelling"
    assert printable("\x1b[31mred\r\n\u202e") == f"{REPLACEMENT}[31mred{REPLACEMENT * 3}"
    assert printable(7) == "7"


def test_our_symbols_have_an_ascii_form() -> None:
    text = "1.42 ±0.02× · 197→112 – Δ … −3 ≥ 2"
    assert to_ascii(text).isascii()
    assert to_ascii("é") == "é"


def test_a_message_without_end_keeps_its_beginning_and_its_end() -> None:
    assert shorten("short") == "short"
    cut = shorten("begin" + "x" * 100_000 + "what to do", 100)
    assert len(cut) == 100
    assert cut.startswith("begin")
    assert cut.endswith("what to do")


def test_a_command_in_a_message_can_be_copied() -> None:
    words = [
        "edge-tprune", "plain/path-1.json", "with space", "two  spaces", " lead", "q'uo\"te", "$HOME `id` $(id)", "new\nline\ttab", "\x1b[31m",
        "a\u202eb", "back\\slash'\n", "*?[x]{a,b}~", "é 模", "", "#x", "latin-\udce9", "a\n0",
    ]  # fmt: skip
    line = command_line(*words, Path("a b"))
    assert printable(" ".join(line.split())) == line  # as a message shows it
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    assert said.split(b"\0")[:-1] == [word.encode(errors="surrogateescape") for word in (*words, "a b")]
