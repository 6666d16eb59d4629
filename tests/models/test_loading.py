"""Whatever timm loads is loaded, with the same weights; what was decided is said; what does not fit is one line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict
from PIL import Image
from safetensors.torch import save_file
from timm.models import load_checkpoint

from edge_tprune.errors import UserError
from edge_tprune.models.loading import LoadedModel, ModelOptions, load_model
from edge_tprune.reduction import registry
from edge_tprune.reduction.host import PrunedViT
from tests.models.weights import NAME, State, is_loaded, state_of


@pytest.fixture
def state() -> State:
    return state_of()


@pytest.fixture
def ema() -> State:
    return state_of(4)


def saved(folder: Path, content: Mapping[str, Any], name: str = "w.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


PREFIXES = st.lists(st.sampled_from(["module", "_orig_mod", "model", "backbone", "net", "encoder.vit", "0"]), max_size=4)
WRAPPERS = st.lists(st.sampled_from(["state_dict", "model", "teacher", "weights", "params", "module"]), max_size=3)


@settings(max_examples=15)
@given(PREFIXES, WRAPPERS, st.booleans())
def test_any_nesting_of_prefixes_and_wrappers(prefixes: list[str], wrappers: list[str], extras: bool) -> None:
    state = state_of()
    content: dict[str, Any] = prefixed(state, "".join(f"{prefix}." for prefix in prefixes))
    if extras and prefixes:
        content["criterion.weight"] = torch.ones(3)
    for wrapper in wrappers:
        content = {wrapper: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}}
    with TemporaryDirectory() as folder:
        assert is_loaded(load_model(NAME, saved(Path(folder), content)).model, state)


TIMMS = {
    "plain": lambda s, e: s,
    "train.py": lambda s, e: {"state_dict": s, "args": argparse.Namespace(model=NAME), "epoch": 1, "optimizer": {}},
    "train.py with EMA": lambda s, e: {"state_dict": s, "state_dict_ema": e, "args": argparse.Namespace(model=NAME)},
    "only EMA": lambda s, e: {"state_dict_ema": e, "epoch": 1},
    "model_ema": lambda s, e: {"model": s, "model_ema": e},
    "EMA that is None": lambda s, e: {"state_dict": s, "state_dict_ema": None},
    "model": lambda s, e: {"model": s},
    "DDP": lambda s, e: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s, e: prefixed(s, "_orig_mod."),
    "compiled DDP": lambda s, e: prefixed(s, "_orig_mod.module."),
    "DDP of compiled": lambda s, e: prefixed(s, "module._orig_mod."),
}


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("kind", TIMMS)
def test_the_same_weights_as_timms_own_loader(tmp_path: Path, state: State, ema: State, kind: str, use_ema: bool) -> None:
    path = saved(tmp_path, TIMMS[kind](state, ema))
    options = ModelOptions(path, use_ema=use_ema)
    if kind == "only EMA" and not use_ema:
        with pytest.raises(UserError, match=r"moving average of the weights alone .* leave --no-ema out"):
            load_model(NAME, options=options)
        return
    reference = timm.create_model(NAME)
    load_checkpoint(reference, str(path), use_ema=use_ema)
    loaded = load_model(NAME, options=options)
    assert is_loaded(loaded.model, reference.state_dict())
    both = "EMA" in kind or kind == "model_ema"
    assert any("moving average" in remark for remark in loaded.remarks) == (both and kind != "EMA that is None")
    assert all(not parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_a_teacher_of_another_size_is_not_the_network(tmp_path: Path) -> None:
    own, other = state_of(), state_of(embed_dim=128, num_heads=2)
    path = saved(tmp_path, {"state_dict": prefixed(own, "student.") | prefixed(other, "teacher.")})
    loaded = load_model(NAME, path)
    assert is_loaded(loaded.model, own)
    assert 'the names after "student."' in " ".join(loaded.remarks)


@pytest.mark.parametrize("names", [("teacher", "student"), ("ema_model", "core"), ("model_ema", "net")])
@pytest.mark.parametrize("flat", [True, False])
def test_of_a_network_and_its_average_timms_rule_decides(
    tmp_path: Path, state: State, ema: State, names: tuple[str, str], flat: bool
) -> None:
    parts = {names[0]: ema, names[1]: state}
    content = {key: value for name, part in parts.items() for key, value in prefixed(part, f"{name}.").items()}
    path = saved(tmp_path, content if flat else parts)
    loaded = load_model(NAME, path)
    assert is_loaded(loaded.model, ema)
    assert names[0] in " ".join(loaded.remarks)
    assert is_loaded(load_model(NAME, options=ModelOptions(path, use_ema=False)).model, state)


def test_where_timm_passes_over_an_average_it_is_said(tmp_path: Path, state: State, ema: State) -> None:
    loaded = load_model(NAME, saved(tmp_path, {"model": state, "my_average": {"net": ema}}))
    assert is_loaded(loaded.model, state)
    assert loaded.remarks == ("w.pth: took model, as timm does, and not my_average.net",)


def test_two_networks_that_nothing_tells_apart_are_named(tmp_path: Path, state: State, ema: State) -> None:
    path = saved(tmp_path, {**prefixed(state, "tower_a."), **prefixed(ema, "tower_b.")})
    with pytest.raises(UserError, match=r'holds 2 networks of this shape: the names after "tower_a\."; .*"tower_b\."'):
        load_model(NAME, path)


def test_lightning_with_a_criterion(tmp_path: Path, state: State) -> None:
    content = {
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(9)},
        "pytorch-lightning_version": "2.4.0",
    }
    loaded = load_model(NAME, saved(tmp_path, content, "l.ckpt"))
    assert is_loaded(loaded.model, state)
    assert loaded.remarks[0] == 'l.ckpt: took state_dict, the names after "model."'
    assert "left out criterion.weight" in loaded.remarks[1]


def test_a_head_beside_its_backbone(tmp_path: Path, state: State) -> None:
    content = {key if key.startswith("head") else f"backbone.{key}": value for key, value in state.items()}
    loaded = load_model(NAME, saved(tmp_path, prefixed(content, "model.")))
    assert is_loaded(loaded.model, state)
    assert "took model.head.weight, model.head.bias" in " ".join(loaded.remarks)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_wrapped_blocks(tmp_path: Path, state: State, wrapper: str) -> None:
    content = {key.replace(".attn.", f".{wrapper}.attn."): value for key, value in state.items()}
    assert is_loaded(load_model(NAME, saved(tmp_path, content)).model, state)


@pytest.mark.parametrize("method", ["evit", "tome"])
def test_a_pruned_models_own_weights_go_round(tmp_path: Path, state: State, method: str) -> None:
    loaded = load_model(NAME, saved(tmp_path, state))
    pruned = PrunedViT(loaded.model, registry.method(method), (101, 80, 60, 60, 60, 60), {})
    torch.save(pruned.state_dict(), tmp_path / "tuned.pth")
    torch.save({"state_dict": prefixed(pruned.state_dict(), "module.")}, tmp_path / "parallel.pth")
    for name in ("tuned.pth", "parallel.pth"):
        assert load_model(NAME, tmp_path / name).weights_sha256 == loaded.weights_sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    content = {key: value.to(dtype) for key, value in state.items()}
    model = load_model(NAME, saved(tmp_path, content)).model
    assert is_loaded(model, content)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


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


def test_the_image_size_asked_for_is_resampled_as_timm_does(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path, state)
    loaded = load_model(NAME, options=ModelOptions(path, img_size=(224, 160)))
    reference = timm.create_model(
        NAME, img_size=(224, 160), dynamic_img_size=False, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}
    )
    assert is_loaded(loaded.model, reference.state_dict())
    assert "160 x 160 pixels (10 x 10 patches), are resampled to 14 x 10 patches, as timm does" in " ".join(loaded.remarks)
    assert list(loaded.preprocessing.input_size) == [3, 224, 160]


def test_embeddings_for_no_square_of_patches_need_the_image_size(tmp_path: Path) -> None:
    own = state_of(img_size=(96, 160))
    path = saved(tmp_path, own)
    with pytest.raises(
        UserError, match="for 60 patches, which are no square: give the size of its images, --img-size HEIGHT,WIDTH"
    ):
        load_model(NAME, path)
    assert is_loaded(load_model(NAME, options=ModelOptions(path, img_size=(96, 160))).model, own)


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


def test_dinov2s_own_files(tmp_path: Path) -> None:
    """A mask token, and registers that timm keeps outside the position embeddings."""
    name = "test_vit2"
    model = timm.create_model(name, dynamic_img_size=False)
    own = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    loaded = load_model(name, saved(tmp_path, {**own, "mask_token": torch.zeros(1, 64)}))
    assert is_loaded(loaded.model, own)


def test_a_pretraining_files_decoder_is_left_out_and_said(tmp_path: Path, state: State) -> None:
    content = {"model": {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}}
    loaded = load_model(NAME, saved(tmp_path, content))
    assert is_loaded(loaded.model, state)
    assert "left out decoder_blocks.0.norm1.weight" in " ".join(loaded.remarks)


HUGGING_FACE = {
    "vit.embeddings.cls_token": torch.zeros(1, 1, 64),
    "vit.encoder.layer.0.attention.attention.query.weight": torch.zeros(64, 64),
    "vit.encoder.layer.0.layernorm_before.weight": torch.zeros(64),
    "classifier.weight": torch.zeros(10, 64),
}
TORCHVISION = {"conv_proj.weight": torch.zeros(64, 3, 16, 16), "encoder.layers.encoder_layer_0.ln_1.weight": torch.zeros(64)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HUGGING_FACE, "its names are those of Hugging Face transformers"),
        (TORCHVISION, "its names are those of torchvision"),
        ({"a.b": torch.zeros(1), "a.c": torch.zeros(1), "d": torch.zeros(1)}, r"its 3 names begin with a \(2\), d \(1\)"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "holds no state dict"),
        ({}, "holds no state dict"),
    ],
)
def test_what_is_another_network_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_model(NAME, saved(tmp_path, content))
    assert "\n" not in str(error.value)


def test_misfits_are_named(tmp_path: Path, state: State) -> None:
    changed = {k: v for k, v in state.items() if k != "norm.weight"} | {
        "extra.weight": torch.zeros(2),
        "cls_token": torch.zeros(5),
    }
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as error:
        load_model(NAME, tmp_path / "w.safetensors")
    text = str(error.value)
    for part in ("missing norm.weight", "unexpected extra.weight", "cls_token (5,) instead of (1, 1, 64)"):
        assert part in text


def test_the_model_that_a_file_says_to_be_of_is_named(tmp_path: Path) -> None:
    other = timm.create_model("test_vit3").state_dict()
    path = saved(tmp_path, {"state_dict": other, "arch": "test_vit3"})
    with pytest.raises(UserError, match="The file says that it is of test_vit3"):
        load_model(NAME, path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (".qkv.weight", ".qkv.base_layer.weight", "adapters .LoRA. beside weights: merge them first"),
        (".fc1.weight", ".fc1.weight_orig", "pruning masks: remove the masks first"),
        (".fc1.weight", ".fc1.parametrizations.weight.original0", "remove the parametrisations first"),
    ],
)
def test_weights_that_are_not_yet_weights_are_named(tmp_path: Path, state: State, old: str, new: str, message: str) -> None:
    content = {key.replace(old, new): value for key, value in state.items()}
    with pytest.raises(UserError, match=message):
        load_model(NAME, saved(tmp_path, content))


def test_a_head_without_its_bias_is_no_lack_of_a_head(tmp_path: Path, state: State) -> None:
    del state["head.bias"]
    with pytest.raises(UserError, match=r"do not fit .*missing head\.bias"):
        load_model(NAME, saved(tmp_path, state))


def test_a_model_with_another_number_of_prefix_tokens_is_named(tmp_path: Path, state: State) -> None:
    del state["cls_token"]
    with pytest.raises(UserError, match="missing cls_token"):
        load_model(NAME, saved(tmp_path, state))


def test_open_clips_tower_is_converted_by_timm(tmp_path: Path) -> None:
    """Its head lies outside of the tower, under another name."""
    name = "vit_base_patch32_clip_224"
    small = {"embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 7}
    model = timm.create_model(name, **small)
    own = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    own["head.bias"] = torch.zeros(7)
    content = {f"visual.trunk.{key}": value for key, value in own.items() if not key.startswith("head")}
    content |= {"visual.head.proj.weight": own["head.weight"], "text.token_embedding.weight": torch.zeros(9, 4)}
    assert is_loaded(load_model(name, options=ModelOptions(saved(tmp_path, content), model_kwargs=small)).model, own)


def test_images_that_patches_do_not_fill_are_said(tmp_path: Path) -> None:
    loaded = load_model(NAME, options=ModelOptions("random", img_size=(100, 96)))
    assert any("the last 4 pixels are not seen" in remark for remark in loaded.remarks)


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


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (float("-inf"), "infinity")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numbers_that_are_none_are_named_at_once(tmp_path: Path, value: float, word: str, dtype: torch.dtype) -> None:
    bad = {key: tensor.to(dtype) for key, tensor in state_of().items()}
    bad["blocks.3.mlp.fc1.weight"][1, 2] = value
    with pytest.raises(
        UserError, match=rf"blocks\.3\.mlp\.fc1\.weight holds {word} \(1 of 12288 values, the first at \[1, 2\]\)"
    ):
        load_model(NAME, saved(tmp_path, {"state_dict": prefixed(bad, "module.")}))


def test_quantised_weights_are_named(tmp_path: Path, state: State) -> None:
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].to(torch.int8)
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc1\.weight holds int8, not floating-point numbers"):
        load_model(NAME, saved(tmp_path, state))


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
        (ModelOptions(preprocessing={"std": (0.0,)}), "--std .* above 0"),
        (ModelOptions(preprocessing={"mean": (0.5, 0.5)}), "--mean has 2 values: give one, or 3"),
        (ModelOptions(preprocessing={"crop_pct": 87.5}), "--crop-pct 87.5 is out of range"),
        (ModelOptions(preprocessing={"interpolation": "bicubc"}), "--interpolation 'bicubc' is unknown. Did you mean bicubic"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: ModelOptions, message: str) -> None:
    path = saved(tmp_path, state_of(num_classes=37))
    with pytest.raises(UserError, match=message):
        load_model(NAME, options=ModelOptions(**{**vars(options), "weights": path}))


def test_preprocessing_is_the_models_own() -> None:
    loaded = load_model("vit_small_patch16_384", "random")
    assert list(loaded.preprocessing.input_size) == [3, 384, 384]
    config = timm.data.resolve_model_data_config(loaded.model)
    wanted = timm.data.create_transform(**config, is_training=False)
    image = Image.effect_noise((500, 300), 60).convert("RGB")
    assert torch.equal(loaded.transform()(image), wanted(image))


def preprocessing(loaded: LoadedModel) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(loaded.preprocessing).items()}


def test_what_the_user_says_comes_before_the_checkpoint_and_that_before_timm(tmp_path: Path, state: State) -> None:
    args = argparse.Namespace(model=NAME, mean=[0.5, 0.5, 0.5], std=None, crop_pct=0.9, interpolation="")
    path = saved(tmp_path, {"state_dict": state, "args": args})
    loaded = load_model(NAME, options=ModelOptions(path, preprocessing={"crop_pct": 1.0, "interpolation": "bilinear"}))
    found = preprocessing(loaded)
    assert (found["mean"], found["crop_pct"], found["interpolation"]) == ([0.5] * 3, 1.0, "bilinear")
    assert found["std"] == list(timm.data.resolve_model_data_config(loaded.model)["std"])
    assert "training arguments in w.pth: mean 0.5,0.5,0.5, crop_pct 0.9" in " ".join(loaded.remarks)


def save_hub(folder: Path, state: State, config: dict[str, Any], **others: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name, document in others.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def test_a_directory_of_timms_hub_is_read_as_timm_does(tmp_path: Path) -> None:
    own = state_of(num_classes=3, global_pool="avg", img_size=96)
    config = {
        "architecture": NAME,
        "num_classes": 3,
        "model_args": {"global_pool": "avg", "img_size": 96},
        "label_names": ["ant", "bee", "cow"],
        "label_descriptions": {"ant": "an ant, insect", "bee": "a bee", "cow": "a cow"},
        "pretrained_cfg": {
            "num_classes": 3,
            "input_size": [3, 96, 96],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "crop_pct": 1.0,
        },
    }
    hub = save_hub(tmp_path / "hub", own, config)
    reference = timm.create_model(f"local-dir:{hub}", pretrained=True)
    expected = timm.data.resolve_model_data_config(reference)
    for name, weights in ((NAME, hub), (f"local-dir:{hub}", None), (NAME, hub / "model.safetensors")):
        loaded = load_model(name, weights)
        assert loaded.name == NAME
        assert is_loaded(loaded.model, reference.state_dict())
        assert preprocessing(loaded) == {
            key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
        }
        assert loaded.class_names is not None
        assert loaded.class_names.names == ("ant", "bee", "cow")
        assert loaded.class_names.title(0) == "an ant"


def test_a_processor_of_transformers_beside_the_weights(tmp_path: Path, state: State) -> None:
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": {"height": 160, "width": 160}}
    hub = save_hub(tmp_path / "hub", state, {"id2label": {"0": "LABEL_0"}}, preprocessor_config=processor)
    found = preprocessing(load_model(NAME, hub))
    assert (found["mean"], found["interpolation"], found["crop_pct"], found["crop_mode"]) == (
        [0.5] * 3,
        "bilinear",
        1.0,
        "squash",
    )


@pytest.mark.parametrize(
    "record",
    [
        {"class_names": ["ant", "bee", "cow"]},
        {"class_to_idx": {"cow": 2, "ant": 0, "bee": 1}},
        {"idx_to_class": {0: "ant", 1: "bee", 2: "cow"}},
        {"meta": {"CLASSES": ("ant", "bee", "cow")}},
        {"hyper_parameters": {"class_names": ["ant", "bee", "cow"]}},
        {"args": argparse.Namespace(class_names=["ant", "bee", "cow"])},
    ],
)
def test_class_names_are_kept_from_the_checkpoints_own_record(tmp_path: Path, record: dict[str, Any]) -> None:
    loaded = load_model(NAME, saved(tmp_path, {"state_dict": state_of(num_classes=3), **record}))
    assert loaded.class_names is not None
    assert loaded.class_names.names == ("ant", "bee", "cow")
    assert "w.pth" in loaded.class_names.source


def test_records_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    state = state_of(num_classes=3)
    record = {"class_names": ["ant", "bee", "cow"], "class_to_idx": {"ant": 0, "bee": 2, "cow": 1}}
    with pytest.raises(UserError, match="contradicts itself: 'cow' is class 2 by class_names"):
        load_model(NAME, saved(tmp_path, {"state_dict": state, **record}))


def test_class_numbers_that_are_not_from_zero_on_are_not_used_and_said(tmp_path: Path) -> None:
    record = {"state_dict": state_of(num_classes=3), "class_to_idx": {"ant": 1, "bee": 2, "cow": 3}}
    loaded = load_model(NAME, saved(tmp_path, record))
    assert loaded.class_names is None
    assert "its class_to_idx numbers its classes 1 to 3, not each of 0 to 2: not used" in " ".join(loaded.remarks)


def test_class_names_of_another_number_are_not_used_and_said(tmp_path: Path) -> None:
    loaded = load_model(NAME, saved(tmp_path, {"state_dict": state_of(num_classes=4), "class_names": ["a", "b", "c"]}))
    assert loaded.class_names is None
    assert "its class_names has 3 entries and the model 4 classes: not used" in " ".join(loaded.remarks)


def test_a_class_map_against_the_checkpoints_names_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": state_of(num_classes=3), "class_names": ["bird", "cat", "dog"]})
    says = "'dog' is class 0 by --class-map map.txt, and class 2 by class_names"
    for text, expected in (("dog\ncat\nbird\n", says), ("bird\ncat\ndog\n", "")):
        (tmp_path / "map.txt").write_text(text)
        loaded = load_model(NAME, options=ModelOptions(path, class_map=tmp_path / "map.txt"))
        found = [remark for remark in loaded.remarks if "and class" in remark]
        assert len(found) == bool(expected)
        assert all(expected in remark for remark in found)


def test_the_users_class_map_comes_first_and_a_thousand_classes_are_imagenets(tmp_path: Path, state: State) -> None:
    (tmp_path / "map.txt").write_text("x\ny\nz\n")
    path = saved(tmp_path, {"state_dict": state_of(num_classes=3), "class_names": ["a", "b", "c"]})
    named = load_model(NAME, options=ModelOptions(path, class_map=tmp_path / "map.txt")).class_names
    assert named is not None
    assert named.names == ("x", "y", "z")
    imagenet = load_model(NAME, saved(tmp_path, state)).class_names
    assert imagenet is not None
    assert (imagenet.names[0], imagenet.title(0)) == ("n01440764", "tench")
    assert "imagenet-1k" in imagenet.source


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
        UserError, match="the pretrained weights of vit_tiny_patch16_224 are for 1000 classes: --classes 5 needs --weights"
    ):
        load_model("vit_tiny_patch16_224", classes=5)


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


@pytest.mark.parametrize("kind", ["sparse", "without values"])
def test_tensors_that_hold_no_dense_numbers_are_named(tmp_path: Path, state: State, kind: str) -> None:
    state["norm.weight"] = state["norm.weight"].to_sparse() if kind == "sparse" else state["norm.weight"].to("meta")
    with pytest.raises(UserError, match=rf"norm\.weight is {kind}"):
        load_model(NAME, saved(tmp_path, state))


@pytest.mark.parametrize("arguments", [{"mean": "abc"}, {"std": [None]}, {"crop_pct": [0.9]}, {"mean": ["a", "b", "c"]}])
def test_recorded_preprocessing_that_is_no_number_is_one_line(tmp_path: Path, state: State, arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is recorded .* no number"):
        load_model(NAME, saved(tmp_path, {"state_dict": state, "args": arguments}))


def test_weights_of_another_model_of_the_same_shape_are_said(tmp_path: Path, state: State) -> None:
    for arch, known in ((NAME, False), (f"{NAME}.r160_in1k", False), ("deit_tiny_patch16_224", True)):
        loaded = load_model(NAME, saved(tmp_path, {"arch": arch, "state_dict": state}))
        assert any(f"says that it is of {arch}" in remark for remark in loaded.remarks) == known


def test_deep_brackets_in_metadata_are_no_class_names(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "w.safetensors", metadata={"class_names": "[" * 100_000})
    assert is_loaded(load_model(NAME, tmp_path / "w.safetensors").model, state)


def test_of_two_networks_it_is_said_once_which_was_taken(tmp_path: Path, state: State, ema: State) -> None:
    content = {**prefixed(state, "model."), **prefixed(ema, "ema_model.")}
    remarks = load_model(NAME, saved(tmp_path, content)).remarks
    assert sum("took" in remark for remark in remarks) == 1
    remarks = load_model(NAME, saved(tmp_path, {**state, "model": ema})).remarks
    assert any("took model, as timm does, and not the names beside it" in remark for remark in remarks)
