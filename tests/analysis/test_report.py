from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from edge_tprune.analysis.report import markdown_table, write_report
from edge_tprune.analysis.table import load_rows
from edge_tprune.errors import UserError

from . import browser

HOSTILE = "<script>alert(1)</script>"


class _Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


@pytest.fixture(scope="module")
def page(profile_dir, tmp_path_factory):
    return write_report(profile_dir, tmp_path_factory.mktemp("report") / "report.html", picture=True)


def test_the_answer_comes_first(page):
    text = page.read_text()
    answer = text.index("Budget 0.65 is the fastest with a top-1 drop of at most 1 point")
    order = [
        "Budgets compared",
        "<table",
        "<svg",
        "Before you rely on this",
        "How it was measured",
        "Environment",
        "How to reproduce",
    ]
    places = [answer, *(text.index(part, answer) for part in order)]
    assert places == sorted(places)


def test_the_page_holds_what_a_reader_needs(page):
    text = page.read_text()
    for part in (
        "197→112→64→37", "1.42 ±", "Runner-up: budget 0.8", "not for sure", "digits in clutter, test split, 1000 images",
        "Example CPU @ 2.00GHz", "onnxruntime 1.23.0", "one engine at a time", "prefers-color-scheme: dark", "@media print",
        'name="viewport"', "edge-tprune build deit_tiny_patch16_224 --weights w.safetensors --method zero_tprune "
        "--budgets 1.0,0.9,0.8,0.65,0.5 --out bundles/deit_tiny-zero_tprune", "edge-tprune profile bundles/",
    ):  # fmt: skip
        assert part in text, part
    assert _Tags(text).tags.count("svg") == 3


def test_the_page_needs_nothing_else(page):
    parsed = _Tags(page.read_text())
    assert not {"script", "img", "iframe", "object"} & set(parsed.tags)
    for name, value in parsed.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value.startswith(("#", "data:"))
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_picture_lies_beside_it(page):
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.svg"]


def test_the_same_profile_gives_the_same_page(profile_dir, page, tmp_path):
    assert write_report(load_rows(profile_dir), tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_no_recommendation_is_said_as_such(profile_dir, tmp_path):
    text = write_report(profile_dir, tmp_path / "r.html", constraints={"max_p95_ms": 1}).read_text()
    assert "No recommendation: no budget fits" in text
    assert 'class="answer no"' in text
    assert "The marked row" not in text


def test_own_commands(profile_dir, tmp_path):
    text = write_report(profile_dir, tmp_path / "r.html", commands=["make run MODEL=x"]).read_text()
    assert "<code>make run MODEL=x</code>" in text


def test_groups_are_answered_apart(profiles, tmp_path):
    profiles.write(tmp_path / "p" / "a")
    other = profiles.info()
    other["environment"]["hostname"] = "bench-2"
    profiles.write(tmp_path / "p" / "b", other)
    text = write_report(tmp_path / "p", tmp_path / "r.html").read_text()
    parsed = _Tags(text)
    assert parsed.tags.count("table") == 2
    assert parsed.tags.count("svg") == 6
    assert "not ranked against each other: they differ in host (bench-1, bench-2)" in text or (
        "not ranked against each other: they differ in host (bench-2, bench-1)" in text
    )
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_a_run_without_accuracy_or_with_an_unmeasured_budget(profiles, tmp_path):
    info = profiles.info()
    for budget in info["budgets"]:
        budget["accuracy"] = None
    lines = [line for line in profiles.lines(info) if line.get("budget") != "0.8" or line["kind"] != "round"]
    text = write_report(profiles.write(tmp_path / "run", info, lines), tmp_path / "r.html").read_text()
    assert "Run: edge-tprune eval" in text
    assert "not measured: top-1" in text


def test_hostile_names_stay_text(profiles, tmp_path):
    info = profiles.info()
    info["bundle"]["model"]["name"] = HOSTILE
    info["bundle"]["method"]["name"] = '"><img src=x onerror=alert(1)>'
    info["budgets"][2]["name"] = "</svg></style><b onclick=x>$^{"
    info["environment"]["hostname"] = HOSTILE
    info["environment"]["cpu_model"] = "\x1b[31m" + HOSTILE
    info["budgets"][1]["accuracy"]["data"]["name"] = HOSTILE
    info["environment"]["versions"][HOSTILE] = HOSTILE
    lines = profiles.lines(info)
    lines.insert(-1, {"kind": "note", "t_ns": 98, "text": HOSTILE})
    path = profiles.write(tmp_path / HOSTILE.replace("/", "-"), info, lines)
    parsed = _Tags(write_report(path, tmp_path / "r.html").read_text())
    assert not {"script", "img", "b"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]


def test_a_place_that_cannot_be_written(profile_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(profile_dir, tmp_path / "file" / "r.html", picture=True)


def test_wrong_constraints_leave_nothing_behind(profile_dir, tmp_path):
    with pytest.raises(UserError, match="no constraint"):
        write_report(profile_dir, tmp_path / "r.html", constraints={"max_fun": 1})
    assert list(tmp_path.iterdir()) == []


def test_markdown(profile_dir, profiles, tmp_path):
    lines = markdown_table(load_rows(profile_dir)).splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("| budget | tokens | MACs (G) |")
    assert set(lines[1]) == set("|-:")
    assert "**1.78 ±" in lines[6]
    assert {line.count("|") for line in lines} == {13}
    info = profiles.info()
    info["budgets"][1]["name"] = "a|b*c<d>"
    text = markdown_table(load_rows(profiles.write(tmp_path / "run", info)))
    assert r"a\|b\*c\<d\>" in text


def test_without_jinja_the_error_says_what_to_install(profile_dir, tmp_path):
    code = (
        "import sys; sys.modules['jinja2'] = None; from pathlib import Path\n"
        "from edge_tprune.analysis.report import write_report; from edge_tprune.errors import UserError\n"
        f"try: write_report({str(profile_dir)!r}, Path({str(tmp_path / 'r.html')!r}))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edge-tprune[host]" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(browser.find() is None, reason="no Chromium here to open the page in")
def test_in_a_real_browser(profile_dir, page, profiles, tmp_path):
    colours = {}
    with browser.Browser(browser.find(), tmp_path / "browser") as chrome:
        for width in (1200, 390):
            for dark in (False, True):
                chrome.open(page, width, dark)
                sizes = chrome.evaluate(
                    "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
                )
                assert len(sizes) == 3
                assert all(across > 250 and down > 150 for across, down in sizes), sizes
                assert chrome.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
                assert chrome.evaluate("document.querySelector('.scroll table').getBoundingClientRect().height") > 100
                paper = chrome.evaluate("getComputedStyle(document.body).backgroundColor")
                ink = chrome.evaluate(
                    "getComputedStyle([...document.querySelectorAll('svg g, svg use, svg path')]"
                    ".find(e => (e.getAttribute('style') || '').includes('fill: var(--ink'))).fill"
                )
                colours[dark] = (paper, ink)
                assert _contrast(paper, ink) > 7
                assert chrome.complaints() == []
                assert chrome.requests() in ([page.resolve().as_uri()], [page.resolve().as_uri(), "data:,"])
                shot = chrome.screenshot()
                assert shot.startswith(b"\x89PNG")
    assert colours[False] != colours[True]


def _contrast(first, second):
    """The WCAG contrast of two CSS rgb() colours."""

    def luminance(colour):
        channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
