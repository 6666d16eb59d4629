"""Pictures hold a panel for every stage that they show, and pages a text for each."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_tprune.errors import UserError
from edge_tprune.export.explain import Explanation
from edge_tprune.report.panels import enlarged, panel
from edge_tprune.report.pictures import page, picture, write

GRID = (6, 6)


def test_png(explained: Explanation, tmp_path: Path) -> None:
    write(explained, tmp_path / "e.png")
    drawn = Image.open(tmp_path / "e.png")
    assert drawn.width > 800
    assert drawn.height > 1500
    assert (tmp_path / "e.png").read_bytes() == picture(explained), "the same explanation gives the same bytes"
    assert [file.name for file in tmp_path.iterdir()] == ["e.png"]


def test_panels_stand_in_the_png_pixel_by_pixel(explained: Explanation) -> None:
    drawn = np.asarray(Image.open(io.BytesIO(picture(explained))).convert("RGB"))
    for array in [enlarged(explained.pixels), *(panel(explained.pixels, GRID, s) for row in explained.rows for s in row.shown)]:
        height, width = array.shape[:2]
        tops, lefts = np.nonzero((drawn[: 1 - height, : 1 - width] == array[0, 0]).all(-1))
        assert any((drawn[y : y + height, x : x + width] == array).all() for y, x in zip(tops, lefts))


def test_names_of_any_length_and_script_are_drawn_whole(explained: Explanation) -> None:
    def size(name: str) -> tuple[int, int]:
        return Image.open(io.BytesIO(picture(replace(explained, image=name)))).size

    short, long, foreign = size("a.png"), size("very_long_" * 20 + ".png"), size("猫.png")
    assert long[0] == short[0] == foreign[0]
    assert long[1] > short[1] == foreign[1], "more lines"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_html_holds_every_panel_with_a_text(explained: Explanation, tmp_path: Path) -> None:
    write(explained, tmp_path / "e.HTML")
    text = (tmp_path / "e.HTML").read_text(encoding="utf-8")
    assert text == page(explained)
    images = [attributes for tag, attributes in _Page(text).tags if tag == "img"]
    assert len(images) == 1 + sum(len(row.shown) for row in explained.rows)
    for attributes in images:
        assert attributes["alt"]
        assert attributes["alt"].startswith("a <b>.png"), "names stay text"
        source = attributes["src"] or ""
        assert source.startswith("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()
    assert "a &lt;b&gt;.png" in text
    assert "<b>" not in text
    assert not re.search(r"https?://|<script|<link(?! rel=\"icon\" href=\"data:,\")", text)
    for row in explained.rows:
        assert row.title in text
        for stage in row.stages:
            assert f"<td>{stage.tokens}</td><td>{stage.kept}</td><td>{stage.merged}</td><td>{stage.dropped}</td>" in text


def test_mistakes(explained: Explanation, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.png or \.html"):
        write(explained, tmp_path / "e.svg")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write(explained, tmp_path / "file" / "e.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("ending", ["png", "html"])
def test_only_an_earlier_explanation_is_replaced(explained: Explanation, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"explain.{ending}"
    for _ in range(2):
        write(explained, file)
    Image.new("RGB", (8, 8)).save(file, "png")
    for mine in (file.read_bytes(), b"<p>Today I tried edge-tprune.</p>"):
        file.write_bytes(mine)
        with pytest.raises(UserError, match="is not an explanation of edge-tprune's, and would be lost"):
            write(explained, file)
        assert file.read_bytes() == mine
