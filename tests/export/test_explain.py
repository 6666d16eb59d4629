"""What is said of a reduction is what `trace` says, of pixels as the network sees them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from edge_tprune.bundle.bundle import Bundle
from edge_tprune.errors import UserError
from edge_tprune.export.builder import build
from edge_tprune.export.explain import Explanation, explain, explain_budgets, explain_bundle, fates, load_model_of, open_image
from edge_tprune.models import reference
from edge_tprune.models.loading import LoadedModel, ModelOptions, load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from edge_tprune.report.panels import enlarged, panel
from edge_tprune.report.pictures import page
from tests.models.files import saved
from tests.models.weights import NAME, state_of
from tests.small import decide

GRID = (6, 6)
METHODS = sorted(set(registry.methods()) - {"none"})


@pytest.mark.parametrize("method", METHODS)
def test_every_patch_is_kept_merged_or_dropped(method: str, loaded: LoadedModel, image: Image.Image) -> None:
    (row,) = explain(loaded, image, [method], [0.7], exact_savings=False).rows
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


@pytest.mark.parametrize("method", METHODS)
def test_what_is_told_and_drawn_is_what_the_trace_says(method: str, loaded: LoadedModel, image: Image.Image) -> None:
    explained = explain(loaded, image, [method], [0.6])
    (row,) = explained.rows
    pruned = PrunedViT(loaded.model, registry.method(method), row.schedule, row.options)
    with torch.no_grad():
        traced = pruned.trace(loaded.transform()(image)[None])
    seen = enlarged(explained.pixels)
    for stage in row.stages:
        members = traced[stage.block - 1][0, 1:, 1:].numpy()
        parts = members > members.max(0) - 1e-6  # of a token in parts, the largest
        held = parts & (members.sum(0) > 1e-3)
        alone = [int(patch) for patch in np.nonzero(held.any(0))[0] if held[held[:, patch].argmax()].sum() == 1]
        assert (stage.kept, stage.dropped) == (len(alone), int((~held.any(0)).sum()))
        drawn = panel(explained.pixels, GRID, stage)
        side = len(drawn) // GRID[0]
        same = (drawn == seen).reshape(GRID[0], side, GRID[1], side, 3).all((1, 3, 4)).ravel()
        assert np.nonzero(same)[0].tolist() == alone, "as they are: those with a token of their own, and no others"


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
    (row,) = explain(loaded, open_image("reference:3"), ["diffrate"], [0.6]).rows
    assert len(row.stages) > 4
    shown = [stage.block for stage in row.shown]
    assert len(shown) == 4
    assert shown[-1] == row.stages[-1].block
    assert shown == sorted(set(shown))


def test_images(tmp_path: Path) -> None:
    assert np.array_equal(open_image("reference:17"), reference.compose("test", 17)[0])
    assert np.array_equal(open_image("reference"), reference.compose("test", 0)[0])
    (tmp_path / "b.jpg").write_bytes(b"no image")
    Image.new("RGB", (1, 2000)).save(tmp_path / "strip.png")
    for source, says in (
        (tmp_path / "absent.jpg", "does not exist"),
        (tmp_path, "is a directory"),
        (tmp_path / "b.jpg", "cannot be read"),
        (tmp_path / "strip.png", "it has 1 x 2000 pixels: one side is more than 200 times the other"),
        ("reference:2000", "no canvas '2000'"),
        ("reference:-1", "no canvas '-1'"),
        ("reference:x", "reference:0 to reference:1999"),
    ):
        with pytest.raises(UserError, match=says):
            open_image(str(source))


def test_images_are_as_people_see_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.uint8)

    def seen(image: Image.Image, **how: Any) -> np.ndarray:
        image.save(tmp_path / "i.png", **how)
        opened = open_image(str(tmp_path / "i.png"))
        assert opened.mode == "RGB"
        return np.asarray(opened)

    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter clockwise makes it upright
    assert (seen(Image.fromarray(np.rot90(pixels)), exif=turned) == pixels).all()
    assert (seen(Image.fromarray(pixels), exif=b"Exif\0\0damaged") == pixels).all()
    clear = np.dstack([pixels, np.full((7, 9), 255, np.uint8)])
    clear[2, 3, 3] = 0
    shown = seen(Image.fromarray(clear))
    assert (shown[2, 3] == 255).all(), "white, not the colour that lies hidden there"
    assert (np.delete(shown.reshape(-1, 3), 2 * 9 + 3, 0) == np.delete(pixels.reshape(-1, 3), 2 * 9 + 3, 0)).all()
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert seen(palette, transparency=1).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    deep = Image.fromarray(np.array([[30000, 5]], np.uint16))
    assert seen(deep, transparency=5).tolist() == [[[116] * 3, [255] * 3]]
    assert seen(deep).tolist() == [[[116] * 3, [0] * 3]]


def test_mistakes(loaded: LoadedModel, image: Image.Image) -> None:
    with pytest.raises(UserError, match="no method 'evt'"):
        explain(loaded, image, ["evt"], [0.8])
    with pytest.raises(UserError, match="has no option 'fusee'"):
        explain(loaded, image, ["evit", "tome"], [0.8], options={"fusee": "1"})
    with pytest.raises(UserError, match=r"evit: budget 0\.01 cannot be reached"):
        explain(loaded, image, ["evit"], [0.01])


def test_a_network_of_grey_images_is_drawn(image: Image.Image) -> None:
    loaded = load_model(NAME, options=ModelOptions("random", model_kwargs={"in_chans": 1}))
    explained = explain(loaded, image, ["evit"], [0.7], exact_savings=False)
    assert explained.pixels.shape == (160, 160, 3)
    assert "evit, budget 0.7" in page(explained)


def test_the_name_of_a_photo_need_not_be_text(loaded: LoadedModel, image: Image.Image) -> None:
    explained = explain(loaded, image, ["slice"], [0.6], blocks=[2, 3], name=os.fsdecode(b"caf\xe9.jpg"))
    assert explained.image == r"caf\xe9.jpg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and their moving average."""
    content = {"state_dict": state_of(3, num_classes=5), "state_dict_ema": state_of(4, num_classes=5)}
    return saved(tmp_path_factory.mktemp("weights"), content)


