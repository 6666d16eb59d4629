from __future__ import annotations

import base64
import hashlib
import html
import json
import os
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


class _Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


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


def test_names_that_are_no_text_do_not_keep_a_page_from_being_written(profiles, tmp_path):
    directory = tmp_path / os.fsdecode(b"\xff")
    good = profiles.write(directory / "good", profiles.info())
    damaged = profiles.write(directory / os.fsdecode(b"bad\xff"), profiles.info())
    (damaged / "run.json").write_text("garbage")
    (good / "summary.json").write_text("garbage")
    text = write_report(directory, tmp_path / "r.html").read_text()
    assert "left out" in text or "not JSON" in text


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


def test_unpruned_rows_of_two_methods_are_one_row_and_one_point(two_methods):
    text = two_methods.read_text()
    assert text.count('<td class="name method">unpruned</td>') == 1
    assert "The unpruned model was measured in 2 runs" in text
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', text)[1])
    assert [point["name"] for point in charts["g0-p50-live"]["points"]].count("unpruned") == 1
    assert text.count("In the plots of accuracy, whiskers are") == 1, "not below every plot"


def test_only_an_earlier_report_is_replaced(profile_dir, tmp_path):
    file = tmp_path / "index.html"
    for _ in range(2):
        write_report(profile_dir, file)
    for mine in ("<p>my page</p>", "<p>Today I tried edge-tprune.</p>"):
        file.write_text(mine)
        with pytest.raises(UserError, match=r"index\.html is not a report of edge-tprune's, and would be lost"):
            write_report(profile_dir, file)
        assert file.read_text() == mine
