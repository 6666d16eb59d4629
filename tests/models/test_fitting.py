"""Weights are fitted to the model, by timm's own filters; what does not fit is one line that says why."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from edge_tprune.errors import UserError
from edge_tprune.models.loading import ModelOptions, load_model
from tests.models.files import prefixed, saved
from tests.models.weights import NAME, State, is_loaded, state_of


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


@pytest.mark.parametrize("kind", ["sparse", "without values"])
def test_tensors_that_hold_no_dense_numbers_are_named(tmp_path: Path, state: State, kind: str) -> None:
    state["norm.weight"] = state["norm.weight"].to_sparse() if kind == "sparse" else state["norm.weight"].to("meta")
    with pytest.raises(UserError, match=rf"norm\.weight is {kind}"):
        load_model(NAME, saved(tmp_path, state))


def test_tensors_of_odd_kinds_are_one_line(tmp_path: Path, state: State) -> None:
    state["norm.weight"] = torch.zeros(32, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(UserError, match=r"norm\.weight"):
        load_model(NAME, saved(tmp_path, state))
    state = state_of()
    state["norm.weight"] = torch.zeros(64, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(UserError, match=r"norm\.weight holds float4_e2m1fn_x2: quantised weights are not supported"):
        load_model(NAME, saved(tmp_path, state))
    state = state_of()
    state["norm.weight"] = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(UserError, match=r"norm\.weight is a nested tensor"):
        load_model(NAME, saved(tmp_path, state))
    for odd in (torch.ones(64).to_sparse(), torch.ones(64, device="meta")):
        with pytest.raises(UserError, match=r"module\.norm\.weight|norm\.weight is"):
            load_model(NAME, saved(tmp_path, {**state_of(), "norm.weight": odd, "module.norm.weight": odd}))


def test_a_name_of_many_parts_is_read_in_no_time(tmp_path: Path, state: State) -> None:
    state["a." * 200_000 + "x"] = torch.zeros(1)
    start = time.process_time()
    with pytest.raises(UserError, match=r"unexpected (a\.)+\.\.") as refusal:
        load_model(NAME, saved(tmp_path, state))
    assert time.process_time() - start < 30
    assert len(str(refusal.value)) < 1000


def test_arguments_that_hold_themselves_are_refused(tmp_path: Path, state: State) -> None:
    mean: list[object] = []
    mean.append(mean)
    with pytest.raises(UserError, match=r"--mean is recorded beside the weights as .* which is no number"):
        load_model(NAME, saved(tmp_path, {"state_dict": state, "args": argparse.Namespace(mean=mean)}))


def test_weights_of_another_model_of_the_same_shape_are_said(tmp_path: Path, state: State) -> None:
    for arch, known in ((NAME, False), (f"{NAME}.r160_in1k", False), ("deit_tiny_patch16_224", True)):
        loaded = load_model(NAME, saved(tmp_path, {"arch": arch, "state_dict": state}))
        assert any(f"says that it is of {arch}" in remark for remark in loaded.remarks) == known