@pytest.fixture(scope="module")
def features(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Built with --output features and --no-ema."""
    loaded = load_model(NAME, options=ModelOptions(checkpoint, use_ema=False))
    settings = decide(loaded, "evit", budgets=[0.7], output="features")
    return build(loaded, settings, tmp_path_factory.mktemp("features") / "bundle").bundle


def test_a_bundle_whose_output_has_no_classes_is_drawn_without_them(
    features: Bundle, checkpoint: Path, image: Image.Image
) -> None:
    loaded = load_model_of(features, str(checkpoint))
    assert loaded.weights_sha256 == features.manifest.model.weights_sha256
    explained = explain_budgets(loaded, features, image, "a.png")
    assert "Unpruned: no classes" in page(explained)
    nothing = {"class": None, "name": None, "probability": None}
    document = explained.to_json()
    assert document["unpruned"] == nothing
    assert [row.to_json()["prediction"] for row in explained.rows] == [nothing]


def test_a_baseline_that_has_all_tokens_of_a_smaller_image_is_left_out(
    loaded: LoadedModel, image: Image.Image, tmp_path: Path
) -> None:
    bundle = build(loaded, decide(loaded, "resize", budgets=[0.5]), tmp_path / "bundle").bundle
    assert not explain_budgets(loaded, bundle, image, "a.png").rows
    with pytest.raises(UserError, match="method resize makes the image smaller and chooses no tokens"):
        explain_budgets(loaded, bundle, image, "a.png", ["0.5"])


def test_images_of_a_bundle_need_no_labels(features: Bundle, checkpoint: Path, image: Image.Image, tmp_path: Path) -> None:
    for name in ("cat", "dog"):  # as many classes as no output has
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / f"{name}.png")
    drawn = explain_bundle(features.path, tmp_path, str(checkpoint))
    assert [each.image for each in drawn] == ["cat.png", "dog.png"]
    drawn = explain_bundle(features.path, Path("reference"), str(checkpoint), count=2)
    assert [each.image for each in drawn] == ["canvas 0", "canvas 1"]


def test_other_weights_than_the_bundles_are_refused(features: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are not those that bundle"):
        load_model_of(features, str(saved(tmp_path, state_of(5, num_classes=5))))


def test_images_that_do_not_fit_the_bundles_network_are_refused(features: Bundle, checkpoint: Path) -> None:
    manifest = features.manifest
    preprocessing = msgspec.structs.replace(manifest.preprocessing, input_size=(3, 96, 96))
    damaged = Bundle(features.path, msgspec.structs.replace(manifest, preprocessing=preprocessing))
    with pytest.raises(UserError, match=r"says that images have the size \(3, 96, 96\), and test_vit takes \(3, 160, 160\)"):
        load_model_of(damaged, str(checkpoint))
