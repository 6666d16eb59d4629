"""Pictures hold a panel for every stage that they show, and pages a text for each."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from edge_tprune.build.explain import Explanation
from edge_tprune.build.pictures import page, picture, write
from edge_tprune.errors import UserError


def test_png(explained: Explanation, tmp_path: Path) -> None:
    write(explained, tmp_path / "e.png")
    drawn = Image.open(tmp_path / "e.png")
    assert drawn.width > 800
    assert drawn.height > 1500
    assert (tmp_path / "e.png").read_bytes() == picture(explained), "the same explanation gives the same bytes"
    assert [file.name for file in tmp_path.iterdir()] == ["e.png"]


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
