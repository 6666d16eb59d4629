"""Whatever timm loads is loaded, with the same weights; what was decided is said; what does not fit is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from timm.models import _builder, load_checkpoint

from edge_tprune.errors import UserError
from edge_tprune.models.architecture import create
from edge_tprune.models.class_names import to_class_names
from edge_tprune.models.loading import ModelOptions, load_model
from tests.models.files import prefixed, saved
from tests.models.weights import NAME, State, is_loaded, state_of


def test_images_that_patches_do_not_fill_are_said(tmp_path: Path) -> None:
    loaded = load_model(NAME, options=ModelOptions("random", img_size=(100, 96)))
    assert any("the last 4 pixels are not seen" in remark for remark in loaded.remarks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions(model_kwargs={"checkpoint_path": "x"}), "checkpoint_path is not an argument of a model"),
        (ModelOptions(global_pool=""), "--global-pool is empty"),
        (ModelOptions(img_size=(8, 8)), "--img-size is smaller than a patch of test_vit"),
        (ModelOptions(global_pool="avg"), "not trained with --global-pool avg: .* Leave --global-pool out"),
        (ModelOptions(classes=5), "has 37 classes, not 5: leave --classes out"),
        (ModelOptions(model_kwargs={"nonsense": 1}), "takes no argument nonsense: leave --model-kwargs nonsense out"),
        (ModelOptions(global_pool="sideways"), "cannot create .* with .*global_pool=sideways"),
        (ModelOptions(img_size=(64, 64), model_kwargs={"img_size": 32}), "img_size is given twice"),
        (ModelOptions(preprocessing={"mean": (123.7, 116.3, 103.5)}), "--mean .* is out of range: .* Divide"),
        (ModelOptions(preprocessing={"std": (0.0,)}), "--std .* is out of range: give numbers from 1e-06 to 1"),
        (ModelOptions(preprocessing={"mean": (0.5, 0.5)}), "--mean has 2 values: give one, or 3"),
        (ModelOptions(preprocessing={"crop_pct": 87.5}), "--crop-pct 87.5 is out of range"),
        (ModelOptions(preprocessing={"interpolation": "bicubc"}), "--interpolation 'bicubc' is unknown. Did you mean bicubic"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: ModelOptions, message: str) -> None:
    path = saved(tmp_path, state_of(num_classes=37))
    with pytest.raises(UserError, match=message):
        load_model(NAME, options=ModelOptions(**{**vars(options), "weights": path}))


def test_jax_archives(tmp_path: Path) -> None:
    """timm's own reader passes over what does not fit; what it passed over is named."""
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, depth=1)
    rng = np.random.default_rng(0)
    c, h, d = 192, 3, 64
    block = "Transformer/encoderblock_0/"
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (16, 16, 3, c),
        "embedding/bias": (c,),
        "cls": (1, 1, c),
        "Transformer/posembed_input/pos_embedding": (1, 197, c),
        "Transformer/encoder_norm/scale": (c,),
        "Transformer/encoder_norm/bias": (c,),
        "head/kernel": (c, 7),
        "head/bias": (7,),
        f"{block}LayerNorm_0/scale": (c,),
        f"{block}LayerNorm_0/bias": (c,),
        f"{block}LayerNorm_2/scale": (c,),
        f"{block}LayerNorm_2/bias": (c,),
        f"{block}MlpBlock_3/Dense_0/kernel": (c, 768),
        f"{block}MlpBlock_3/Dense_0/bias": (768,),
        f"{block}MlpBlock_3/Dense_1/kernel": (768, c),
        f"{block}MlpBlock_3/Dense_1/bias": (c,),
        f"{block}MultiHeadDotProductAttention_1/out/kernel": (h, d, c),
        f"{block}MultiHeadDotProductAttention_1/out/bias": (c,),
    }
    for part in ("query", "key", "value"):
        shapes[f"{block}MultiHeadDotProductAttention_1/{part}/kernel"] = (c, h, d)
        shapes[f"{block}MultiHeadDotProductAttention_1/{part}/bias"] = (h, d)
    arrays = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    loaded = load_model(name, options=ModelOptions(tmp_path / "w.npz", model_kwargs={"depth": 1}))
    model = timm.create_model(name, depth=1, num_classes=7)
    load_checkpoint(model, str(tmp_path / "w.npz"))
    assert is_loaded(loaded.model, model.state_dict())
    np.savez(tmp_path / "w.npz", **{key: value for key, value in arrays.items() if not key.startswith("head")})
    np.savez(tmp_path / "scalar.npz", **{**arrays, "head/bias": np.float32(1.0)})
    with pytest.raises(UserError, match="do not fit"):
        load_model(name, options=ModelOptions(tmp_path / "scalar.npz", model_kwargs={"depth": 1}))
    with pytest.raises(UserError, match=r"hold nothing, or no finite numbers, for head\.weight"):
        load_model(name, options=ModelOptions(tmp_path / "w.npz", model_kwargs={"depth": 1}))


def test_a_wrong_name_comes_with_near_matches() -> None:
    with pytest.raises(UserError, match=r"no model 'deit_smal_patch16_224' in timm .*Did you mean deit_small_patch16_224"):
        load_model("deit_smal_patch16_224", "random")


