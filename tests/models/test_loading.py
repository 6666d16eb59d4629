"""Weights fit strictly or are refused by name; nothing in a file is ever executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from edge_tprune.errors import UserError
from edge_tprune.models.loading import load_model

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {k: v.contiguous() for k, v in timm.create_model(NAME).state_dict().items()}


def test_safetensors_and_state_dicts_load_alike(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"model": state}, tmp_path / "wrapped.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "parallel.pth")
    loaded = [load_model(NAME, tmp_path / n) for n in ("w.safetensors", "plain.pt", "wrapped.pth", "parallel.pth")]
    assert len({item.weights_sha256 for item in loaded}) == 1
    assert loaded[0].weights == "w.safetensors"
    for key, value in loaded[0].model.state_dict().items():
        assert torch.equal(value, state[key])
    assert not loaded[0].model.training


def test_misfits_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    changed = {k: v for k, v in state.items() if k != "norm.weight"} | {
        "extra.weight": torch.zeros(2),
        "head.bias": torch.zeros(5),
    }
    save_file(changed, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as error:
        load_model(NAME, tmp_path / "w.safetensors")
    text = str(error.value)
    assert "missing norm.weight" in text
    assert "unexpected extra.weight" in text
    assert "head.bias (5,) instead of (1000,)" in text


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "owned",))  # type: ignore[return-value]

    (tmp_path / "w.pt").write_bytes(pickle.dumps({"a": Attack()}))
    with pytest.raises(UserError, match="cannot be read"):
        load_model(NAME, tmp_path / "w.pt")
    torch.save({"a": Attack()}, tmp_path / "v.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(NAME, tmp_path / "v.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_rubbish_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            load_model(NAME, tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        load_model(NAME, tmp_path / "absent.pt")


def test_a_wrong_name_comes_with_near_matches() -> None:
    with pytest.raises(UserError, match=r"no model 'deit_smal_patch16_224' in timm .*Did you mean deit_small_patch16_224"):
        load_model("deit_smal_patch16_224", "random")


def test_no_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be fetched .* give --weights FILE"):
        load_model(NAME)


def test_preprocessing_is_the_models_own() -> None:
    loaded = load_model("vit_small_patch16_384", "random")
    assert loaded.preprocessing["input_size"] == [3, 384, 384]
    config = timm.data.resolve_model_data_config(loaded.model)
    wanted = timm.data.create_transform(**config, is_training=False)
    image = Image.effect_noise((500, 300), 60).convert("RGB")
    assert torch.equal(loaded.transform()(image), wanted(image))


def test_models_without_a_head_are_refused() -> None:
    with pytest.raises(UserError, match="has no classifier head"):
        load_model("vit_small_patch14_dinov2", "random")
    with pytest.raises(UserError, match="--classes 7 does not fit"):
        load_model("reference", "random", classes=7)


def test_random_weights_are_the_same_every_time() -> None:
    assert load_model("reference", "random").weights_sha256 == load_model("reference", "random").weights_sha256


def test_a_fine_tuned_head(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=5)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    assert load_model(NAME, tmp_path / "w.safetensors", classes=5).model.num_classes == 5
