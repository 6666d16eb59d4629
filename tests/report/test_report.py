from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edge_tprune.analysis.loading import load_rows
from edge_tprune.errors import UserError
from edge_tprune.report import report
from edge_tprune.report.figures import PICTURES
from edge_tprune.report.markdown import markdown_table
from edge_tprune.report.report import Request, write_report

from . import browser

HOSTILE = "<script>alert(1)</script>"
LATENCIES = {"1.0": 10.0, "0.9": 9.2, "0.8": 8.3, "0.65": 7.0, "0.5": 5.6}


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
    return write_report(profile_dir, tmp_path_factory.mktemp("report") / "report.html")


def test_the_answer_comes_first(page):
    text = page.read_text()
    answer = text.index("Budget 0.65 is the fastest with a top-1 drop of at most 1 point")
    order = [
        'class="trust"',
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
        "197→<wbr>112→<wbr>64→<wbr>37", "1.42 ±", "Runner-up: budget 0.8", "does not hold for the whole 95 % interval",
        "digits in clutter, test split, 1000 images",
        "Energy per image was not measured",
        "Example CPU @ 2.00GHz", "onnxruntime 1.23.0", "one engine at a time", "prefers-color-scheme: dark", "@media print",
        'name="viewport"', "edge-tprune build deit_tiny_patch16_224 --weights w.safetensors --method zero_tprune "
        "--budgets 1.0,0.9,0.8,0.65,0.5 --out bundles/deit_tiny-zero_tprune", "edge-tprune profile bundles/",
        "edge-tprune eval bundles/deit_tiny-zero_tprune --data &#39;digits in clutter, test split&#39;",
    ):  # fmt: skip
        assert part in text, part
    tags = _Tags(text).tags
    assert tags.count("svg") == tags.count("figure") == 5


def test_the_page_needs_nothing_else(page):
    parsed = _Tags(page.read_text())
    assert not {"img", "iframe", "object"} & set(parsed.tags)
    for name, value in parsed.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value.startswith(("#", "data:"))
    assert page.stat().st_size < 1_500_000
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_pictures_for_paper(profile_dir, tmp_path):
    pictures = [
        (name, tmp_path / f"{name}.{kind}")
        for name, kind in zip(PICTURES, ("svg", "svg", "png", "", "png", "svg", "png", "svg"))
        if kind
    ]
    write_report(profile_dir, tmp_path / "r.html", pictures=pictures)
    starts = {".svg": b"<?xml", ".png": b"\x89PNG"}
    assert all(file.read_bytes().startswith(starts[file.suffix]) for _, file in pictures)
    assert len(pictures) == 7


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (("energi", "a.svg"), "no picture 'energi' .*energy"),
        (("tokens", "a.gif"), "must end in"),
        (("energy", "a.svg"), "nothing to draw"),
    ],
)
def test_pictures_that_cannot_be_drawn_leave_nothing_behind(profile_dir, tmp_path, picture, message):
    with pytest.raises(UserError, match=message):
        write_report(profile_dir, tmp_path / "r.html", pictures=[(picture[0], tmp_path / picture[1])])
    assert list(tmp_path.iterdir()) == []