def test_no_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be fetched .* give --weights FILE"):
        load_model("vit_tiny_patch16_224")
    with pytest.raises(
        UserError, match="the pretrained weights of vit_tiny_patch16_224 are for 1000 classes: 5 classes need --weights"
    ):
        load_model("vit_tiny_patch16_224", classes=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions(model_kwargs={"num_classes": 5}), "are for 1000 classes: 5 classes need --weights FILE"),
        (ModelOptions(classes=0, global_pool="avg"), r"hold no fc_norm\.weight, .* with num_classes=0, global_pool=avg:"),
    ],
)
def test_pretrained_weights_that_lack_a_part_of_the_model_are_refused(
    state: State, monkeypatch: pytest.MonkeyPatch, options: ModelOptions, message: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # nothing is asked whether it can be reached
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    assert is_loaded(load_model(NAME).model, state)
    with pytest.raises(UserError, match=message):
        load_model(NAME, options=options)


def test_the_reference_model_is_what_it_is(tmp_path: Path) -> None:
    loaded = load_model("reference")
    assert loaded.weights == "reference"
    assert loaded.class_names is not None
    assert loaded.class_names.names == tuple("0123456789")
    for options, message in (
        (ModelOptions(classes=7), "--classes 7 does not fit"),
        (ModelOptions(img_size=(224, 224)), "leave img_size out"),
    ):
        with pytest.raises(UserError, match=message):
            load_model("reference", options=options)
    torch.save(prefixed(dict(loaded.model.state_dict()), "model."), tmp_path / "w.pth")
    assert load_model("reference", tmp_path / "w.pth").weights_sha256 == loaded.weights_sha256


def test_random_weights_are_the_same_every_time() -> None:
    assert load_model("reference", "random").weights_sha256 == load_model("reference", "random").weights_sha256
    assert load_model(NAME, "random").weights_sha256 == load_model(NAME, "random").weights_sha256


@pytest.mark.parametrize(
    "name", ["test_vit3", "eva02_tiny_patch14_224", "beit_base_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_other_families_load_in_the_same_way(tmp_path: Path, name: str) -> None:
    small = {"depth": 1, "embed_dim": 48, "num_heads": 3} if name.startswith(("eva", "beit")) else {}
    model = timm.create_model(name, num_classes=5, **small)
    own = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in model.state_dict().items()}
    loaded = load_model(name, options=ModelOptions(saved(tmp_path, prefixed(own, "model.")), model_kwargs=small))
    assert is_loaded(loaded.model, own)
    assert loaded.arguments["num_classes"] == 5


def test_a_network_of_a_million_blocks_is_refused_before_it_is_built() -> None:
    for random in (True, False):
        with pytest.raises(UserError, match="with depth=1000000: a network has at most 1000 blocks"):
            create("vit_tiny_patch16_224", {"depth": 1_000_000}, random=random, shape_only=not random)


def test_a_patch_of_three_sides_is_refused() -> None:
    for argument in ({"patch_size": (16, 16, 16)}, {"img_size": [224]}):
        with pytest.raises(UserError, match=r"_size=.*: give one number, or height and width"):
            create("vit_tiny_patch16_224", argument)


@pytest.mark.parametrize(
    "argument", [{"num_heads": -3}, {"embed_dim": -192}, {"mlp_ratio": float("nan")}, {"init_values": float("inf")}]
)
def test_a_network_of_negative_numbers_is_refused(argument: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224 with .*: give a number that is not negative"):
        create("vit_tiny_patch16_224", argument, shape_only=True)


@pytest.mark.parametrize("std", [0.0, 1e-50, 1e-320, -0.1])
def test_a_deviation_that_is_0_in_float32_is_refused(std: float) -> None:
    with pytest.raises(UserError, match=r"--std .* is out of range"):
        load_model("reference", options=ModelOptions(preprocessing={"std": (std,)}))


def test_class_names_that_are_no_text_are_refused() -> None:
    """Half of a pair that stands for one character, which JSON can spell and no file can hold."""
    with pytest.raises(UserError, match=r"label_names in config\.json calls a class '\\ud800', which is no text"):
        to_class_names(["cat", "\ud800"], 2, "label_names in config.json")


def test_where_a_network_is_made_is_no_argument_of_it(tmp_path: Path) -> None:
    for key in ("device", "dtype"):
        with pytest.raises(UserError, match=f"--model-kwargs {key} is not an argument of a model, but of its loading"):
            load_model(NAME, options=ModelOptions("random", model_kwargs={key: "meta"}))
    file = saved(tmp_path, state_of())
    loaded = load_model(NAME, file)
    config = {"architecture": NAME, "model_args": {"device": "meta", "checkpoint_path": "/none", "scriptable": True}}
    (file.parent / "config.json").write_text(json.dumps(config))
    assert load_model(NAME, file.parent).weights_sha256 == loaded.weights_sha256


@pytest.mark.parametrize("arguments", [{"norm_layer": "batchnorm2d"}, {"norm_layer": "batchnorm1d"}])
def test_a_network_that_timm_makes_and_that_cannot_run_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(
        UserError, match=r"test_vit with norm_layer=.* fails on an image of \d+ x \d+ pixels .*: give other arguments"
    ):
        load_model(NAME, "random", options=ModelOptions("random", model_kwargs=arguments))
