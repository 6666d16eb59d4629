"""The picture of a reduction says what `trace` says, and shows pixels as the network sees them."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edge_tprune.build.explain import Explanation, Fates, explain, fates, open_image, page, painted, panel, picture, write
from edge_tprune.errors import UserError
from edge_tprune.models import reference
from edge_tprune.models.loading import LoadedModel, load_model
from edge_tprune.reduction import registry

GRID = (6, 6)
METHODS = sorted(set(registry.methods()) - {"none"})


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def explained(loaded: LoadedModel, image: Image.Image) -> Explanation:
    methods = ["evit", "tome", "zero_tprune"]
    return explain(loaded, image, methods, [1.0, 0.8, 0.6], name="a <b>.png", options={"fuse": "true", "votes": "2"})


@pytest.mark.parametrize("method", METHODS)
def test_every_patch_is_kept_merged_or_dropped(method: str, loaded: LoadedModel, image: Image.Image) -> None:
    (row,) = explain(loaded, image, [method], [0.7]).rows
    assert row.stages
    before = 36
    for stage in row.stages:
        assert stage.kept + stage.merged + stage.dropped == 36
        left = row.schedule[stage.block - 1]
        assert stage.tokens == left
        assert stage.kept + stage.merged >= stage.kept + len(np.unique(stage.token[stage.shared]))
        assert len(np.unique(stage.token[stage.token >= 0])) <= left - 1
        assert stage.kept <= before, "a patch that merged or left does not come back"
        before = stage.kept
    assert len(row.stages) == len({n for n in row.schedule if n < 37})


def test_without_merging_the_rest_is_dropped(loaded: LoadedModel, image: Image.Image) -> None:
    (row,) = explain(loaded, image, ["slice"], [0.6], blocks=[2, 3]).rows
    for stage in row.stages:
        assert (stage.kept, stage.merged, stage.dropped) == (stage.tokens - 1, 0, 37 - stage.tokens)
        assert (stage.token[: stage.tokens - 1] == np.arange(stage.tokens - 1)).all(), "a slice keeps the first patches"


def test_where_parts_go_the_largest_counts() -> None:
    """Six patches and a class token: two alone, two in one token, one in parts, one gone."""
    members = np.zeros((5, 7))
    members[0, 0] = 1
    members[1, 1] = members[2, 2] = members[3, 3] = members[3, 4] = 1
    members[2, 5], members[3, 5] = 0.3, 0.7
    members[4, 6] = 1e-9
    after = fates(members, 1, 4)
    assert after.token.tolist() == [0, 1, 2, 2, 2, -1]
    assert (after.kept, after.merged, after.dropped) == (2, 3, 1)
    assert after.to_json() == {"block": 4, "tokens": 5, "kept": 2, "merged": 3, "dropped": 1}


def test_pixels_of_kept_merged_and_dropped_patches() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (16, 24, 3)).astype(np.uint8)
    after = Fates(1, 5, np.array([0, 1, 1, -1, 2, 1]))  # two rows of three patches, 8 pixels each
    small = painted(pixels, (2, 3), after)

    def patch(array: np.ndarray, number: int) -> np.ndarray:
        top, left = 8 * (number // 3), 8 * (number % 3)
        return array[top : top + 8, left : left + 8]

    for alone in (0, 4):
        assert (patch(small, alone) == patch(pixels, alone)).all()
    mean = np.concatenate([patch(pixels, n).reshape(-1, 3) for n in (1, 2, 5)]).mean(0).round()
    for merged in (1, 2, 5):
        assert (patch(small, merged) == mean).all()
    veiled = patch(small, 3).astype(int)
    assert (veiled != patch(pixels, 3)).all()
    assert veiled.min() > 195, "a light veil, whatever lies under it"
    assert veiled.max() - veiled.min() < 40


def test_borders_lie_inside_merged_tokens_and_along_their_edges_only() -> None:
    pixels = np.full((16, 24, 3), 100, np.uint8)
    after = Fates(1, 5, np.array([0, 1, 1, -1, 2, 1]))
    scale = 420 // 16 + 1
    plain = painted(pixels, (2, 3), after).repeat(scale, 0).repeat(scale, 1)
    drawn = panel(pixels, (2, 3), after)
    assert drawn.shape == plain.shape == (16 * scale, 24 * scale, 3)
    changed = (drawn != plain).any(-1)
    side = 8 * scale
    cells = changed.reshape(2, side, 3, side).swapaxes(1, 2)
    assert not cells[0, 0].any()
    assert not cells[1, 1].any()
    assert not cells[1, 0].any()
    left, right, below = cells[0, 1], cells[0, 2], cells[1, 2]
    assert left[:, 0].all(), "an edge to another token"
    assert left[0].all()
    assert left[-1].all()
    assert not right[side // 2, 0], "the token goes on to the left: no border between"
    assert not right[-1, side // 2]
    assert right[-1, 0], "the inner corner is closed"
    assert right[side // 2, -1]
    assert not below[0, side // 2]
    assert below[-1].all()
    assert not left[side // 2, side // 2], "the inside shows the colour"


def test_tokens_that_touch_differ_in_their_borders() -> None:
    token = np.arange(36) // 2  # pairs side by side
    drawn = panel(np.full((48, 48, 3), 90, np.uint8), GRID, Fates(1, 19, token))
    scale = len(drawn) // 48
    corner = drawn[:: 8 * scale, :: 8 * scale].astype(int)  # the first pixel of every patch lies on its border or in its inside
    for row in range(6):
        for column in (0, 2):
            assert (corner[row, column] != corner[row, column + 2]).any()
        if row:
            assert (corner[row, 0] != corner[row - 1, 0]).any()


def test_the_image_is_shown_as_the_network_sees_it(loaded: LoadedModel, image: Image.Image, explained: Explanation) -> None:
    seen = loaded.transform()(image).permute(1, 2, 0).numpy()
    assert np.abs(explained.pixels / 255 - (0.5 * seen + 0.5)).max() < 0.5 / 255 + 1e-6
    assert explained.grid == GRID


def test_a_row_per_method_and_budget(loaded: LoadedModel, image: Image.Image, explained: Explanation) -> None:
    kinds = [(row.method, row.budget) for row in explained.rows]
    rest = [(m, b) for m in ("evit", "tome", "zero_tprune") for b in (0.8, 0.6)]
    assert sorted(kinds) == sorted([("none", 1.0), *rest]), "the unpruned network is the same for every method"
    by_name = {row.title: row for row in explained.rows}
    assert by_name["none, budget 1"].stages == ()
    assert by_name["none, budget 1"].prediction == explained.unpruned
    assert by_name["evit, budget 0.8"].options == {"fuse": True}, "an option goes to the methods that have it"
    assert by_name["zero_tprune, budget 0.6"].options == {"votes": 2}
    with torch.no_grad():
        odds = loaded.model(loaded.transform()(image)[None])[0].softmax(-1)
    assert explained.unpruned.index == int(odds.argmax())
    assert explained.unpruned.probability == pytest.approx(float(odds.max()))


def test_of_many_stages_four_are_shown() -> None:
    loaded = load_model("reference")
    (row,) = explain(loaded, open_image("reference:3"), ["tome"], [0.6]).rows
    assert len(row.stages) > 4
    shown = [stage.block for stage in row.shown]
    assert len(shown) == 4
    assert shown[-1] == row.stages[-1].block
    assert shown == sorted(set(shown))


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


def test_images(tmp_path: Path) -> None:
    assert np.array_equal(open_image("reference:17"), reference.compose("test", 17)[0])
    assert np.array_equal(open_image("reference"), reference.compose("test", 0)[0])
    Image.new("RGBA", (9, 7), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert open_image(str(tmp_path / "a.png")).mode == "RGB"
    (tmp_path / "b.jpg").write_bytes(b"no image")
    for source, says in (
        (tmp_path / "absent.jpg", "does not exist"),
        (tmp_path, "does not exist"),
        (tmp_path / "b.jpg", "cannot be read"),
        ("reference:2000", "no canvas '2000'"),
        ("reference:-1", "no canvas '-1'"),
        ("reference:x", "reference:0 to reference:1999"),
    ):
        with pytest.raises(UserError, match=says):
            open_image(str(source))


def test_mistakes(loaded: LoadedModel, image: Image.Image, explained: Explanation, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no method 'evt'"):
        explain(loaded, image, ["evt"], [0.8])
    with pytest.raises(UserError, match="has no option 'fusee'"):
        explain(loaded, image, ["evit", "tome"], [0.8], options={"fusee": "1"})
    with pytest.raises(UserError, match=r"evit: budget 0\.01 cannot be reached"):
        explain(loaded, image, ["evit"], [0.01])
    with pytest.raises(UserError, match=r"must end in \.png or \.html"):
        write(explained, tmp_path / "e.svg")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write(explained, tmp_path / "file" / "e.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