def test_the_same_profile_gives_the_same_page(profile_dir, page, tmp_path):
    assert write_report(load_rows(profile_dir), tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_no_recommendation_is_said_as_such(profile_dir, tmp_path):
    text = write_report(profile_dir, tmp_path / "r.html", Request(constraints={"max_p95_ms": 1})).read_text()
    assert "No recommendation: no budget fits" in text
    assert 'class="answer no"' in text
    assert "The marked row" not in text


def test_own_commands(profile_dir, tmp_path):
    text = write_report(profile_dir, tmp_path / "r.html", Request(commands=["make run MODEL=x"])).read_text()
    assert "<code>make run MODEL=x</code>" in text


def test_groups_are_answered_apart(profiles, tmp_path):
    profiles.write(tmp_path / "p" / "a")
    other = profiles.info()
    other["environment"]["hostname"] = "bench-2"
    profiles.write(tmp_path / "p" / "b", other)
    text = write_report(tmp_path / "p", tmp_path / "r.html").read_text()
    parsed = _Tags(text)
    assert parsed.tags.count("table") == 2
    assert parsed.tags.count("svg") == 10
    assert "not ranked against each other: they differ in host (bench-1, bench-2)" in text or (
        "not ranked against each other: they differ in host (bench-2, bench-1)" in text
    )
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_of_many_groups_only_some_are_drawn(profiles, tmp_path, monkeypatch):
    monkeypatch.setattr("edge_tprune.report.report._DRAWN_GROUPS", 1)
    for index in range(3):
        info = profiles.info(rounds=1)
        info["environment"]["hostname"] = f"bench-{index}"
        profiles.write(tmp_path / "p" / str(index), info, inferences=10)
    text = write_report(tmp_path / "p", tmp_path / "r.html").read_text()
    assert _Tags(text).tags.count("table") == 3
    assert _Tags(text).tags.count("svg") == 5
    assert text.count("Only the first 1 groups are drawn") == 2


def test_a_run_without_accuracy_or_with_an_unmeasured_budget(profiles, tmp_path):
    info = profiles.info()
    for budget in info["budgets"]:
        budget["accuracy"] = None
    lines = [line for line in profiles.lines(info) if line.get("budget") != "0.8" or line["kind"] != "round"]
    text = write_report(profiles.write(tmp_path / "run", info, lines), tmp_path / "r.html").read_text()
    assert "Run: edge-tprune eval" in text
    assert "not measured: top-1" in text


@pytest.fixture(scope="module")
def hostile(profiles, tmp_path_factory):
    info = profiles.info()
    info["bundle"]["model"]["name"] = HOSTILE
    info["bundle"]["method"]["name"] = '"><img src=x onerror=alert(1)>'
    info["budgets"][2]["name"] = "</svg></style><b onclick=x>$^{"
    info["environment"]["hostname"] = HOSTILE
    info["environment"]["cpu_model"] = "\x1b[31m" + HOSTILE
    info["budgets"][1]["accuracy"]["data"]["name"] = HOSTILE
    info["environment"]["versions"][HOSTILE] = HOSTILE
    lines = profiles.lines(info, {budget["name"]: 10.0 - index for index, budget in enumerate(info["budgets"])})
    lines.insert(-1, {"kind": "note", "t_ns": 98, "text": HOSTILE})
    sensors = {"<img src=x onerror=alert(1)>_power_mw": 1.0, "<!--<script>_power_mw": 2.0}
    lines.insert(-1, {"kind": "sensors", "t_ns": 50, "source": HOSTILE, "read_ns": 1, "values": sensors})
    root = tmp_path_factory.mktemp("hostile")
    path = profiles.write(root / HOSTILE.replace("/", "-"), info, lines)
    return write_report(path, root / "r.html")


def test_hostile_names_stay_text(hostile, page):
    parsed, harmless = _Tags(hostile.read_text()), _Tags(page.read_text())
    assert not {"img", "b"} & set(parsed.tags)
    assert parsed.tags.count("script") == harmless.tags.count("script") == 3
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    scripts = re.findall(r"<script(?: [^>]*)?>(.*?)</script>", hostile.read_text(), re.DOTALL)
    assert scripts[1:] == re.findall(r"<script(?: [^>]*)?>(.*?)</script>", page.read_text(), re.DOTALL)[1:]
    assert "<" not in scripts[0]


def test_the_library_is_the_published_one_and_comes_with_its_licence(page):
    echarts = Path(report.__file__).with_name("echarts")
    digest = hashlib.sha256((echarts / "echarts.common.min.js").read_bytes()).hexdigest()
    assert digest == "61f13280aba3161f77fc801bf5f9c786f55f10432153a0683fc5cc0700b013d5"
    assert {"LICENSE", "LICENSE-d3", "NOTICE"} <= {file.name for file in echarts.iterdir()}
    assert 'version="6.1.0"' in page.read_text()
    assert "Apache ECharts 6.1.0" in page.read_text()


def test_only_the_page_s_own_scripts_may_run(page):
    text = page.read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.split("script-src ")[1] == " ".join(f"'sha256-{digest}'" for digest in hashes)


def test_a_place_that_cannot_be_written(profile_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(profile_dir, tmp_path / "file" / "r.html", pictures=[("tokens", tmp_path / "file" / "t.svg")])


def test_wrong_constraints_leave_nothing_behind(profile_dir, tmp_path):
    with pytest.raises(UserError, match="no constraint"):
        write_report(profile_dir, tmp_path / "r.html", Request(constraints={"max_fun": 1}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", ["valid", "suspect", "invalid"])
def test_what_the_run_says_of_itself_stands_in_plain_sight(profiles, tmp_path, status):
    info = profiles.info()
    summary = profiles.summary(info)
    summary["verdict"] = {
        "status": status,
        "reasons": [{"code": "heat", "text": "the GPU throttled"}] if status != "valid" else [],
    }
    text = write_report(profiles.write(tmp_path / "run", info, summary=summary), tmp_path / "r.html").read_text()
    verdict = text[text.index('class="trust"') : text.index("<h2>Budgets compared")]
    assert f'<span class="badge {status}">data {status}</span>' in verdict
    assert ("the GPU throttled" in verdict) == (status != "valid")
    assert ("No recommendation" in text) == (status == "invalid")


def test_power_and_energy_are_told_with_their_sensor(profiles, tmp_path):
    info = profiles.info()
    text = write_report(profiles.write(tmp_path / "run", info, summary=profiles.summary(info)), tmp_path / "r.html").read_text()
    for part in (
        "<h3>Top-1 against energy per image</h3>",
        "<dt>Power sensor</dt>",
        "<dt>Idle power</dt>",
        "<dt>energy per image</dt>",
    ):
        assert part in text, part
    assert "was not measured" not in text


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
        "from edge_tprune.report.report import write_report; from edge_tprune.errors import UserError\n"
        f"try: write_report({str(profile_dir)!r}, Path({str(tmp_path / 'r.html')!r}))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edge-tprune[analysis]" in done.stdout
    assert list(tmp_path.iterdir()) == []


needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium here to open the page in")


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    with browser.Browser(browser.find(), tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def _draw_all(chrome):
    """Scrolls past every figure, as a reader does, until all are drawn."""
    chrome.until(
        "(rest => (rest.forEach(place => place.closest('figure').scrollIntoView()), rest.length === 0))"
        "([...document.querySelectorAll('figure:not(.drawn) .live')])"
    )


def _chart(name):
    return f"echarts.getInstanceByDom(document.getElementById('{name}'))"


def _pixel(chrome, name, x, y):
    """Where the point (x, y) of a chart lies in the window, the chart in sight."""
    return chrome.evaluate(
        f"(() => {{ const place = document.getElementById('{name}'); place.scrollIntoView({{block: 'center'}});"
        f" const box = place.getBoundingClientRect(); const at = {_chart(name)}.convertToPixel('grid', [{x}, {y}]);"
        " return [box.x + at[0], box.y + at[1]] })()"
    )


def _hint(chrome, name, start):
    """The text beside the mouse, once it begins with `start`."""
    text = f"[...document.querySelectorAll('#{name} .hint')].map(e => e.textContent).join('')"
    return chrome.until(f"{text}.startsWith({start!r}) && {text}")


def _extent(chrome, name):
    return chrome.evaluate(f"{_chart(name)}.getModel().getComponent('xAxis', 0).axis.scale.getExtent()")


@needs_browser
@pytest.mark.parametrize("width", [1200, 320])
def test_every_plot_is_drawn_in_a_real_browser(chrome, page, width):
    colours = {}
    for dark in (False, True):
        chrome.open(page, width, dark)
        _draw_all(chrome)
        drawn = chrome.evaluate(
            "[...document.querySelectorAll('.live svg')].map(s => [s.getBoundingClientRect().width,"
            " s.querySelectorAll('path').length, s.querySelectorAll('text').length])"
        )
        assert len(drawn) == 5
        assert all(across > 230 and paths > 10 and texts > 5 for across, paths, texts in drawn), drawn
        assert chrome.evaluate("[...document.querySelectorAll('.static')].every(s => s.offsetHeight === 0)")
        assert chrome.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
        assert chrome.evaluate("document.querySelector('.scroll table').getBoundingClientRect().height") > 100
        paper = chrome.evaluate("getComputedStyle(document.querySelector('figure')).backgroundColor")
        inks = chrome.evaluate("[...document.querySelectorAll('.live text')].map(e => getComputedStyle(e).fill)")
        assert all(_contrast(paper, ink) > 4.5 for ink in inks)
        colours[dark] = (paper, inks[0])
        assert chrome.complaints() == []
        assert chrome.requests() in ([page.resolve().as_uri()], [page.resolve().as_uri(), "data:,"])
    assert colours[False] != colours[True]


@pytest.fixture(scope="module")
def two_methods(profiles, tmp_path_factory):
    """The widest page: two methods with power and energy, of which one is in doubt."""
    root = tmp_path_factory.mktemp("two")
    for method, scale in (("zero_tprune", 1.0), ("evit", 0.97)):
        info = profiles.info(method)
        latencies = {name: ms if name == "1.0" else ms * scale for name, ms in LATENCIES.items()}
        summary = profiles.summary(info, scale)
        power = summary["budgets"]["0.65"]["power"]["mean_w"]
        power["high"] = power["value"] * 1.3  # an interval that ± would mislead about
        summary["budgets"]["0.5"]["verdict"] = {"status": "suspect", "reasons": [{"code": "x", "text": "throttled"}]}
        profiles.write(root / "p" / method, info, profiles.lines(info, latencies), summary)
    return write_report(root / "p", root / "r.html")


def test_unpruned_rows_of_two_methods_are_one_row_and_one_point(two_methods):
    text = two_methods.read_text()
    assert text.count('<td class="name method">unpruned</td>') == 1
    assert "The unpruned model was measured in 2 runs" in text
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', text)[1])
    assert [point["name"] for point in charts["g0-p50-live"]["points"]].count("unpruned") == 1
    assert text.count("In the plots of accuracy, whiskers are") == 1, "not below every plot"


@needs_browser
@pytest.mark.parametrize("scripts", [True, False])
def test_nothing_is_clipped_on_a_laptop(chrome, two_methods, scripts):
    chrome.open(two_methods, 1280, scripts=scripts)
    sizes = chrome.evaluate("[...document.querySelectorAll('.scroll, pre')].map(s => [s.scrollWidth, s.clientWidth])")
    assert sizes
    assert all(needed <= given for needed, given in sizes), sizes
    assert chrome.evaluate("document.documentElement.scrollWidth") <= 1280
    for needed, given in chrome.evaluate(
        "[...document.querySelectorAll('td.tokens')].map(s => [s.scrollWidth, s.clientWidth])"
    ):
        assert needed <= given


@needs_browser
def test_hovering_tells_the_values(chrome, page, profile_dir):
    row = load_rows(profile_dir)[3]
    chrome.open(page)
    _draw_all(chrome)
    chrome.mouse("Moved", *_pixel(chrome, "g0-p50-live", row.value("p50_ms"), row.value("top1_percent")))
    hint = _hint(chrome, "g0-p50-live", "0.65")
    for part in (f"{row.value('p50_ms'):.2f} ms", "95.6%", "197→112→64→37", "1.42×"):
        assert part in hint
    chrome.mouse("Moved", *_pixel(chrome, "g0-latency-live", row.value("p50_ms"), 50))
    hint = _hint(chrome, "g0-latency-live", "50 % of inferences take at most")
    assert f"{row.value('p50_ms'):.4g} ms" in hint
    chrome.mouse("Moved", *_pixel(chrome, "g0-tokens-live", 8, 100))
    assert "0.65" in _hint(chrome, "g0-tokens-live", "after block 8")
    assert chrome.complaints() == []


@needs_browser
def test_the_timeline_tells_power_and_whose_turn_it_was(chrome, profiles, tmp_path):
    info = profiles.info()
    lines = profiles.lines(info)
    for index, line in enumerate(line for line in lines if line["kind"] == "round"):
        line["t_ns"] = 2_000_000_000 * index
    lines[-1:-1] = [
        {
            "kind": "sensors",
            "t_ns": 50_000_000 * index,
            "source": "rails",
            "read_ns": 1,
            "values": {"total_power_mw": 7000.0 + index},
        }
        for index in range(1200)
    ]
    chrome.open(write_report(profiles.write(tmp_path / "run", info, lines), tmp_path / "r.html"))
    _draw_all(chrome)
    chrome.mouse("Moved", *_pixel(chrome, "g0-time0-live", 6.14, 9.0))
    hint = _hint(chrome, "g0-time0-live", "6.")
    for part in ("round1", "budget0.65", "p50 latency", "total power7.12"):
        assert part in hint, hint
    assert chrome.complaints() == []


@needs_browser
def test_zooming_and_coming_back(chrome, page):
    chrome.open(page)
    _draw_all(chrome)
    for name in ("g0-p50-live", "g0-latency-live", "g0-time0-live"):
        whole = _extent(chrome, name)
        chrome.evaluate(f"document.getElementById('{name}').closest('figure').querySelector('[data-zoom=in]').click()")
        closer = _extent(chrome, name)
        assert whole[0] <= closer[0] < closer[1] <= whole[1]
        assert closer[1] - closer[0] < 0.7 * (whole[1] - whole[0])
        chrome.evaluate(f"document.getElementById('{name}').closest('figure').querySelector('[data-zoom=out]').click()")
        assert _extent(chrome, name) == pytest.approx(whole)
        chrome.evaluate(f"document.getElementById('{name}').closest('figure').querySelector('[data-zoom=in]').click()")
        chrome.evaluate(f"document.getElementById('{name}').closest('figure').querySelector('[data-zoom=all]').click()")
        assert _extent(chrome, name) == whole


@needs_browser
def test_a_drawn_rectangle_is_zoomed_into(chrome, page, profile_dir):
    rows = load_rows(profile_dir)
    chrome.open(page)
    _draw_all(chrome)
    name, (low, high) = "g0-p50-live", (rows[2].value("p50_ms") - 0.5, rows[2].value("p50_ms") + 0.5)
    whole = _extent(chrome, name)
    begin, end = _pixel(chrome, name, low, 97), _pixel(chrome, name, high, 94)
    chrome.mouse("Moved", *begin)
    chrome.mouse("Pressed", *begin, button="left", clickCount=1)
    chrome.mouse("Moved", *end, button="left", buttons=1)
    chrome.mouse("Released", *end, button="left", clickCount=1)
    chrome.until(f"{_chart(name)}.getModel().getComponent('xAxis', 0).axis.scale.getExtent()[0] > {whole[0]}")
    assert _extent(chrome, name) == pytest.approx([low, high], abs=0.1)
    for count in (1, 2):
        chrome.mouse("Pressed", *begin, button="left", clickCount=count)
        chrome.mouse("Released", *begin, button="left", clickCount=count)
    chrome.until(f"{_chart(name)}.getModel().getComponent('xAxis', 0).axis.scale.getExtent()[0] === {whole[0]}")
    assert chrome.complaints() == []


@needs_browser
def test_paper_and_browsers_without_scripts_get_the_drawings(chrome, page):
    shown = "[...document.querySelectorAll('.static svg')].map(s => s.getBoundingClientRect().width)"
    chrome.open(page)
    _draw_all(chrome)
    chrome.look(media="print")
    assert all(width > 200 for width in chrome.evaluate(shown))
    assert chrome.evaluate("[...document.querySelectorAll('.live, .zoom')].every(e => e.offsetHeight === 0)")
    chrome.open(page, scripts=False)
    assert chrome.evaluate("document.querySelectorAll('.drawn').length") == 0
    assert all(width > 200 for width in chrome.evaluate(shown))
    assert chrome.evaluate("[...document.querySelectorAll('.live, .zoom')].every(e => e.offsetHeight === 0)")


@needs_browser
def test_the_dark_comes_while_the_page_is_open(chrome, page):
    chrome.open(page)
    _draw_all(chrome)
    ink = "getComputedStyle(document.querySelector('.live text')).fill"
    light = chrome.evaluate(ink)
    chrome.look(dark=True)
    chrome.until(f"{ink} !== {light!r}")


@needs_browser
def test_hostile_names_run_nothing_in_a_real_browser(chrome, hostile):
    chrome.open(hostile)
    _draw_all(chrome)
    assert chrome.complaints() == []
    assert chrome.evaluate("document.querySelectorAll('img, b').length") == 0
    data = "JSON.parse(document.getElementById('charts').textContent)['g0-p50-live'].points[1]"  # the 0.9 was judged on other images
    chrome.mouse("Moved", *_pixel(chrome, "g0-p50-live", f"{data}.x", f"{data}.y"))
    _hint(chrome, "g0-p50-live", "</svg></style><b onclick=x>$^{")
    assert chrome.evaluate("document.querySelectorAll('img, b').length") == 0
    assert chrome.complaints() == []


def _contrast(first, second):
    """The WCAG contrast of two CSS rgb() colours."""

    def luminance(colour):
        channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
