"""How a model was created is taken from its file: image size, classes, channels, pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from edge_tprune.errors import UserError
from edge_tprune.models.loading import ModelOptions, load_model
from tests.models.files import prefixed, saved
from tests.models.weights import NAME, State, is_loaded, state_of

ARGUMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "other image size": ({"img_size": 224}, {"img_size": 224}, "images of 224 x 224 pixels"),
    "average pooling": ({"global_pool": "avg"}, {"global_pool": "avg"}, "global_pool=avg, as its fc_norm shows"),
    "37 classes": ({"num_classes": 37}, {"num_classes": 37}, "37 classes, as its head has"),
    "one output": ({"num_classes": 1}, {"num_classes": 1}, "its top-1 means nothing"),
    "grey": ({"in_chans": 1}, {"in_chans": 1}, "images of 1 channel"),
    "all of them": (
        {"img_size": 96, "global_pool": "avg", "num_classes": 5, "in_chans": 1},
        {"img_size": 96, "global_pool": "avg", "num_classes": 5, "in_chans": 1},
        "5 classes",
    ),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_how_the_model_was_created_is_taken_from_the_file_and_said(tmp_path: Path, kind: str) -> None:
    arguments, inferred, remark = ARGUMENTS[kind]
    own = state_of(**arguments)
    loaded = load_model(NAME, saved(tmp_path, prefixed(own, "model.")))
    assert is_loaded(loaded.model, own)
    assert inferred.items() <= loaded.arguments.items()
    assert remark in " ".join(loaded.remarks)
    channels, size = arguments.get("in_chans", 3), arguments.get("img_size", 160)
    assert list(loaded.preprocessing.input_size) == [channels, size, size]
    image = loaded.transform()(Image.new("RGB", (300, 200)))
    assert loaded.model(image[None]).shape == (1, arguments.get("num_classes", 1000))
    again = load_model(NAME, options=ModelOptions(tmp_path / "w.pth", model_kwargs=loaded.arguments))
    assert again.weights_sha256 == loaded.weights_sha256


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((224, 160), "160 x 160 pixels (10 x 10 patches), are resampled to 14 x 10 patches, as timm does"),
        ((320, 80), "taken for 10 x 10 patches, are resampled to 20 x 5 patches, as timm does"),  # as many patches
    ],
)
def test_the_image_size_asked_for_is_resampled_as_timm_does(
    tmp_path: Path, state: State, size: tuple[int, int], said: str
) -> None:
    path = saved(tmp_path, state)
    loaded = load_model(NAME, options=ModelOptions(path, img_size=size))
    reference = timm.create_model(
        NAME, img_size=size, dynamic_img_size=False, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}
    )
    assert is_loaded(loaded.model, reference.state_dict())
    assert not is_loaded(loaded.model, state)
    assert said in " ".join(loaded.remarks)
    assert list(loaded.preprocessing.input_size) == [3, *size]


def test_a_file_that_states_the_shape_of_its_images_is_taken_as_it_is(tmp_path: Path) -> None:
    own = state_of(img_size=(320, 80))
    save_file(own, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": {"img_size": [320, 80]}}))
    for options in (ModelOptions(tmp_path), ModelOptions(tmp_path, img_size=(320, 80))):
        loaded = load_model(NAME, options=options)
        assert is_loaded(loaded.model, own)
        assert "resampled" not in " ".join(loaded.remarks)


def test_embeddings_for_no_square_of_patches_need_the_image_size(tmp_path: Path) -> None:
    own = state_of(img_size=(96, 160))
    path = saved(tmp_path, own)
    with pytest.raises(
        UserError, match="for 60 patches, which are no square: give the size of its images, --img-size HEIGHT,WIDTH"
    ):
        load_model(NAME, path)
    assert is_loaded(load_model(NAME, options=ModelOptions(path, img_size=(96, 160))).model, own)


def test_embeddings_for_no_patches_are_refused(tmp_path: Path, state: State) -> None:
    empty = {**state, "pos_embed": state["pos_embed"][:, :0]}
    with pytest.raises(UserError, match="position embeddings for no patches"):
        load_model(NAME, saved(tmp_path, empty))


def test_models_that_take_any_size_are_created_for_one(tmp_path: Path, state: State) -> None:
    assert timm.create_model(NAME).dynamic_img_size
    for loaded in (load_model(NAME, saved(tmp_path, state)), load_model(NAME, "random")):
        assert not loaded.model.dynamic_img_size
        assert loaded.arguments["dynamic_img_size"] is False


def test_a_head_that_is_not_wanted(tmp_path: Path, state: State) -> None:
    loaded = load_model(NAME, saved(tmp_path, state), 0)
    assert loaded.model.num_classes == 0
    assert "its head of 1000 classes is left out" in " ".join(loaded.remarks)


def test_a_file_without_a_head(tmp_path: Path, state: State) -> None:
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    path = saved(tmp_path, headless)
    with pytest.raises(UserError, match=r"no classifier head \(head\.weight, head\.bias\)\. Give --classes 0"):
        load_model(NAME, path)
    assert is_loaded(load_model(NAME, path, 0).model, headless)
    path = saved(tmp_path, {**prefixed(headless, "backbone."), "classifier.weight": state["head.weight"]})
    with pytest.raises(UserError, match="no classifier head"):
        load_model(NAME, path)


def test_a_head_without_its_bias_is_no_lack_of_a_head(tmp_path: Path, state: State) -> None:
    del state["head.bias"]
    with pytest.raises(UserError, match=r"do not fit .*missing head\.bias"):
        load_model(NAME, saved(tmp_path, state))


def test_other_patches_are_refused_unless_asked_for(tmp_path: Path) -> None:
    own = state_of(patch_size=32)
    path = saved(tmp_path, own)
    with pytest.raises(
        UserError, match=r"patches of 32x32 pixels, and test_vit has patches of 16x16: .* --model-kwargs patch_size=32"
    ):
        load_model(NAME, path)
    assert is_loaded(load_model(NAME, options=ModelOptions(path, model_kwargs={"patch_size": 32})).model, own)
    resampled = load_model(NAME, options=ModelOptions(path, model_kwargs={"patch_size": 16}))
    assert "embedding of patches of 32 x 32 pixels is resampled to patches of 16 x 16" in " ".join(resampled.remarks)


def test_channels_that_no_image_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images of 13 channels: only colour"):
        load_model(NAME, saved(tmp_path, state_of(in_chans=13)))
